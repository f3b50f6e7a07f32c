"""The run directory: where each stage's results lie, written whole or not at all.

    runs/NAME/config.toml  manifest.json  tokens/  distances.json  partition.json  plan.json
              groups/  suite.json  scales.safetensors  metrics.jsonl  train.json  eval/  report/

The manifest names, for each finished stage, the part of the config it was made from and a
fingerprint of it together with what it was made of. A stage whose fingerprint no longer agrees
is stale. Parts of a stage that can be had one by one are recorded in the same way, by their names.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from groupsae.config import RunConfig, differing_keys, dump_config, load_config
from groupsae.errors import GroupsaeError, RunError
from groupsae.lock import LOCK_FILE
from groupsae.records.environment import environment
from groupsae.records.manifest import changes, describe_files, describe_inputs
from groupsae.records.stages import MAY_CHANGE, fingerprint, has_effect, readers_of, stages_before, stages_of
from groupsae.records.types.manifest import ManifestRecord, ModelRecord, StageRecord, StageStatus
from groupsae.storage import append_json, within, write_atomically, write_json, write_text


class RunDirectory:
    """One run on disk. Holds its path and config; everything else is read when asked for."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config
        self.writable = True
        """Whether what is written here reaches the disk; of several ranks, only rank 0's does."""

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run. Raises RunError if there is none."""
        if not (path / "config.toml").is_file():
            raise RunError(f"{path} is not a run directory: it has no config.toml. Start one with a TOML file.")
        return cls(path, load_config(path / "config.toml"))

    @classmethod
    def at(cls, path: Path, config: RunConfig, *, overwrite: bool = False) -> RunDirectory:
        """The run of this config at this path, which may exist. Nothing is written before `adopt`.

        Raises RunError if the path holds something else, or, without `overwrite`, a run of another config.
        """
        if (path / "config.toml").exists():
            before = cls.open(path)
            differing = list(filter(has_effect, differing_keys(before.config, config)))
            used = {each: before.done_among(readers_of(each)) for each in differing}
            used = {each: stages for each, stages in used.items() if stages}
            if used and not overwrite:
                named = "; ".join(f"{each} (read by {' and '.join(stages)})" for each, stages in used.items())
                unfinished = before.status("train") != "done" and any(path.glob("checkpoints/step-*.json"))
                loss = "; an unfinished training lies there as well, and would be discarded" if unfinished else ""
                raise RunError(
                    f"{path} holds results of another config: {named}. Continue that run with `groupsae run {path}`, "
                    f"give this config another place with --out, or replace the results with --overwrite{loss}. Keys "
                    f"that no finished stage has read may change, and always {', '.join(MAY_CHANGE)}."
                )
        elif path.exists() and (not path.is_dir() or any(file.name != LOCK_FILE for file in path.iterdir())):
            raise RunError(f"{path} exists and is not a run directory (no config.toml). Choose another place.")
        return cls(path, config)

    def done_among(self, stages: Iterable[str]) -> tuple[str, ...]:
        """Those of some stages that have results in this run."""
        recorded = self.manifest.stages
        return tuple(stage for stage in stages if stage in recorded)

    def adopt(self) -> str | None:
        """Write this run's config down; returns the one that was there before, as text, or None.

        Stages made from other values are stale from now on; none is removed.
        """
        file, text = self.file("config.toml"), dump_config(self.config)
        before = file.read_text(encoding="utf-8") if file.exists() else None
        if before != text:
            self.write_text("config.toml", text)
        return before

    # ---- files

    def file(self, name: str) -> Path:
        """The path of a file of this run. Raises RunError for a name that leads out of it."""
        return within(self.path, name)

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file under a temporary name with `write(path)`, sync it, and rename it into place."""
        if self.writable:
            write_atomically(self.file(name), write)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        if self.writable:
            write_text(self.file(name), text)

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON; NaN and infinity are refused."""
        if self.writable:
            write_json(self.file(name), value)

    def read_json(self, name: str) -> Any:
        """The JSON in a file of this run. Raises RunError if it is missing or damaged."""
        try:
            return json.loads(self.file(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} has no {name}. `groupsae show {self.path}` says what is missing.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self.file(name)} is damaged: {error}. Make it again with --overwrite.") from None

    def append_json(self, name: str, value: Any) -> None:
        """Append one line of JSON."""
        if self.writable:
            append_json(self.file(name), value)

    # ---- stages

    @property
    def manifest(self) -> ManifestRecord:
        """Versions, hardware, finished stages and finished parts of stages. Raises RunError if it is damaged."""
        return ManifestRecord.find(self) or ManifestRecord(stages={}, parts={})

    @property
    def own_stages(self) -> tuple[str, ...]:
        """The stages of this run: one that starts from another run's SAEs compares no layers and divides nothing."""
        return stages_of(self.config)

    def require_own(self, stage: str) -> None:
        """Raises RunError for a stage that this run does not have."""
        if stage not in self.own_stages:
            train = self.config.train
            why = f"it starts from the SAEs of {train.warm_start.source} and trains one per layer"
            if train.imported is not None:
                why = f"its SAEs were imported ({train.imported})"
            raise RunError(f"{self.path} has no stage {stage!r}: {why}. It has {', '.join(self.own_stages)}.")

    def before(self, stage: str) -> tuple[str, ...]:
        """The stages that a stage is made from: those before it; a plan only counts where it decides something."""
        self.require_own(stage)
        return stages_before(self.config, stage)

    def fingerprint(self, stage: str, part: str = "") -> str:
        """What a stage's result depends on, as a hash: its config sections and those of all stages before it.

        Of a part of a stage, named by its file: without the sections that only another part reads.
        """
        self.require_own(stage)
        return fingerprint(self.config, stage, part)

    def describe(self, model: ModelRecord, device: str | None = None) -> None:
        """Write into the manifest what the model is, and what it runs on."""
        self.manifest.model_copy(update={"model": model, "device": device}).write(self)

    def status(self, stage: str, part: str = "", *, beside: str = "") -> str:
        """`done`, `missing` or `stale`: made from another config, from an older result or input, or changed since.

        Of a stage, or of a part of it that is recorded by itself; `beside` is what else the part was made from.
        """
        manifest = self.manifest
        recorded, name = (manifest.parts, part) if part else (manifest.stages, stage)
        if name not in recorded or any(not self.file(file).exists() for file in recorded[name].files):
            return "missing"
        done = recorded[name]
        made_of = (done.fingerprint, done.made_from, done.beside)
        now = (self.fingerprint(stage, part), self._made_from(stage, manifest), beside)
        return "done" if made_of == now and not changes(self.path, done) else "stale"

    def changes(self, stage: str, *, verify: bool = False) -> list[str]:
        """What became of a stage's files and inputs since: sizes, which cost nothing, with `verify` SHA-256 too."""
        recorded = self.manifest.stages
        return changes(self.path, recorded[stage], verify=verify) if stage in recorded else []

    def _made_from(self, stage: str, manifest: ManifestRecord) -> dict[str, str]:
        """The earlier stages' results, each as one hash of its files."""
        return {name: manifest.stages[name].files_digest for name in self.before(stage) if name in manifest.stages}

    def stages(self) -> dict[str, StageStatus]:
        """What is done, stale or missing, stage by stage; with seconds and files where it has run."""
        recorded = self.manifest.stages
        return {
            stage: StageStatus(
                status=self.status(stage),
                **({"seconds": recorded[stage].seconds, "files": recorded[stage].files} if stage in recorded else {}),
            )
            for stage in self.own_stages
        }

    def require(self, *stages: str) -> None:
        """Raises RunError naming the first of these stages that is not done, and the command that does it."""
        for stage in stages:
            status = self.status(stage)
            if status != "done":
                changed = "; ".join(self.changes(stage)[:4])
                why = "has not run" if status == "missing" else "is out of date" + f" ({changed})" * bool(changed)
                command = f"groupsae {stage} {self.path}" + " --overwrite" * (status == "stale")
                raise RunError(f"Stage {stage!r} {why} in {self.path}. Run `{command}` first.")

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """While the block runs, an error that is not ours is the files' fault if they are not as written.

        Raises RunError naming them; where they are as written, the error itself.
        """
        try:
            yield
        except GroupsaeError:
            raise
        except Exception as error:
            with contextlib.suppress(OSError):
                self.require_intact()
            raise error

    def require_intact(self) -> None:
        """Raises RunError naming every file of the manifest whose size or SHA-256 is not as written."""
        manifest = self.manifest
        records = (*manifest.stages.values(), *manifest.parts.values())
        faults = dict.fromkeys(fault for record in records for fault in changes(self.path, record, verify=True))
        if faults:
            raise RunError(f"{self.path} is not as it was written: {'; '.join(faults)}. Make these stages again.")

    def finish(
        self,
        stage: str,
        seconds: float,
        files: list[str],
        inputs: Iterable[Path] = (),
        *,
        part: str = "",
        beside: str = "",
    ) -> None:
        """Record that a stage, or a part of it, is done, how long it took, what it wrote, and what else it read."""
        if not self.writable:
            return
        manifest = self.manifest
        done = StageRecord(
            fingerprint=self.fingerprint(stage, part),
            made_from=self._made_from(stage, manifest),
            beside=beside,
            seconds=round(seconds, 3),
            finished=time.time(),
            files=describe_files(self.path, files),
            inputs=describe_inputs(inputs),
        )
        manifest = manifest.model_copy(update={"environment": environment()})
        manifest.with_done(part or stage, done, part=bool(part)).write(self)
