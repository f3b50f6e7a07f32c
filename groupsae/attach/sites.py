"""The modules of a model whose outputs a suite's SAEs belong to."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.errors import HookpointError, ModelError
from groupsae.hookpoints import natural_key
from groupsae.model_structure import base_model, find_blocks, residual_stream, text_config
from groupsae.saes.suite import BoundSAE, Suite


@dataclass
class Site:
    """A layer of a suite in a model: its module, and its SAE on each device that it was needed on."""

    layer: str
    module: nn.Module
    bound: BoundSAE
    _copies: dict[torch.device, BoundSAE] = field(default_factory=dict)

    def on(self, device: torch.device) -> BoundSAE:
        """The SAE on this device; copied there once, where it lies elsewhere."""
        if self.bound.sae.W_enc.device == device:
            return self.bound
        if device not in self._copies:
            sae, maps = (
                copy.deepcopy(part).to(device) if part is not None else None
                for part in (self.bound.sae, self.bound.maps)
            )
            self._copies[device] = replace(self.bound, sae=sae, maps=maps, center_D=self.bound.center_D.to(device))
        return self._copies[device]

    def require_form(self, x_BTD: Any) -> None:
        """Raises ModelError for a module whose output is not a tensor (B, T, D) of the SAE's width."""
        if not isinstance(x_BTD, Tensor) or x_BTD.ndim != 3:
            found = tuple(x_BTD.shape) if isinstance(x_BTD, Tensor) else type(x_BTD).__name__
            raise ModelError(f"{self.layer} gives {found}; a tensor (batch, positions, width) is needed.")
        _require_width(self.layer, x_BTD.shape[-1], self.bound)


def find_sites(suite: Suite, model: nn.Module, layers: Iterable[str] | None) -> tuple[nn.Module, dict[str, Site]]:
    """The module that runs all blocks, and the sites of a suite's layers, or of some of them.

    Raises HookpointError for layers that the suite or the model does not have; ModelError for what is no model, or
    one of another width.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"A suite is attached to a loaded model, a torch.nn.Module; got {type(model).__name__}.")
    model = getattr(model, "_orig_mod", model)  # as torch.compile wraps it
    base = base_model(model)
    wanted = _wanted(suite, layers)
    modules = dict(base.named_modules())
    missing = [layer for layer in wanted if layer not in modules]
    if missing:
        raise HookpointError(
            f"{type(model).__name__} has no {', '.join(missing)}. The suite was trained on another model. {_has(model)}"
        )
    sites = {layer: Site(layer, modules[layer], suite[layer]) for layer in wanted}
    _require_widths(model, sites)
    return _owner_of_blocks(model), sites


def _wanted(suite: Suite, layers: Iterable[str] | None) -> tuple[str, ...]:
    known = suite.partition.hookpoints
    if layers is None:
        return known
    wanted = [layers] if isinstance(layers, str) else list(layers)
    strange = [str(layer) for layer in wanted if layer not in known]
    if strange or not wanted:
        raise HookpointError(f"layers = {wanted}: the suite has the layers {', '.join(known)}.")
    return tuple(sorted(set(wanted), key=natural_key))


def _owner_of_blocks(model: nn.Module) -> nn.Module:
    """The module that holds the list of blocks; some models call it without their base model."""
    try:
        path, _ = find_blocks(model)
    except ModelError:
        return base_model(model)
    return base_model(model).get_submodule(path.rpartition(".")[0])


def _has(model: nn.Module) -> str:
    try:
        blocks = residual_stream(model)
    except ModelError:
        return "It has no list of blocks."
    return f"Its blocks are {blocks[0]} to {blocks[-1]}."


def _require_widths(model: nn.Module, sites: dict[str, Site]) -> None:
    """Raises ModelError for blocks whose width the config says, and is not that of their SAE."""
    width = getattr(text_config(model), "hidden_size", None)
    try:
        blocks = residual_stream(model)
    except ModelError:
        return
    for layer, site in sites.items():
        if layer in blocks and isinstance(width, int):
            _require_width(layer, width, site.bound)


def _require_width(layer: str, width: int, bound: BoundSAE) -> None:
    if width != bound.sae.d_model:
        raise ModelError(
            f"The SAE of {layer} reads activations of width {bound.sae.d_model}; the model's are {width} wide there. "
            "Attach the suite to the model that it was trained on."
        )
