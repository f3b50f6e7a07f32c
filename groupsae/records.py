"""The run directory: where each stage's results lie, written whole or not at all.

    runs/NAME/config.toml  manifest.json  tokens/  distances.json  partition.json  plan.json
              groups/  suite.json  scales.safetensors  metrics.jsonl  train.json  eval/  report/

The manifest names, for each finished stage, the part of the config it was made from and a
fingerprint of it together with what it was made of. A stage whose fingerprint no longer agrees
is stale. Parts of a stage that can be had one by one are recorded in the same way, by their names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from groupsae.config import RunConfig, differing_keys, dump_config, load_config
from groupsae.errors import GroupsaeError, RunError
from groupsae.lock import LOCK_FILE
from groupsae.storage import append_json, describe, within, write_atomically

STAGES = ("tokens", "distances", "group", "plan", "train", "eval", "report")

STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "tokens": ("model", "text"),
    "distances": ("activations", "distances"),
    "group": ("group",),
    "plan": ("sae", "train", "plan"),
    "train": ("sae", "train"),
    "eval": ("circuits", "eval"),
    "report": (),
}
"""The config sections that each stage reads first; it depends on those of all stages before it as well."""
SECTIONS_OF_A_PART = ("circuits",)
"""The sections that only the part of a stage reads whose file bears their name."""

_WITHOUT_EFFECT = {
    "model": {"device", "trust_remote_code"},
    "train": {"log_every_tokens", "save_every_tokens", "keep_checkpoints", "snapshots"},
}
MAY_CHANGE = tuple(f"{section}.{key}" for section, keys in _WITHOUT_EFFECT.items() for key in sorted(keys))
"""The keys that a run may be gone on with under another value."""
HASHED_BYTES = 2**30
"""Inputs beyond this size are known by size and date alone."""


def _has_effect(difference: str) -> bool:
    """Whether a difference, such as `model.device: 'auto' -> 'cpu'`, can change a result."""
    section, _, key = difference.partition(":")[0].partition(".")
    return key not in _WITHOUT_EFFECT.get(section, ())


class RunDirectory:
    """One run on disk. Holds its path and config; everything else is read when asked for."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

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
            differing = list(filter(_has_effect, differing_keys(cls.open(path).config, config)))
            if differing and not overwrite:
                raise RunError(
                    f"{path} belongs to another config ({'; '.join(differing)}). Go on with that one by "
                    f"`groupsae run {path}`, give this one another place with --out, or replace what "
                    f"differs with --overwrite. Only {', '.join(MAY_CHANGE)} may change."
                )
        elif path.exists() and (not path.is_dir() or any(file.name != LOCK_FILE for file in path.iterdir())):
            raise RunError(f"{path} exists and is not a run directory (no config.toml). Choose another place.")
        return cls(path, config)

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
        write_atomically(self.file(name), write)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        self.write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON; NaN and infinity are refused."""
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")

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
        append_json(self.file(name), value)

    # ---- stages

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, hardware and finished stages."""
        if not self.file("manifest.json").exists():
            return {"stages": {}}
        manifest = self.read_json("manifest.json")
        stages = manifest.setdefault("stages", {}) if isinstance(manifest, dict) else None
        if not isinstance(stages, dict) or not all(map(_is_record, stages.values())):
            raise RunError(f"{self.file('manifest.json')} is damaged: it holds no stages. Remove it to start again.")
        return manifest

    @property
    def own_stages(self) -> tuple[str, ...]:
        """The stages of this run: one that starts from another run's SAEs compares no layers and divides nothing."""
        warm = self.config.train.warm_start.source is not None
        return tuple(stage for stage in STAGES if not warm or stage not in ("distances", "group", "plan"))

    def require_own(self, stage: str) -> None:
        """Raises RunError for a stage that this run does not have."""
        if stage not in self.own_stages:
            raise RunError(
                f"{self.path} has no stage {stage!r}: it starts from the SAEs of {self.config.train.warm_start.source} "
                f"and trains one per layer. It has {', '.join(self.own_stages)}."
            )

    def before(self, stage: str) -> tuple[str, ...]:
        """The stages that a stage is made from: those before it; a plan only counts where it decides something."""
        self.require_own(stage)
        earlier = self.own_stages[: self.own_stages.index(stage)]
        counts = stage == "report" or self.config.plan.chooses
        return tuple(name for name in earlier if name != "plan" or counts)

    def fingerprint(self, stage: str, part: str = "") -> str:
        """What a stage's result depends on, as a hash: its config sections and those of all stages before it.

        Of a part of a stage, named by its file: without the sections that only another part reads.
        """
        values: dict[str, Any] = {"seed": self.config.seed}
        for earlier in (*self.before(stage), stage):
            sections = STAGE_SECTIONS[earlier]
            if earlier == "train" and "distances" not in self.own_stages:
                sections = ("activations", *sections)
            for section in sections:
                if part and section in SECTIONS_OF_A_PART and section != Path(part).stem:
                    continue
                dumped = getattr(self.config, section).model_dump(mode="json")
                values[section] = {k: v for k, v in dumped.items() if k not in _WITHOUT_EFFECT.get(section, ())}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def describe(self, **facts: Any) -> None:
        """Put facts about the run into the manifest: its model, its device."""
        self.write_json("manifest.json", self.manifest | facts)

    def status(self, stage: str, part: str = "", *, beside: str = "") -> str:
        """`done`, `missing` or `stale`: made from another config, from an older result or input, or changed since.

        Of a stage, or of a part of it that is recorded by itself; `beside` is what else the part was made from.
        """
        manifest = self.manifest
        done = manifest.get("parts", {}).get(part) if part else manifest["stages"].get(stage)
        if not done or any(not self.file(name).exists() for name in done["files"]):
            return "missing"
        made_of = (done["fingerprint"], done.get("made_from"), done.get("beside", ""))
        now = (self.fingerprint(stage, part), self._made_from(stage, manifest["stages"]), beside)
        return "done" if made_of == now and not self._changes(done) else "stale"

    def changes(self, stage: str, *, verify: bool = False) -> list[str]:
        """What became of a stage's files and inputs since: sizes, which cost nothing, with `verify` SHA-256 too."""
        return self._changes(self.manifest["stages"].get(stage, {"files": {}}), verify)

    def _changes(self, done: dict[str, Any], verify: bool = False) -> list[str]:
        found = []
        for name, was in done["files"].items():
            path = self.file(name)
            if not path.exists():
                found.append(f"{name} is gone")
            elif path.stat().st_size != was["bytes"]:
                found.append(f"{name} has {path.stat().st_size} bytes where {was['bytes']} were written")
            elif verify and describe(path)["sha256"] != was["sha256"]:
                found.append(f"{name} has another SHA-256 than was written")
        return found + [
            f"{name} is not as it was read" for name, was in done.get("inputs", {}).items() if _new(name, was)
        ]

    def _made_from(self, stage: str, stages: dict[str, Any]) -> dict[str, str]:
        """The earlier stages' results, each as one hash of its files."""
        return {
            earlier: hashlib.sha256(json.dumps(stages[earlier]["files"], sort_keys=True).encode()).hexdigest()[:16]
            for earlier in self.before(stage)
            if earlier in stages
        }

    def stages(self) -> dict[str, dict[str, Any]]:
        """What is done, stale or missing, stage by stage; with seconds and files where it has run."""
        recorded = self.manifest["stages"]
        kept = ("seconds", "files")
        return {
            stage: {"status": self.status(stage)} | {k: v for k, v in recorded.get(stage, {}).items() if k in kept}
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
        faults = [fault for stage in self.manifest["stages"] for fault in self.changes(stage, verify=True)]
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
        manifest = self.manifest
        manifest["environment"] = environment()
        done = manifest.setdefault("parts", {}) if part else manifest["stages"]
        done[part or stage] = {
            "fingerprint": self.fingerprint(stage, part),
            "made_from": self._made_from(stage, manifest["stages"]),
            **({"beside": beside} if beside else {}),
            "seconds": round(seconds, 3),
            "finished": time.time(),
            "files": {name: describe(self.file(name)) for name in files},
            "inputs": {str(path.resolve()): _describe_input(path) for path in inputs},
        }
        self.write_json("manifest.json", manifest)


def _is_record(stage: Any) -> bool:
    """Whether the manifest's entry for a stage has the form that `finish` gives it."""
    if not isinstance(stage, dict) or not isinstance(stage.get("fingerprint"), str):
        return False
    forms = (stage.get("files"), stage.get("inputs", {}))
    return all(isinstance(form, dict) and all(map(_is_description, form.values())) for form in forms) and isinstance(
        stage.get("seconds", 0), int | float
    )


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("bytes")) is int and isinstance(value.get("sha256", ""), str)


def _describe_input(path: Path) -> dict[str, Any]:
    facts = path.stat()
    known = {"bytes": facts.st_size, "modified": facts.st_mtime_ns}
    return known | (describe(path) if facts.st_size <= HASHED_BYTES else {})


def _new(name: str, was: dict[str, Any]) -> bool:
    """Whether an input is another than it was. One that is out of reach counts as the same, a new date alone too."""
    try:
        facts = Path(name).stat()
        if facts.st_size != was["bytes"] or facts.st_mtime_ns == was.get("modified"):
            return facts.st_size != was["bytes"]
        return describe(Path(name))["sha256"] != was["sha256"] if "sha256" in was else True
    except (OSError, ValueError):
        return False


def environment() -> dict[str, Any]:
    """Versions, hardware and commit, as far as they can be told."""
    return {
        "groupsae": _version("groupsae"),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).resolve().parent
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=5
        )
        return found.stdout.strip() or None
    return None
