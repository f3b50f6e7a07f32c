"""Checkpoints: every group's state at one step, beside the group, valid once its manifest stands.

    groups/<group>/state-<step>.safetensors      checkpoints/step-<step>.json

The manifest holds key, settings, step, position, seconds, the logs' lengths, and each state's size and
SHA-256. It is written last, so a save that is cut short leaves the checkpoints before it in force. Of several ranks
each writes the states of its own groups, and rank 0 the manifest once all have met. A state does not tell which rank
wrote it; that of a dictionary that is cut over ranks is in one file per piece, and can be read by any number of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupsae.activations.shuffle import Position
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import RunError
from groupsae.hookpoints import natural_key
from groupsae.planning.cluster import latent_slices
from groupsae.saes.weights import load_tensors, save_tensors
from groupsae.storage import describe, storage_errors, within, write_atomically, write_json
from groupsae.training.cut import is_cut, join
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.kernel_choice import KernelChoice
from groupsae.training.log import LogFile

REMEDY = "Train again with --overwrite."
DAMAGE = (RunError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged manifest, or what it names, can raise."""


@dataclass(frozen=True)
class Progress:
    """How far training has come, what it has spent (seconds by part), and the kernel that its steps use."""

    step: int
    position: Position
    seconds: dict[str, float]
    kernel: KernelChoice = field(default_factory=KernelChoice)


