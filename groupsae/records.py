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
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from groupsae.config import RunConfig, differing_keys, dump_config, load_config
from groupsae.errors import RunError, StorageError

STAGES = ("tokens", "distances", "group", "plan", "train", "eval", "report")

STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "tokens": ("model", "text"),
    "distances": ("activations", "distances"),
    "group": ("group",),
    "plan": ("sae", "train", "plan"),
    "train": ("sae", "train"),
    "eval": ("eval",),
    "report": (),
}
"""The config sections that each stage reads first; it depends on those of all stages before it as well."""

_WITHOUT_EFFECT = {"model": {"device"}, "train": {"log_every_tokens", "save_every_tokens"}}


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
                    "differs with --overwrite."
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
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
        """The path of a file of this run."""
        return self.path / name

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
        except (OSError, ValueError) as error:
            raise RunError(f"{self.file(name)} is damaged: {error}. Make it again with --overwrite.") from None

    def append_json(self, name: str, value: Any) -> None:
        """Append one line of JSON."""
        with storage_errors(self.file(name)), self.file(name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, allow_nan=False) + "\n")

    # ---- stages

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, hardware and finished stages."""
        if not self.file("manifest.json").exists():
            return {"stages": {}}
        manifest = self.read_json("manifest.json")
        if not isinstance(manifest, dict) or not isinstance(manifest.setdefault("stages", {}), dict):
            raise RunError(f"{self.file('manifest.json')} is damaged: it holds no stages. Remove it to start again.")
        return manifest

    def before(self, stage: str) -> tuple[str, ...]:
        """The stages that a stage is made from: those before it; a plan only counts where it decides something."""
        earlier = STAGES[: STAGES.index(stage)]
        counts = stage == "report" or self.config.plan.chooses
        return tuple(name for name in earlier if name != "plan" or counts)

    def fingerprint(self, stage: str) -> str:
        """What a stage's result depends on, as a hash: its config sections and those of all stages before it."""
        values: dict[str, Any] = {"seed": self.config.seed}
        for earlier in (*self.before(stage), stage):
            for section in STAGE_SECTIONS[earlier]:
                dumped = getattr(self.config, section).model_dump(mode="json")
                values[section] = {k: v for k, v in dumped.items() if k not in _WITHOUT_EFFECT.get(section, ())}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def describe(self, **facts: Any) -> None:
        """Put facts about the run into the manifest: its model, its device."""
        self.write_json("manifest.json", self.manifest | facts)

    def status(self, stage: str, part: str = "", *, beside: str = "") -> str:
        """`done`, `stale` (made from another config, or from an earlier stage's older result) or `missing`.

        Of a stage, or of a part of it that is recorded by itself; `beside` is what else the part was made from.
        """
        manifest = self.manifest
        done = manifest.get("parts", {}).get(part) if part else manifest["stages"].get(stage)
        if not done or any(not self.file(name).exists() for name in done["files"]):
            return "missing"
        made_of = (done["fingerprint"], done.get("made_from"), done.get("beside", ""))
        now = (self.fingerprint(stage), self._made_from(stage, manifest["stages"]), beside)
        return "done" if made_of == now else "stale"

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
            for stage in STAGES
        }

    def require(self, *stages: str) -> None:
        """Raises RunError naming the first of these stages that is not done, and the command that does it."""
        for stage in stages:
            status = self.status(stage)
            if status != "done":
                why = "has not run" if status == "missing" else "is out of date"
                raise RunError(f"Stage {stage!r} {why} in {self.path}. Run `groupsae {stage} {self.path}` first.")

    def finish(self, stage: str, seconds: float, files: list[str], *, part: str = "", beside: str = "") -> None:
        """Record that a stage, or a part of it, is done, what it wrote and how long it took."""
        manifest = self.manifest
        manifest["environment"] = environment()
        done = manifest.setdefault("parts", {}) if part else manifest["stages"]
        done[part or stage] = {
            "fingerprint": self.fingerprint(stage),
            "made_from": self._made_from(stage, manifest["stages"]),
            **({"beside": beside} if beside else {}),
            "seconds": round(seconds, 3),
            "finished": time.time(),
            "files": {name: _describe(self.file(name)) for name in files},
        }
        self.write_json("manifest.json", manifest)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, sync it to disk and rename it into place.

    Raises StorageError, with `path` as it was before, if the disk refuses.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        scratch = Path(name)
        try:
            write(scratch)
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.chmod(0o644)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals into StorageError with the path and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise StorageError(
            f"Cannot write {path}: {getattr(error, 'strerror', None) or error}. Free space or permissions are needed; "
            "what was there before is intact."
        ) from error


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


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
