"""How another tool lays an SAE out on disk, and a suite written so: one folder per hookpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from groupsae.errors import ConfigError, RunError
from groupsae.interop.model_facts import ModelFacts
from groupsae.records.environment import version_of
from groupsae.saes.activation import Activation
from groupsae.saes.folded import Folded
from groupsae.saes.suite import BoundSAE, Suite
from groupsae.saes.weights import save_tensors
from groupsae.storage import storage_errors, within, write_atomically, write_json

INDEX = "export.json"


@dataclass(frozen=True)
class Facts:
    """What is known of the model that a suite reads, and of the rows that it was trained on.

    `about` is the model's config, None where it cannot be had; `skip_first` the positions at the start of each row
    that were left out.
    """

    model: str | None = None
    context_length: int | None = None
    prepend_bos: bool = False
    exclude_special_tokens: bool = False
    skip_first: int = 0
    about: ModelFacts | None = None


@dataclass(frozen=True)
class Exported:
    """One hookpoint's SAE on its way out, with what is told of it: `provenance` is JSON."""

    hookpoint: str
    folded: Folded
    facts: Facts
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """The files of another tool: JSON, such as `cfg.json`, and one file of weights.

    `holds` names the kinds of latents that it can express. `documents` gives the JSON by file name, `tensors` the
    weights, in float64, which are written in float32, by `save`
    or else as safetensors.
    """

    name: str
    weights_file: str
    holds: dict[type[Activation], str]
    documents: Callable[[Exported], dict[str, dict[str, Any]]]
    tensors: Callable[[Folded, dict[str, Any]], dict[str, Tensor]]
    save: Callable[[dict[str, Tensor], Path], None] | None = None


def write_suite(
    suite: Suite, folder: Path, layout: Layout, facts: Facts, *, overwrite: bool = False, trained: str | None = None
) -> dict[str, Any]:
    """Write a suite, a folder per hookpoint and `export.json`, whole or not at all; what `export.json` says.

    `trained` is a hash of the training that the suite comes from, if it is known.

    Raises ConfigError for SAEs that the layout cannot hold; RunError if the folder holds anything already, with
    `overwrite` if that is no earlier export.
    """
    for hookpoint in suite.partition.hookpoints:
        _require_held(suite[hookpoint], layout)
    _require_free(folder, overwrite)
    with _instead_of(folder) as scratch:
        index = {"layout": layout.name, "groupsae": version_of("groupsae"), "hookpoints": {}}
        index |= {"trained": trained} if trained else {}
        for hookpoint in suite.partition.hookpoints:
            exported = _exported(suite, hookpoint, facts)
            index["hookpoints"][hookpoint] = {"group": exported.provenance["group"]}
            _write(exported, within(scratch, hookpoint), layout)
        write_json(scratch / INDEX, index)
    return index


def _exported(suite: Suite, hookpoint: str, facts: Facts) -> Exported:
    bound = suite[hookpoint]
    provenance = {
        "hookpoint": hookpoint,
        "group": list(suite.partition.group_of(hookpoint)),
        "sae": bound.sae.config.model_dump(mode="json"),
        "groupsae": version_of("groupsae"),
    }
    if bound.sae.lineage is not None:
        provenance["lineage"] = bound.sae.lineage.model_dump(mode="json")
    return Exported(hookpoint, Folded.of(bound), facts, provenance)


def _write(exported: Exported, folder: Path, layout: Layout) -> None:
    tensors = layout.tensors(exported.folded, exported.provenance)
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_atomically(folder / layout.weights_file, lambda path: (layout.save or save_tensors)(weights, path))
    for name, document in layout.documents(exported).items():
        write_json(folder / name, document)


def _require_held(bound: BoundSAE, layout: Layout) -> None:
    if type(bound.sae.activation()) not in layout.holds:
        raise ConfigError(
            f"{layout.name} cannot hold the SAE of {bound.hookpoint}, which is {bound.sae.config.architecture!r}; it "
            f"holds {', '.join(layout.holds.values())}. Export it to another tool, or train another sae.architecture."
        )


def _require_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not _is_export(folder):
        raise RunError(f"{folder} exists and is no export (it has no {INDEX} of ours). Give another place with --out.")
    if not overwrite:
        raise RunError(
            f"{folder} holds an export already. Replace it with --overwrite, or give another place with --out."
        )


def _is_export(folder: Path) -> bool:
    try:
        return "hookpoints" in json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@contextmanager
def _instead_of(folder: Path) -> Iterator[Path]:
    """An empty folder beside this one, which takes its place once the block has ended well."""
    scratch = folder.with_name(f".{folder.name}.exporting")
    with storage_errors(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    try:
        yield scratch
        with storage_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
