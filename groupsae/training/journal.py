"""Log lines and checkpoints, gathered from all ranks and written by rank 0 in the order of steps.

Between two blocks ranks do not meet, so each notes what it has logged and saved. A process that is alone writes at
once, in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from groupsae.activations.shuffle import Position
from groupsae.training.checkpoint import Checkpoints, Progress
from groupsae.training.kernel_choice import KernelChoice


@dataclass
class Journal:
    """What one rank notes until the ranks meet. `names` are all groups that are trained, in order."""

    names: Sequence[str]
    parts: Sequence[str]
    """The parts of `seconds` that are no groups, each second in one of them."""
    checkpoints: Checkpoints | None
    log: Callable[[dict[str, Any]], None] | None
    entries: list[dict[str, Any]] = field(default_factory=list)
    logged: int = -1
    """The step of the last line of the log."""

    def note_log(self, step: int, tokens: int, seconds: dict[str, float], micro_batches: int, groups: Any) -> None:
        """Note what this rank's groups have to log."""
        facts = {"step": step, "tokens": tokens, "seconds": dict(seconds)}
        self.entries.append({"kind": "log", **facts, "micro_batches": micro_batches, "groups": groups})

    def note_save(self, progress: Progress, names: Sequence[int], files: dict[str, Any]) -> None:
        """Note that the states of this rank's groups are on disk."""
        self.entries.append({"kind": "save", **asdict(progress), "names": list(names), "files": files})

    def take(self) -> list[dict[str, Any]]:
        """What was noted, which is then forgotten."""
        entries, self.entries = self.entries, []
        return entries

    def write(self, told: Sequence[Sequence[dict[str, Any]]], kernel: KernelChoice) -> None:
        """Write what all ranks have noted; they noted the same steps."""
        for entries in zip(*told, strict=True):
            if entries[0]["kind"] == "log":
                self._write_log(entries, kernel)
            else:
                self._write_save(entries)

    def _write_log(self, entries: Sequence[dict[str, Any]], kernel: KernelChoice) -> None:
        groups = {name: reading for entry in entries for name, reading in entry["groups"].items()}
        seconds = add_seconds([entry["seconds"] for entry in entries])
        record = {
            "step": entries[0]["step"],
            "tokens": entries[0]["tokens"],
            "seconds": round(sum(seconds[part] for part in self.parts), 3),
            "micro_batches": max(entry["micro_batches"] for entry in entries),
            "kernel": kernel.name,
            "groups": {name: groups[name] for name in self.names if name in groups},
        }
        if self.log and (groups or record["step"] != self.logged):
            self.log(record)
        self.logged = record["step"]

    def _write_save(self, entries: Sequence[dict[str, Any]]) -> None:
        first = entries[0]
        progress = Progress(
            first["step"],
            Position(**first["position"]),
            add_seconds([entry["seconds"] for entry in entries]),
            KernelChoice(**first["kernel"]),
        )
        files = {name: facts for entry in entries for name, facts in entry["files"].items()}
        place = {name: number for number, name in enumerate(self.names)}
        ordered = dict(sorted(files.items(), key=lambda file: place[file[0].split("/")[1]]))
        self.checkpoints.commit(progress, ordered, first["names"])


def add_seconds(told: Sequence[dict[str, float]]) -> dict[str, float]:
    """The seconds of all ranks by part: what they cost together."""
    return {part: sum(seconds.get(part, 0.0) for seconds in told) for part in told[0]}
