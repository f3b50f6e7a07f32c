"""The passes over the model in which a sweep is trained: which variants train in each, and where its files lie.

Where one pass is enough, which is the usual case, its checkpoints lie in the run directory itself. Of several, pass 2
has `passes/2/`, with its checkpoints and, once it is done, its own `train.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groupsae.config import Variant
from groupsae.partition import Partition
from groupsae.planning.sweep import fewest_passes
from groupsae.progress import say
from groupsae.recipes.context import RunContext
from groupsae.recipes.plan import free_memory_of, pricing_of
from groupsae.recipes.suites import distinct_groups
from groupsae.records import RunDirectory
from groupsae.records.types.training import PassesRecord, PassRecord, TrainedPass, TrainRecord
from groupsae.training.checkpoint import Checkpoints


@dataclass(frozen=True)
class Pass:
    """The variants that train in one pass, and the folder of its checkpoints below the run's, empty for the run's."""

    variants: tuple[Variant, ...]
    folder: str = ""
    label: str = ""
    """What follows the title of its bar: ` 2/3`."""

    @property
    def record_path(self) -> str:
        """Where it is written down that this pass is done."""
        return f"{self.folder}/train.json"


def passes_of(ctx: RunContext, kinds: Mapping[str, Partition], key: str) -> tuple[Pass, ...]:
    """The passes of a training: as a training of the same key began it, or as few as memory allows now."""
    variants = ctx.run.config.variants
    if len(variants) == 1:
        return (Pass(variants),)
    before = PassesRecord.find(ctx.run)
    again = ctx.ranks.first and ctx.overwrite and ctx.run.status("train") == "done"
    if before is not None and before.key == key and not again:
        places = before.passes
    else:
        by_setting = {sae: pricing_of(ctx, sae) for sae in ctx.run.config.saes}
        pricings = [by_setting[variant.sae] for variant in variants]
        places = fewest_passes(pricings, distinct_groups(kinds), free_memory_of(ctx))
        PassesRecord(key=key, passes=places).write(ctx.run)
    if len(places) == 1:
        return (Pass(variants),)
    say(f"train: memory does not hold all {len(variants)} variants of the sweep at once: {len(places)} passes")
    return tuple(
        Pass(tuple(variants[one] for one in members), f"passes/{number}", f" {number}/{len(places)}")
        for number, members in enumerate(places, 1)
    )


def done_before(run: RunDirectory, one: Pass, key: str, names: Iterable[str]) -> PassRecord | None:
    """What a pass of several took, if it is done and its SAEs are all there."""
    record = PassRecord.find(run, one.record_path) if one.folder else None
    whole = record is not None and record.key == key
    files = (run.file(f"groups/{name}/{file}") for name in names for file in ("cfg.json", "sae.safetensors"))
    return record if whole and all(file.exists() for file in files) else None


def merged(records: Sequence[TrainRecord]) -> TrainRecord:
    """What a training of several passes took: sums of seconds, the SAEs of all."""
    first, *others = (TrainRecord(**{key: getattr(each, key) for key in TrainRecord.model_fields}) for each in records)
    if not others:
        return first
    every = (first, *others)
    return first.model_copy(
        update={
            "tokens_saved": sum(each.tokens_saved for each in every),
            "seconds": {part: sum(each.seconds[part] for each in every) for part in first.seconds},
            "saes": {name: sae for each in every for name, sae in each.saes.items()},
            "variants": {name: variant for each in every for name, variant in each.variants.items()},
            "snapshots": _snapshots(every),
            "masked_positions": max(each.masked_positions for each in every),
            "passes": tuple(TrainedPass(seconds=each.seconds, saes=tuple(each.saes)) for each in every),
        }
    )


def _snapshots(records: Sequence[TrainRecord]) -> dict[int, tuple[str, ...]]:
    tokens = sorted({tokens for each in records for tokens in each.snapshots})
    return {at: tuple(file for each in records for file in each.snapshots.get(at, ())) for at in tokens}


def checkpoint_folders(path: Path) -> tuple[Path, ...]:
    """Every folder of a run that checkpoints may lie in."""
    return (path, *sorted(path.glob("passes/*")))


def unfinished(path: Path) -> tuple[int, dict[str, object]] | None:
    """Tokens and settings of the last checkpoint of a run, in whatever folder."""
    found = (Checkpoints(folder, key="").others() for folder in reversed(checkpoint_folders(path)))
    return next((each for each in found if each is not None), None)
