"""Checkpoints: every group's state at one step, beside the group, valid once the marker names the step.

    groups/<group>/state-<step>.safetensors     checkpoint.json: {"step", "position", "key", "profile"}

The marker is written last, so a save that is interrupted leaves the checkpoint before it in force.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groupsae.activations.shuffle import Position
from groupsae.errors import RunError
from groupsae.storage import storage_errors, write_atomically
from groupsae.saes.weights import load_tensors, save_tensors
from groupsae.training.group import GroupInTraining

MARKER = "checkpoint.json"
REMEDY = "Train again with --overwrite."


@dataclass(frozen=True)
class Progress:
    """How far training has come, and what it has spent: steps, position in the stream, seconds by part."""

    step: int
    position: Position
    seconds: dict[str, float]


class Checkpoints:
    """The checkpoints in a folder. `key` identifies what is trained; others' checkpoints are not taken."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def save(self, groups: Sequence[GroupInTraining], progress: Progress) -> None:
        """Write every group's state, then the marker; then remove the states before, or those of another key first."""
        if self._marker() is None:
            self.clear()
        for group in groups:
            state = group.state()
            write_atomically(self._file(group, progress.step), lambda path, state=state: save_tensors(state, path))
        marker = json.dumps({"key": self.key, **asdict(progress)}, indent=1)
        write_atomically(self.folder / MARKER, lambda path: path.write_text(marker + "\n"))
        self._remove_states(keep=progress.step)

    def load(self, groups: Sequence[GroupInTraining]) -> Progress | None:
        """Restore every group to the last checkpoint; None if there is none. Raises RunError for a damaged one."""
        marker = self._marker()
        if marker is None:
            return None
        try:
            progress = Progress(int(marker["step"]), Position(**marker["position"]), dict(marker["seconds"]))
        except (KeyError, ValueError, TypeError) as error:
            raise RunError(f"{self.folder / MARKER} is damaged: {error!r}. {REMEDY}") from error
        for group in groups:
            group.restore(load_tensors(self._file(group, progress.step), group.layout(), remedy=REMEDY))
        return progress

    @property
    def exist(self) -> bool:
        """Whether there is a checkpoint of this key to go on from."""
        return self._marker() is not None

    def clear(self) -> None:
        """Remove the marker and all states."""
        with storage_errors(self.folder / MARKER):
            (self.folder / MARKER).unlink(missing_ok=True)
        self._remove_states(keep=None)

    def _marker(self) -> dict[str, Any] | None:
        try:
            marker = json.loads((self.folder / MARKER).read_text())
            return marker if marker["key"] == self.key else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.folder / MARKER} is damaged: {error!r}. {REMEDY}") from error

    def _file(self, group: GroupInTraining, step: int) -> Path:
        return self.folder / "groups" / group.name / f"state-{step}.safetensors"

    def _remove_states(self, keep: int | None) -> None:
        for file in self.folder.glob("groups/*/state-*.safetensors"):
            if keep is None or file.name != f"state-{keep}.safetensors":
                with storage_errors(file):
                    file.unlink(missing_ok=True)
