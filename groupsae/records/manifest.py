"""Whether the files that a stage wrote, and the inputs that it read, are still as they were."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from groupsae.records.types.manifest import FileFacts, InputFacts, StageRecord
from groupsae.storage import describe, within

HASHED_BYTES = 2**30
"""Inputs beyond this size are known by size and date alone."""


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, FileFacts]:
    """Size and SHA-256 of files below a folder, by name."""
    return {name: FileFacts(**describe(within(folder, name))) for name in names}


def describe_inputs(paths: Iterable[Path]) -> dict[str, InputFacts]:
    """Size and date of files from anywhere, by absolute path; the SHA-256 of those that are not too large as well."""
    return {str(path.resolve()): _describe_input(path) for path in paths}


def changes(folder: Path, record: StageRecord, *, verify: bool = False) -> list[str]:
    """What became of a stage's files and inputs since: sizes, which cost nothing, with `verify` SHA-256 too."""
    changed = []
    for name, was in record.files.items():
        path = within(folder, name)
        if not path.exists():
            changed.append(f"{name} is gone")
        elif path.stat().st_size != was.bytes:
            changed.append(f"{name} has {path.stat().st_size} bytes where {was.bytes} were written")
        elif verify and describe(path)["sha256"] != was.sha256:
            changed.append(f"{name} has another SHA-256 than was written")
    return changed + [f"{name} is not as it was read" for name, was in record.inputs.items() if _differs(name, was)]


def _describe_input(path: Path) -> InputFacts:
    facts = path.stat()
    sha256 = describe(path)["sha256"] if facts.st_size <= HASHED_BYTES else None
    return InputFacts(bytes=facts.st_size, modified=facts.st_mtime_ns, sha256=sha256)


def _differs(name: str, was: InputFacts) -> bool:
    """Whether an input is another than it was. One that is out of reach counts as the same, a new date alone too."""
    try:
        facts = Path(name).stat()
        if facts.st_size != was.bytes or facts.st_mtime_ns == was.modified:
            return facts.st_size != was.bytes
        return describe(Path(name))["sha256"] != was.sha256 if was.sha256 else True
    except (OSError, ValueError):
        return False
