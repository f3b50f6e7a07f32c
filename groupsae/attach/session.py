"""A suite attached to a language model: reads latents of all layers while the model runs, and changes them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from groupsae.attach.edits import Edit, LayerEdits
from groupsae.attach.positions import PassInputs, Skip
from groupsae.attach.recording import LayerLatents, Recording
from groupsae.attach.sites import Site, find_sites
from groupsae.attach.taps import after, before
from groupsae.errors import ConfigError, HookpointError, ModelError, PartitionError, meant, unknown
from groupsae.model_structure import first_tensor, with_first_tensor
from groupsae.saes.suite import Suite

_ATTACHED: WeakSet[nn.Module] = WeakSet()
"""The models that a suite is attached to now."""


class Attached:
    """Latents of a suite's layers while a model runs; made by `Suite.attach`, which says what the options mean.

        with suite.attach(model) as latents:
            model(**batch)
        latents["layers.3"].dense()                                   # (B, T, S)

        with suite.attach(model) as latents:
            latents.steer(group="layers.3-5", latent=17, strength=0.5)
            model.generate(**prompt)

    Latents are those of the last texts: of one forward pass, or of all passes of a `generate` with its cache. They
    are read from what the model computes at a layer under the edits below it, before the layer's own edits.
    Edits stay until `reset`. They are not differentiated: gradients pass as if the difference was a constant.
    """

    def __init__(
        self,
        suite: Suite,
        model: nn.Module,
        *,
        layers: Iterable[str] | None = None,
        record: bool = True,
        keep_error: bool = True,
        skip_first: int = 1,
        skip_ids: Sequence[int] = (),
    ) -> None:
        self.suite, self.record, self.keep_error = suite, record, keep_error
        self._body, self._sites = find_sites(suite, model, layers)
        self._skip = Skip(_count(skip_first), tuple(skip_ids))
        self._edits = dict.fromkeys(self._sites, LayerEdits({}))
        self._recording, self._inputs = Recording(), PassInputs(None, None, 0)
        self._entered = contextlib.ExitStack()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are read and can be changed."""
        return tuple(self._sites)

    # ---- reading

    def __getitem__(self, layer: str) -> LayerLatents:
        """A layer's latents of the last texts.

        Raises HookpointError for a layer that is not attached; ModelError if the model has not run, or with
        `record=False`.
        """
        self._require_layer(layer)
        if not self.record:
            raise ModelError("Latents are not kept with record=False; attach without it to read them.")
        return self._recording.of(layer)

    def through_layers(self, group: str, latent: int) -> Tensor:
        """The value of one latent of a group at each of the group's layers, (M, B, T).

        Raises PartitionError for an unknown group; ConfigError for a latent that it does not have.
        """
        layers = self._layers_of(group)
        self._require_latents(layers, [latent])
        return torch.stack([self[layer].of(latent) for layer in layers])

    # ---- edits

    def steer(
        self,
        layer: str | None = None,
        latent: int | Sequence[int] | None = None,
        strength: float | None = None,
        *,
        group: str | None = None,
    ) -> None:
        """Add `strength` to a latent at every position that is not left out, whether it is active or not.

        With `group` in place of `layer` it is added at all layers of the group. One unit of a latent is as long as
        the average activation of the layer that its SAE was trained on (docs/steering.md).
        Raises HookpointError for an unknown layer, PartitionError for an unknown group, ConfigError for a latent that
        the SAE does not have.
        """
        self._edit(layer, group, latent, Edit(1.0, _number("strength", strength)))

    def ablate(
        self, layer: str | None = None, latent: int | Sequence[int] | None = None, *, group: str | None = None
    ) -> None:
        """Set a latent to zero wherever it is active. Layers, groups and errors are as in `steer`."""
        self._edit(layer, group, latent, Edit(0.0, 0.0))

    def clamp(
        self,
        layer: str | None = None,
        latent: int | Sequence[int] | None = None,
        value: float | None = None,
        *,
        group: str | None = None,
    ) -> None:
        """Set a latent to `value` at every position that is not left out. The rest is as in `steer`."""
        self._edit(layer, group, latent, Edit(0.0, _number("value", value)))

    def reset(self) -> None:
        """Take all edits back."""
        self._edits = dict.fromkeys(self._sites, LayerEdits({}))

    def _edit(self, layer: str | None, group: str | None, latent: int | Sequence[int] | None, edit: Edit) -> None:
        if (layer is None) == (group is None):
            raise ConfigError("An edit needs either a layer or a group=, and not both.")
        if layer is not None:
            self._require_layer(layer)
        layers = self._layers_of(group) if group is not None else (layer,)
        latents = [latent] if not isinstance(latent, Sequence) else list(latent)
        self._require_latents(layers, latents)
        self._edits |= {name: self._edits[name].then(latents, edit) for name in layers}

    def _layers_of(self, group: str) -> tuple[str, ...]:
        partition = self.suite.partition
        if group in partition.names:
            layers = partition.groups[partition.names.index(group)]
            for layer in layers:
                self._require_layer(layer)
            return layers
        if group in partition.hookpoints:
            name = partition.names[partition.index_of(group)]
            raise PartitionError(f"{group!r} is a layer of group {name!r}; give group={name!r}, or the layer alone.")
        raise PartitionError(unknown("group", group, partition.names))

    def _require_layer(self, layer: str) -> None:
        if layer in self._sites:
            return
        if layer in self.suite.partition.hookpoints:
            raise HookpointError(
                f"{layer!r} is not attached; attached are {', '.join(self._sites)}. Name it in layers=."
            )
        near = meant(str(layer), self._sites)
        raise HookpointError(f"There is no layer {layer!r} in the suite.{near} It has {', '.join(self._sites)}.")

    def _require_latents(self, layers: Iterable[str], latents: Sequence[Any]) -> None:
        d_sae = self._sites[next(iter(layers))].bound.sae.d_sae
        for latent in latents:
            if type(latent) is not int or not 0 <= latent < d_sae:
                raise ConfigError(
                    f"There is no latent {latent!r}; the SAE of {', '.join(layers)} has the latents 0 to {d_sae - 1}."
                )
        if not latents:
            raise ConfigError("No latent is named; give a number, or a list of numbers.")

    # ---- the model

    def __enter__(self) -> Self:
        """Attach to the model. Raises ModelError if a suite is attached to it already."""
        if self._body in _ATTACHED:
            raise ModelError(
                f"A suite is attached to this {type(self._body).__name__} already. Leave its `with` block first."
            )
        with contextlib.ExitStack() as stack:
            stack.enter_context(_registered(self._body))
            stack.enter_context(before(self._body, self._start_pass))
            for site in self._sites.values():
                stack.enter_context(after(site.module, lambda output, site=site: self._visit(site, output)))
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.close()

    def _start_pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = PassInputs.of(type(self._body).forward, args, kwargs, self._recording.positions)
        self._recording.start_pass(continues=self._inputs.continues)

    def _visit(self, site: Site, output: Any) -> Any:
        x_BTD = first_tensor(output)
        site.require_form(x_BTD)
        kept_BT = self._inputs.kept(self._skip, *x_BTD.shape[:2], x_BTD.device)
        with torch.no_grad(), torch.autocast(x_BTD.device.type, enabled=False):
            difference_BTD = self._read(site, x_BTD, kept_BT)
        if difference_BTD is None:
            return output
        return with_first_tensor(output, (x_BTD + difference_BTD).to(x_BTD.dtype))

    def _read(self, site: Site, x_BTD: Tensor, kept_BT: Tensor) -> Tensor | None:
        """Keep the latents, and give what is to be added to x; None for nothing."""
        bound, edits = site.on(x_BTD.device), self._edits[site.layer]
        latents = None
        if self.record or edits.need_values or not self.keep_error:
            latents = bound.encode_sparse(x_BTD.reshape(-1, x_BTD.shape[-1]))
            if self.record:
                self._recording.add(site.layer, LayerLatents.of_pass(latents, kept_BT, bound.sae.d_sae))
        difference_ND = None
        if edits.by_latent:
            difference_ND = edits.difference(bound, latents if edits.need_values else None)
        if not self.keep_error:
            error_ND = bound.decode_sparse(latents) - x_BTD.reshape(-1, x_BTD.shape[-1])
            difference_ND = error_ND if difference_ND is None else difference_ND + error_ND
        if difference_ND is None:
            return None
        return torch.where(kept_BT.reshape(-1, 1), difference_ND, 0.0).view(x_BTD.shape)


@contextlib.contextmanager
def _registered(base: nn.Module) -> Iterator[None]:
    _ATTACHED.add(base)
    try:
        yield
    finally:
        _ATTACHED.discard(base)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} = {value!r} is no finite number.")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ConfigError(f"skip_first = {value!r} is no number of positions; give 0 or more.")
    return value