class Checkpoints:
    """The checkpoints in a folder: the last `keep`, and those that were named.

    `key` identifies what is trained; others' checkpoints are not taken. `settings` says in words what
    the key stands for. `logs` are cut back to where they were when a checkpoint is gone on from.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        *,
        keep: int = 2,
        settings: Mapping[str, Any] | None = None,
        logs: Sequence[LogFile] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder, self.key, self.keep, self.ranks = folder, key, keep, ranks
        self.settings, self.logs = dict(settings or {}), logs
        self.damaged: list[str] = []
        """What `load` passed over, in words."""

    def save_states(self, groups: Sequence[GroupTrainer], step: int) -> dict[str, dict[str, Any]]:
        """Write the states of this rank's groups; what the manifest says of each file, by its name."""
        if self.ranks.alone and not self.exist:
            self.clear()  # checkpoints of another key make room first; several ranks have done so in `load`
        files = {}
        for group in groups:
            name, state = _state_name(group, step), group.state()
            write_atomically(self.folder / name, lambda path, state=state: save_tensors(state, path))
            files[name] = describe(self.folder / name)
        return files

    def commit(self, progress: Progress, files: Mapping[str, dict[str, Any]], names: Sequence[int] = ()) -> None:
        """Write the manifest of all ranks' files, which must be on disk; then remove what is not kept.

        With `names` it is kept for good: a snapshot, named by the tokens at which it was wanted.
        """
        manifest = {
            "key": self.key,
            "settings": self.settings,
            **asdict(progress),
            "snapshots": list(names),
            "logs": {log.path.name: log.sync() for log in self.logs},
            "files": dict(files),
        }
        write_json(self._file(progress.step), manifest)
        self._thin(progress.step)

    def load(self, groups: Sequence[GroupTrainer]) -> Progress | None:
        """Restore every group to the last checkpoint that is sound on all ranks; None if there are none at all.

        A damaged one is passed over, with a word in `damaged`. Raises RunError if none is sound.
        """
        self.damaged = []
        steps = self.ranks.from_first(self._ours())
        for step in steps:
            progress, fault = self._try(groups, step)
            faults = [fault for fault in self.ranks.gather(fault) if fault]
            if not faults:
                self._go_on_from(step)
                return progress
            self.damaged += dict.fromkeys(faults)
        if self.damaged:
            raise RunError(f"{self.damaged[0]} No other checkpoint is sound. {REMEDY}")
        if not self.ranks.alone:
            if self.ranks.first:
                self.clear()
            self.ranks.barrier()
        return None

    @property
    def exist(self) -> bool:
        """Whether there are checkpoints of this key, sound or not."""
        return bool(self._ours())

    def snapshots(self) -> dict[int, list[str]]:
        """The files of each snapshot of this key, by the tokens at which it was wanted."""
        manifests = [self._read(step) for step in reversed(self._readable())]
        return {tokens: list(manifest["files"]) for manifest in manifests for tokens in manifest["snapshots"]}

    def others(self) -> tuple[int, dict[str, Any]] | None:
        """Tokens and settings of the last checkpoint, if it is of another key."""
        for step in self._steps():
            try:
                manifest = self._read(step)
                if manifest["key"] != self.key:
                    return int(manifest["position"]["tokens"]), dict(manifest["settings"])
            except DAMAGE:
                continue
        return None

    def clear(self) -> None:
        """Remove all manifests and states."""
        for step in self._steps():
            _remove(self._file(step))
        self._remove_states(keep=())

    def _try(self, groups: Sequence[GroupTrainer], step: int) -> tuple[Progress | None, str]:
        """Restore this rank's groups to a checkpoint; what is wrong with it, in words."""
        try:
            return self._restore(groups, step), ""
        except DAMAGE as error:
            fault = str(error) if isinstance(error, RunError) else f"{self._file(step)} is damaged: {error!r}. "
            return None, fault.replace(REMEDY, "").strip()

    def _restore(self, groups: Sequence[GroupTrainer], step: int) -> Progress:
        manifest = self._read(step)
        progress = Progress(
            int(manifest["step"]),
            Position(**manifest["position"]),
            dict(manifest["seconds"]),
            KernelChoice(**manifest["kernel"]),
        )
        for log in self.logs:
            int(manifest["logs"][log.path.name])
        for group in groups:
            for name in _files_of(group, manifest):
                path = within(self.folder, name)
                if not path.is_file() or describe(path) != manifest["files"][name]:
                    raise RunError(f"{path} is missing or damaged: it is not as it was written.")
        for group in groups:
            group.restore(self._state(group, _files_of(group, manifest)))
        return progress

    def _state(self, group: GroupTrainer, files: Sequence[str]) -> dict[str, Tensor]:
        """The state of a group, or of this rank's piece of it, whether it was saved whole or in pieces."""
        like = group.layout()
        if len(files) == 1 and group.cut is None:
            return load_tensors(self.folder / files[0], like, remedy=REMEDY)
        pieces = []
        for name, rows in zip(files, latent_slices(group.d_sae, len(files)), strict=True):
            count = rows.stop - rows.start
            layout = {each: _with_rows(tensor, count) if is_cut(each) else tensor for each, tensor in like.items()}
            pieces.append(load_tensors(self.folder / name, layout, remedy=REMEDY))
        return group.cut.piece(join(pieces)) if group.cut else join(pieces)

    def _go_on_from(self, step: int) -> None:
        """Cut the logs to where they were, and remove what a process that was killed in a save did not come to."""
        if self.ranks.first:
            for log in self.logs:
                if not log.cut(int(self._read(step)["logs"][log.path.name])):
                    self.damaged.append(f"{log.path} has lost lines from before step {step}.")
            self._thin(step, after=True)
        self.ranks.barrier()

    def _thin(self, newest: int, *, after: bool = False) -> None:
        """Remove manifests that are not kept, and those after `newest`, of a training that went another way.

        States after it are removed only with `after`: another rank may be writing one.
        """
        ours = [step for step in self._readable() if step <= newest]
        kept = ours[: self.keep] + [step for step in ours if self._read(step)["snapshots"]]
        for step in set(self._steps()) - set(kept):
            _remove(self._file(step))
        self._remove_states(kept, upto=None if after or self.ranks.alone else newest)

    def _ours(self) -> list[int]:
        """The steps of this key's manifests, newest first; one that cannot be read may be ours."""
        return [step for step in self._steps() if self._key_of(step) in (self.key, None)]

    def _readable(self) -> list[int]:
        return [step for step in self._steps() if self._key_of(step) == self.key]

    def _key_of(self, step: int) -> str | None:
        try:
            return str(self._read(step)["key"])
        except DAMAGE:
            return None

    def _steps(self) -> list[int]:
        found = [re.fullmatch(r"step-(\d{1,18})\.json", path.name) for path in self.folder.glob("checkpoints/*.json")]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _read(self, step: int) -> dict[str, Any]:
        return json.loads(self._file(step).read_text(encoding="utf-8"))

    def _file(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step}.json"

    def _remove_states(self, keep: Sequence[int], upto: int | None = None) -> None:
        for file in self.folder.glob("groups/*/state-*.safetensors"):
            number = re.fullmatch(r"state-(\d{1,18})(-part-\d+-of-\d+)?", file.stem)
            step = int(number[1]) if number else -1
            if step not in keep and (upto is None or step <= upto):
                _remove(file)


def _state_name(group: GroupTrainer, step: int) -> str:
    part = f"-{group.cut.label}" if group.cut else ""
    return f"groups/{group.name}/state-{step}{part}.safetensors"


def _files_of(group: GroupTrainer, manifest: Mapping[str, Any]) -> list[str]:
    """The files that hold a group's state, in the order of their latents."""
    folder = f"groups/{group.name}/"
    found = [name for name in manifest["files"] if str(name).startswith(folder) and "/" not in name[len(folder) :]]
    if not found:
        raise RunError(f"{folder} has no state in this checkpoint.")
    return sorted(found, key=natural_key)


def _with_rows(tensor: Tensor, count: int) -> Tensor:
    """A tensor of the same form with so many rows, without memory."""
    return torch.empty((count, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")


def _remove(file: Path) -> None:
    with storage_errors(file):
        file.unlink(missing_ok=True)
