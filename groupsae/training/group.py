"""One group in training: its SAE, optimizer, dead latents and meters, and what a step does to them."""

from __future__ import annotations

import torch
from torch import Tensor

from groupsae.activations.scale import Scales
from groupsae.activations.source import hash_seed
from groupsae.config import TopKConfig, TrainConfig
from groupsae.errors import NumericalError
from groupsae.partition import Group, group_name
from groupsae.saes.base import Losses, SparseAutoencoder
from groupsae.saes.lineage import Lineage
from groupsae.saes.registry import build_sae
from groupsae.training.dead import DeadLatents
from groupsae.training.optim import adam, clip, decay, learning_rate
from groupsae.training.schedule import Schedule
from groupsae.training.warm_start import Start, warm_rate

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class GroupInTraining:
    """The state of one group's training. All of it is in `state()`; every random choice is a
    function of (seed, group, step), so that a group trains alike in whatever company.

    `name` is what it goes by, its group's name unless the group is trained more than once; `start`
    the weights it begins with, which take the warm start's learning rate and no warm-up of sparsity.
    """

    def __init__(
        self,
        group: Group,
        scales: Scales,
        d_model: int,
        sae: TopKConfig,
        train: TrainConfig,
        seed: int,
        *,
        name: str | None = None,
        start: Start | None = None,
    ) -> None:
        device = scales.scale_L.device
        self.group, self.name, self.scales, self.train, self.seed = (
            group,
            name or group_name(group),
            scales,
            train,
            seed,
        )
        self.start = start
        self.layers = torch.tensor([scales.hookpoints.index(name) for name in group], device=device)
        self.sae = build_sae(d_model, sae)
        if start is None:
            self.sae.initialise(hash_seed(seed, f"weights/{group_name(group)}"))
            self.rate = train.learning_rate or learning_rate(self.sae.d_sae)
        else:
            self.sae.load_state_dict(start.sae.state_dict())
            self.rate = warm_rate(train, self.sae.d_sae)
        self.sae.to(device)
        self.schedule = Schedule(train, device)
        self.optimizer = adam(self.sae.parameters(), self.rate)
        self.dead = DeadLatents(self.sae.d_sae, sae.dead_after_tokens, device)
        self.meter = Meter(device)

    def draw_layers(self, count: int, step: int) -> Tensor:
        """For each of `count` tokens one layer of the group, uniformly and independently: (N,) indices into L."""
        random = torch.Generator().manual_seed(hash_seed(self.seed, f"layers/{group_name(self.group)}", step))
        return self.layers[torch.randint(len(self.group), (count,), generator=random).to(self.layers.device)]

    @property
    def finished(self) -> bool:
        """Whether it takes no more steps."""
        return self.schedule.finished

    def trained(self) -> SparseAutoencoder:
        """The SAE, frozen, with its lineage."""
        self.sae.lineage = Lineage(self.schedule.seen, self.start.origin if self.start else None)
        return self.sae.requires_grad_(False)

    def step(self, x_LND: Tensor, step: int, progress: float) -> None:
        """One optimizer step on a batch; `progress` is the share of the tokens seen before it."""
        layers_N = self.draw_layers(x_LND.shape[1], step)
        tokens_N = torch.arange(x_LND.shape[1], device=layers_N.device)
        losses = self.sae.losses(self.scales.normalise(x_LND[layers_N, tokens_N], layers_N), self.dead.mask_S)
        losses.total.backward()
        self._apply(decay(progress, self.train.decay_share))
        self.schedule.advance(x_LND.shape[1], losses.total.detach())
        self.dead.update(losses.latents)
        self.meter.add(losses, self.dead.mask_S)

    def _apply(self, rate_factor: float) -> None:
        clip(self.sae.parameters(), self.train.clip_norm)
        self.sae.project_decoder_gradient()
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.rate * rate_factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.sae.normalise_decoder()

    def require_finite(self, step: int) -> None:
        """Raises NumericalError naming group and step if the weights, or losses since the last reading, are not."""
        weights = [tensor.detach().sum(dtype=torch.float64) for tensor in self.sae.parameters()]
        for what, sums in (("loss", self.meter.sums), ("weights", torch.stack(weights))):
            if not torch.isfinite(sums).all():
                raise NumericalError(
                    f"NaN or infinity in the {what} of group {self.name}, at or shortly before step {step}. "
                    "The last saved state is kept; try a lower train.learning_rate."
                )

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name: weights, Adam's moments, silent tokens, meter, schedule."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        return tensors | {
            "silent": self.dead.silent_S,
            "meter": self.meter.sums,
            "schedule": self.schedule.state(),
        }

    def layout(self) -> dict[str, Tensor]:
        """Tensors of the names, shapes and dtypes that `state()` has after a step."""
        adam = {
            f"adam.{name}.{key}": torch.zeros(()) if key == "step" else parameter
            for name, parameter in self.sae.named_parameters()
            for key in ADAM_STATE
        }
        return self.state() | adam

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state()` gave, of the names, shapes and dtypes of `layout()`, from any device."""
        self.sae.load_state_dict({name[4:]: t for name, t in tensors.items() if name.startswith("sae.")})
        for name, parameter in self.sae.named_parameters():
            moments = {key: tensors[f"adam.{name}.{key}"] for key in ADAM_STATE}
            # The fused Adam wants its step count on the device too.
            self.optimizer.state[parameter] = {k: t.to(parameter.device, copy=True) for k, t in moments.items()}
        self.dead.silent_S.copy_(tensors["silent"])
        self.meter.sums.copy_(tensors["meter"])
        self.schedule.restore(tensors["schedule"])


class Meter:
    """Sums over the steps since the last reading, kept on the device: watching costs no synchronisation."""

    NAMES = ("steps", "tokens", "loss", "auxk", "error", "variance", "active", "dead")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)

    def add(self, losses: Losses, dead_S: Tensor) -> None:
        """Take note of a step."""
        values_NK = losses.latents.values_NK
        self.sums[0] += 1
        self.sums[1] += len(values_NK)
        parts = (
            losses.total.detach(),
            losses.auxk,
            losses.error,
            losses.variance,
            (values_NK > 0).sum(),
            dead_S.float().mean(),
        )
        self.sums[2:] += torch.stack([part.double() for part in parts])

    def read(self) -> dict[str, float]:
        """Means since the last reading, which starts anew: loss, auxk, fvu, l0, dead_share; empty without a step."""
        sums = dict(zip(self.NAMES, self.sums.tolist(), strict=True))
        self.sums.zero_()
        steps = sums["steps"]
        if not steps:
            return {}
        return {
            "loss": sums["loss"] / steps,
            "auxk": sums["auxk"] / steps,
            "fvu": sums["error"] / max(sums["variance"], 1e-300),
            "l0": sums["active"] / sums["tokens"],
            "dead_share": sums["dead"] / steps,
        }
