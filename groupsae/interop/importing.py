"""Other tools' SAEs as a suite: found in a folder, told apart, put into our form, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor, stack, tensor, zeros

from groupsae.errors import ConfigError, HookpointError, RunError, unknown
from groupsae.hookpoints import natural_key
from groupsae.interop import dictionary_learning_reader, saelens_reader, scopes
from groupsae.interop.foreign import ForeignSAE, Format, Options, Source, own_form
from groupsae.interop.hub_source import is_hub_id, snapshot
from groupsae.interop.model_facts import ModelFacts, hub_name, plain_hookpoint
from groupsae.interop.sparsify_reader import OFFICIAL_READER, SPARSIFY_READER
from groupsae.partition import Partition, group_name
from groupsae.records.types.lineage import Lineage, Origin
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.storage import describe

FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        saelens_reader.READER,
        OFFICIAL_READER,
        SPARSIFY_READER,
        dictionary_learning_reader.READER,
        *scopes.READERS,
    )
}


@dataclass(frozen=True)
class ImportedSAE:
    """One SAE in our form, with the scale of each of its hookpoints, and what is known of where it comes from."""

    hookpoints: tuple[str, ...]
    sae: SparseAutoencoder
    scales: tuple[float, ...]
    found: ForeignSAE
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Found:
    """The SAEs of one format below a folder, by hookpoint, none read yet. `source` is as the person named it."""

    source: str
    folder: Path
    format: str
    model: ModelFacts | None
    sources: dict[tuple[str, ...], Source] = field(repr=False)

    @property
    def partition(self) -> Partition:
        """The groups that SAEs serve."""
        return Partition(tuple(self.sources))

    def __iter__(self) -> Iterator[ImportedSAE]:
        """Each SAE, read when it is its turn, so that only one need be in memory."""
        for hookpoints, source in self.sources.items():
            found = source.read()
            self._require_width(found, source)
            sae, scales = own_form(found)
            sae.lineage = self._lineage(hookpoints, source)
            yield ImportedSAE(hookpoints, sae, scales, found, source.files)

    def _require_width(self, found: ForeignSAE, source: Source) -> None:
        width = len(found.folded.b_dec_D)
        if self.model is not None and width != self.model.d_model:
            raise ConfigError(
                f"{source.path} reads activations of width {width}, but those of model {self.model.name!r} have width "
                f"{self.model.d_model}. Name the model that it was trained on with --model."
            )

    def _lineage(self, hookpoints: tuple[str, ...], source: Source) -> Lineage:
        """No token of ours: the weights are as another tool left them, known by the hash of their file."""
        file = source.path.relative_to(self.folder) if self.folder in source.path.parents else source.path
        origin = Origin(
            hookpoint=source.places[0],
            group=group_name(hookpoints),
            direction="import",
            sha256=describe(source.path)["sha256"],
            run=self.source,
            suite=f"{self.format}: {file.as_posix()}",
        )
        return Lineage(tokens=0, origin=origin)


def import_suite(
    source: str | Path,
    format: str | None = None,
    *,
    model: str | None = None,
    only: Sequence[str] = (),
    hookpoint: str | None = None,
    k: int | None = None,
) -> Suite:
    """The SAEs of another tool in a folder, or under a hub id, as a suite: exactly what they do to raw activations.

    The format is told by the files if it is not named (`FORMATS`). `model` is the hub id or folder of the language
    model, else the one that the files name: with its config at hand, places are checked against it; without it,
    blocks are called `layers.N`. `only` are patterns of paths below the source, such as `*average_l0_71*`; `hookpoint`
    and `k` are for files that do not say them. Raises RunError for damaged files, ConfigError for SAEs that cannot be
    put into our form, with the reason.
    """
    found = find_saes(source, format, model=model, only=only, hookpoint=hookpoint, k=k)
    return suite_of(found, lambda imported: None)


def suite_of(found: Found, on_each: Callable[[ImportedSAE], Any]) -> Suite:
    """All SAEs in one suite; `on_each` is told of every SAE that was read."""
    saes: dict[str, SparseAutoencoder] = {}
    scales: dict[str, float] = {}
    for imported in found:
        on_each(imported)
        saes[group_name(imported.hookpoints)] = imported.sae
        scales |= dict(zip(imported.hookpoints, imported.scales, strict=True))
    width = next(iter(saes.values())).d_model
    return Suite(found.partition, saes, raw_scales(scales, width))


def raw_scales(scales: dict[str, float], d_model: int) -> Scales:
    """Scales without a center: what other tools subtract is in b_dec."""
    hookpoints = tuple(sorted(scales, key=natural_key))
    center_LD: Tensor = stack([zeros(d_model) for _ in hookpoints])
    return Scales(hookpoints, tensor([scales[name] for name in hookpoints]), center_LD)


def find_saes(
    source: str | Path,
    format: str | None = None,
    *,
    model: str | None = None,
    only: Sequence[str] = (),
    hookpoint: str | None = None,
    k: int | None = None,
) -> Found:
    """What `import_suite` would read, by hookpoint. Arguments and errors are those of `import_suite`."""
    if format is not None and format not in FORMATS:
        raise ConfigError(unknown("format", format, FORMATS))
    folder = _folder(source, only)
    name, sources = _told_apart(folder, format, only, Options(hookpoint, k))
    facts = _facts(model, sources)
    return Found(str(source), folder, name, facts, _by_hookpoint(sources, facts, folder))


def _folder(source: str | Path, only: Sequence[str]) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "suite.json").exists():
            raise ConfigError(f"{path} is a suite of groupsae already; use it as a run, or with Suite.load.")
        return path
    if path.exists():
        raise RunError(f"{path} is a file; name the folder that it lies in.")
    if is_hub_id(str(source)):
        return snapshot(str(source), only)
    raise RunError(f"There is no folder {path}. Give a folder, or a hub id such as user/name or user/name/folder.")


def _told_apart(folder: Path, format: str | None, only: Sequence[str], options: Options) -> tuple[str, list[Source]]:
    """The format and its SAEs. Raises RunError, saying what was looked for, if there is none, or more than one."""
    found = {}
    for name in [format] if format else FORMATS:
        sources = _selected(FORMATS[name].find(folder, options), folder, only)
        if sources:
            found[name] = sources
    if len(found) > 1:
        raise RunError(f"{folder} holds SAEs of several formats ({', '.join(found)}); name one with --format.")
    if not found:
        looked = "; ".join(f"{one.name}: {one.looks_for}" for one in FORMATS.values() if format in (None, one.name))
        there = sorted(path.name for path in folder.iterdir())[:8]
        within = f" whose path fits {', '.join(only)}" if only else ""
        raise RunError(
            f"{folder} holds no SAEs{within} of a known format. Looked for {looked}. "
            f"Found {', '.join(there) or 'nothing'}."
        )
    return next(iter(found.items()))


def _selected(sources: list[Source], folder: Path, only: Sequence[str]) -> list[Source]:
    if not only:
        return sources
    return [
        source
        for source in sources
        if any(fnmatch(source.path.relative_to(folder).as_posix(), f"*{pattern.strip('*')}*") for pattern in only)
    ]


def _facts(model: str | None, sources: list[Source]) -> ModelFacts | None:
    """What is known of the model: the one that is named must be there, the one that the files name may be."""
    if model is not None:
        return ModelFacts.load(model)
    return ModelFacts.find(hub_name(sources[0].model)) if sources[0].model else None


def _by_hookpoint(sources: list[Source], facts: ModelFacts | None, folder: Path) -> dict[tuple[str, ...], Source]:
    served: dict[str, Source] = {}
    found = {}
    for source in sources:
        hookpoints = tuple(_hookpoint(place, facts, source) for place in source.places)
        for hookpoint in hookpoints:
            if hookpoint in served:
                first, second = (one.path.relative_to(folder).parent for one in (served[hookpoint], source))
                raise RunError(
                    f"{folder} holds more than one SAE of {hookpoint}, such as {first} and {second}. Name the folder "
                    "of those that you want, or parts of their paths with --only."
                )
            served[hookpoint] = source
        found[tuple(sorted(hookpoints, key=natural_key))] = source
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0][0])))


def _hookpoint(place: str, facts: ModelFacts | None, source: Source) -> str:
    try:
        return facts.hookpoint(place) if facts else plain_hookpoint(place)
    except HookpointError as error:
        raise HookpointError(f"{source.path}: {error} Name the place yourself with --hookpoint.") from None
