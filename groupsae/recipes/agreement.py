"""What every rank of a run must see alike: the config, the files of finished stages, the model, library versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groupsae.config import flat
from groupsae.records import RunDirectory
from groupsae.records.environment import environment
from groupsae.storage import describe, digest

AGREE = (
    "All ranks need the same config, the same run directory (a shared file system), the same model and the same "
    "versions; docs/many-machines.md says what must be shared."
)
LIBRARIES = ("groupsae", "torch", "transformers", "python")


def seen_of(run: RunDirectory) -> dict[str, Any]:
    """What this rank sees of a run, by name."""
    found = {key: value for key, value in environment().items() if key in LIBRARIES}
    config = {key: value for key, value in flat(run.config).items() if key != "model.device"}
    stages = {f"files of stage {name}": record.files_digest for name, record in run.manifest.stages.items()}
    return found | {"config": digest(config), "run directory": str(run.path.resolve().name)} | stages | _model(run)


def _model(run: RunDirectory) -> dict[str, Any]:
    """A model in a directory: its config's hash and the sizes of its files; their bytes would take long to read."""
    folder = Path(run.config.model.name)
    if not folder.is_dir():
        return {}
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    config = folder / "config.json"
    return {"model files": digest([sizes, describe(config) if config.is_file() else None])}
