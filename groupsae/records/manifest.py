"""What the manifest holds of a stage: the files it wrote and the inputs it read, and whether they are still so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from groupsae.storage import describe, within

HASHED_BYTES = 2**30
"""Inputs beyond this size are known by size and date alone."""


def is_manifest(value: Any) -> bool:
    """Whether a value has the form of a manifest: records of stages and of parts of them, by name."""
    return isinstance(value, dict) and all(_all_are(_is_record, value.get(kind, {})) for kind in ("stages", "parts"))


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Size and SHA-256 of files below a folder, by name."""
    return {name: describe(within(folder, name)) for name in names}


def describe_inputs(paths: Iterable[Path]) -> dict[str, Any]:
    """Size and date of files from anywhere, by absolute path; the SHA-256 of those that are not too large as well."""
    return {str(path.resolve()): _describe_input(path) for path in paths}


def changes(folder: Path, record: dict[str, Any], *, verify: bool = False) -> list[str]:
    """What became of a stage's files and inputs since: sizes, which cost nothing, with `verify` SHA-256 too."""
    found = []
    for name, was in record["files"].items():
        path = within(folder, name)
        if not path.exists():
            found.append(f"{name} is gone")
        elif path.stat().st_size != was["bytes"]:
            found.append(f"{name} has {path.stat().st_size} bytes where {was['bytes']} were written")
        elif verify and describe(path)["sha256"] != was["sha256"]:
            found.append(f"{name} has another SHA-256 than was written")
    return found + [
        f"{name} is not as it was read" for name, was in record.get("inputs", {}).items() if _new(name, was)
    ]


def _all_are(what: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, dict) and all(map(what, value.values()))


def _is_record(value: Any) -> bool:
    """Whether a value has the form that `RunDirectory.finish` gives the entry of a stage or part."""
    if not isinstance(value, dict) or not isinstance(value.get("fingerprint"), str):
        return False
    described = all(_all_are(_is_description, form) for form in (value.get("files"), value.get("inputs", {})))
    return described and isinstance(value.get("seconds", 0), int | float)


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
