"""Scales and layer maps of a training: measured once, and kept beside its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from groupsae.activations.stats import ActivationStats, load_stats
from groupsae.partition import Group, group_name
from groupsae.progress import bar
from groupsae.recipes.context import STATS_FILE, RunContext
from groupsae.records import RunDirectory
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.scales import Scales
from groupsae.saes.suite import LAYER_MAPS_FILE, load_layer_maps, save_layer_maps
from groupsae.training.fit import fit_layer_maps, measure_scales

SCALES_IN_TRAINING = "checkpoint-scales.safetensors"
LAYER_MAPS_IN_TRAINING = "checkpoint-layer-maps"


def scales_of(ctx: RunContext, resumed: bool) -> Scales:
    """Each hookpoint's scale and center: those of the checkpoint, or measured anew and kept beside it."""
    run, config = ctx.run, ctx.run.config.train
    if resumed and run.file(SCALES_IN_TRAINING).exists():
        return Scales.load(run.file(SCALES_IN_TRAINING), ctx.hookpoints).to(ctx.source.device)
    stats = _measured_stats(run, ctx.hookpoints).get(config.scale_tokens)
    passes = 0 if stats else 1 + config.center
    with bar("scales", passes * min(config.scale_tokens, ctx.rows.ids_RT.size)) as advance:
        scales = measure_scales(
            ctx.source,
            config.scale_tokens,
            center=config.center,
            seed=ctx.run.config.seed,
            stats=stats,
            progress=advance,
        )
    run.write(SCALES_IN_TRAINING, scales.save)
    return scales


def _measured_stats(run: RunDirectory, hookpoints: tuple[str, ...]) -> dict[int, ActivationStats]:
    """The statistics that the distances stage measured, by number of tokens; none where it did not run."""
    if "distances" not in run.own_stages or run.status("distances") != "done":
        return {}
    return load_stats(run.file(STATS_FILE), hookpoints)


def layer_maps_of(ctx: RunContext, resumed: bool, groups: Sequence[Group], scales: Scales) -> dict[Group, LayerMaps]:
    """What layers have of their own: as the checkpoint's training had it, or fitted anew and written down.

    Biases are of the first SAE setting's width.
    """
    run, per_layer = ctx.run, ctx.run.config.group.layer_maps
    d_sae = ctx.run.config.sae.width(ctx.source.d_model)
    if not per_layer.any:
        return {}
    folders = {group: run.file(f"{LAYER_MAPS_IN_TRAINING}/{group_name(group)}") for group in groups}
    if resumed and all((folder / LAYER_MAPS_FILE).exists() for folder in folders.values()):
        found = {
            group: load_layer_maps(folder, per_layer, ctx.source.d_model, d_sae, len(group))
            for group, folder in folders.items()
        }
        return {group: maps.to(ctx.source.device) for group, maps in found.items()}
    num_tokens = ctx.run.config.train.scale_tokens
    with bar("layer maps", min(num_tokens, ctx.rows.ids_RT.size)) as advance:
        layer_maps = fit_layer_maps(
            ctx.source,
            groups,
            scales,
            per_layer,
            num_tokens,
            d_sae=d_sae,
            seed=ctx.run.config.seed,
            progress=advance,
        )
    for group, maps in layer_maps.items():
        save_layer_maps(maps, folders[group])
    return layer_maps
