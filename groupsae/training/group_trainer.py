"""One group in training: its SAE, optimizer, dead latents and meters, and what a step does to them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from groupsae.activations.shuffle import Batch
from groupsae.activations.source import hash_seed
from groupsae.config import SAEConfig, TrainConfig
from groupsae.errors import NumericalError
from groupsae.oom import SplitOnOOM
from groupsae.partition import Group, group_name
from groupsae.records.types.lineage import Lineage
from groupsae.saes.base import FiringStats, SparseAutoencoder
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.registry import build_sae
from groupsae.saes.scales import Scales
from groupsae.training.cut import Cut
from groupsae.training.cut_saes import CutSAE, cut_sae, joined_sae
from groupsae.training.dead import DeadLatents
from groupsae.training.faults import FaultMonitor
from groupsae.training.microbatch import StepResult, backward_in_splits, step_splits
from groupsae.training.optim import adam, clip, decay, learning_rate, warmup
from groupsae.training.precision import product_dtype
from groupsae.training.schedule import Schedule
from groupsae.training.warm_start import InitialWeights, warm_rate

FIT_TOKENS = 1024
"""Of the first batch, what the encoder is scaled to."""
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class GroupTrainer:
    """The state of one group's training. All of it is in `state()`; its first weights and the layers its tokens are
    seen at are functions of (seed, group), so that a group trains alike in whatever company.

    With `layers_per_token = "all"` every token is seen once at each layer of the group, in steps of their own, so that
    a group of m layers takes m steps for each batch of the stream. `name` is what it goes by, its group's name unless
    the group is trained more than once; `start` the weights it begins with, which take the warm start's learning
    rate and no warm-up of sparsity; `maps` what its layers have of their own; `split` divides batches that memory
    does not hold, and is shared by groups that train together. With a `cut` this is one piece of the dictionary, and
    the ranks that have the others take the same steps.
    """

    def __init__(
        self,
        group: Group,
        scales: Scales,
        d_model: int,
        sae: SAEConfig,
        train: TrainConfig,
        seed: int,
        *,
        name: str | None = None,
        start: InitialWeights | None = None,
        maps: LayerMaps | None = None,
        split: SplitOnOOM | None = None,
        cut: Cut | None = None,
    ) -> None:
        device = scales.scale_L.device
        self.group, self.name, self.train, self.start = group, name or group_name(group), train, start
        self.scales = scales.at(group)
        self.maps = copy.deepcopy(maps).requires_grad_() if maps is not None else None
        self.sae = build_sae(d_model, sae)
        if start is None:
            self.sae.initialize(hash_seed(seed, f"weights/{group_name(group)}"))
            self.rate = train.learning_rate or learning_rate(self.sae.d_sae)
        else:
            self.sae.load_state_dict(start.sae.state_dict())
            self.rate = warm_rate(train, self.sae.d_sae)
        self.d_sae, self.cut = self.sae.d_sae, cut
        if cut is not None:
            self.sae = cut_sae(self.sae, cut)
        self.sae.to(device)
        self.sae.product_dtype = product_dtype(train.precision, device)
        self.schedule = Schedule(train, device)
        self.optimizer = adam(self._learned.values(), self.rate)
        self.dead = DeadLatents(self.sae.d_sae, sae.dead_after_tokens, device)
        self.meter = Meter(device)
        self.faults = FaultMonitor(group, device)
        self.split = split or step_splits()

    @property
    def passes(self) -> int:
        """How often each token is seen, at another layer each time."""
        return passes(self.group, self.train)

    @property
    def tokens_needed(self) -> int:
        """Tokens of the stream that give the SAE its `num_tokens`."""
        return tokens_needed(self.group, self.train)

    @property
    def finished(self) -> bool:
        """Whether it takes no more steps."""
        return self.schedule.finished

    def take(self, batch: Batch, number: int) -> None:
        """The optimizer steps on the batch of this number in the stream."""
        count = min(batch.count, -(-self.schedule.left // self.passes))
        for pass_ in range(self.passes):
            kept = min(count, self.schedule.left)
            if kept > 0:
                x_ND, layers_N = batch.read(self.group, pass_, self.tokens_needed)
                self.step(x_ND[:kept], layers_N[:kept], self.schedule.progress, number)

    def step(self, x_ND: Tensor, layers_N: Tensor, progress: float, number: int = 0) -> None:
        """One optimizer step on tokens of the group's layers; `progress` is the share of the tokens seen before it.

        `layers_N` counts within the group; `number` names the batch in what is said of faults.
        """
        z_ND, dead_S = self.scales.normalize(x_ND, layers_N), self.dead.mask_S
        if self.maps is not None:
            z_ND = self.maps.to_group(z_ND, layers_N)
        layer_bias = self.maps.bias(layers_N) if self.maps is not None else None
        if self._fits_encoder:
            self.sae.fit_latents(z_ND[:FIT_TOKENS])
        sparsity, rate = self._sparsity(progress), self._rate(progress, len(z_ND))
        result = self.split.run(
            lambda splits: backward_in_splits(self.sae, z_ND, dead_S, sparsity, splits, layer_bias),
            self.optimizer.zero_grad,
            len(z_ND) if self.cut is None else 1,  # else one rank would take other parts than the others
        )
        if self.train.freeze_decoder:
            self.sae.W_dec.grad = None
        if self.cut is not None:
            result = self.cut.merged(result)
        norm = clip(self._learned.values(), self.train.clip_norm, self._norm())
        sound = self.faults.check(result.total, norm, z_ND, layers_N, number, progress * self.train.num_tokens)
        self._apply(rate, sound)
        self.schedule.advance(len(z_ND), result.total)
        self._after_step(result.activity, rate, sound)
        self.dead.update(result.activity, sound)
        dead_S, told = self.dead.mask_S, self._about_layers(result, z_ND, layers_N)
        self.meter.add(told, dead_S.float().mean() if self.cut is None else self.cut.share(dead_S), sound)

    def _norm(self) -> Tensor | None:
        """The norm of the gradients of all pieces of a dictionary that is cut."""
        if self.cut is None:
            return None
        return self.cut.norm({name: weight.grad for name, weight in self._learned.items() if weight.grad is not None})

    def _about_layers(self, result: StepResult, z_ND: Tensor, layers_N: Tensor) -> StepResult:
        """The result with the variance about each layer's own mean, as the FVU of a layer is defined.

        Without a center, layers' means differ, and the batch's variance holds those differences as well.
        """
        if len(self.group) == 1:
            return result
        own = variance_within(z_ND, layers_N, len(self.group))
        some = own > torch.finfo(own.dtype).eps * result.variance  # none where each layer has one token
        return replace(result, variance=torch.where(some, own, result.variance))

    def _after_step(self, activity: FiringStats, rate: float, sound: Tensor) -> None:
        """The SAE's thresholds and weights of penalties follow a step, unless it was faulty."""
        before = [buffer.clone() for buffer in self.sae.buffers()]
        self.sae.after_step(activity, rate)
        for buffer, was in zip(self.sae.buffers(), before, strict=True):
            buffer.copy_(torch.where(sound, buffer, was))

    @property
    def _fits_encoder(self) -> bool:
        return self.schedule.seen == 0 and self.start is None and self.train.rescale_encoder_init

    def _rate(self, progress: float, tokens: int) -> float:
        """The learning rate of a step on so many tokens, after a share `progress` of all."""
        after = progress + tokens / self.schedule.end
        return self.rate * warmup(after, self.train.warmup_share) * decay(progress, self.train.decay_share)

    def _sparsity(self, progress: float) -> float:
        return 1.0 if self.start else warmup(progress, self.train.sparsity_warmup_share)

    def _apply(self, rate: float, sound: Tensor) -> None:
        self.sae.project_decoder_gradient()
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate
        self.optimizer.found_inf = (~sound).float()  # the fused Adam then does nothing, without a synchronization
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.sae.normalize_decoder()

    @property
    def _learned(self) -> dict[str, nn.Parameter]:
        """The SAE's parameters, and what layers have of their own to learn."""
        biases = dict(self.maps.named_parameters()) if self.maps is not None else {}
        return dict(self.sae.named_parameters()) | biases

    def trained(self) -> SparseAutoencoder:
        """The SAE as it is used from now on: frozen, in float32 throughout, with its lineage; joined, if it was cut."""
        if isinstance(self.sae, CutSAE):
            self.sae = joined_sae(self.sae)
        self.sae.product_dtype = None
        if self.maps is not None:
            self.maps.requires_grad_(False)
        self.sae.lineage = Lineage(tokens=self.schedule.seen, origin=self.start.origin if self.start else None)
        return self.sae.requires_grad_(False)

    def require_finite(self, step: int) -> None:
        """Raises NumericalError if the weights are not finite, or steps were not and `train.on_nan` is `stop`.

        With `skip` it raises if no step since the last reading was sound. The message names group,
        step, batch, and the hookpoints whose activations are the cause.
        """
        fault = self.faults.first_fault()
        if fault and (self.train.on_nan == "stop" or self.faults.all_skipped):
            raise NumericalError(
                f"Group {self.name}: {fault}. The last saved state is kept; try a lower train.learning_rate, "
                "or leave such steps out by train.on_nan = 'skip'."
            )
        weights = [tensor.detach().sum(dtype=torch.float64) for tensor in self._learned.values()]
        if not torch.isfinite(torch.stack(weights)).all():
            raise NumericalError(
                f"NaN or infinity in the weights of group {self.name}, at or shortly before step {step}. "
                "The last saved state is kept; try a lower train.learning_rate."
            )

    def state(self) -> dict[str, Tensor]:
        """All that training changes, by name: weights, Adam's moments, dead counters, meter, faults, schedule."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        if self.maps is not None:
            tensors |= {f"maps.{name}": parameter for name, parameter in self.maps.named_parameters()}
        for name, parameter in self._learned.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        return tensors | {
            "silent": self.dead.silent_S,
            "meter": self.meter.sums,
            "faults": self.faults.sums,
            "schedule": self.schedule.state(),
        }

    def layout(self) -> dict[str, Tensor]:
        """Tensors of the names, shapes and dtypes that `state()` has after a step."""
        adam = {
            f"adam.{name}.{key}": torch.zeros(()) if key == "step" else parameter
            for name, parameter in self._learned.items()
            for key in ADAM_STATE
        }
        return self.state() | adam

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state()` gave, of the names, shapes and dtypes of `layout()`, from any device."""
        self.sae.load_state_dict({name[4:]: t for name, t in tensors.items() if name.startswith("sae.")})
        if self.maps is not None:
            for name, parameter in self.maps.named_parameters():
                parameter.data.copy_(tensors[f"maps.{name}"])
        for name, parameter in self._learned.items():
            moments = {key: tensors[f"adam.{name}.{key}"] for key in ADAM_STATE}
            # The fused Adam wants its step count on the device too.
            self.optimizer.state[parameter] = {k: t.to(parameter.device, copy=True) for k, t in moments.items()}
        self.dead.silent_S.copy_(tensors["silent"])
        self.meter.sums.copy_(tensors["meter"])
        self.faults.sums.copy_(tensors["faults"])
        self.schedule.restore(tensors["schedule"])


def variance_within(z_ND: Tensor, layers_N: Tensor, layers: int) -> Tensor:
    """The sum over tokens of ||z_t - mean of z at t's layer||^2, each layer's part times n / (n - 1)."""
    is_at_MN = (layers_N == torch.arange(layers, device=layers_N.device)[:, None]).to(z_ND.dtype)
    count_M = is_at_MN.sum(1)
    mean_MD = is_at_MN @ z_ND / count_M.clamp_min(1)[:, None]
    square_N = (z_ND - mean_MD[layers_N]).square().sum(1)
    return (is_at_MN @ square_N * count_M / (count_M - 1).clamp_min(1)).sum()


def passes(group: Group, train: TrainConfig) -> int:
    """How often a group sees each token, at another of its layers each time."""
    return len(group) if train.layers_per_token == "all" else 1


def tokens_needed(group: Group, train: TrainConfig) -> int:
    """Tokens of the stream that give a group's SAE its `num_tokens`."""
    return -(-train.num_tokens // passes(group, train))


class Meter:
    """Sums over the steps since the last reading, kept on the device: watching costs no synchronization."""

    NAMES = ("steps", "tokens", "loss", "auxk", "error", "variance", "active", "dead")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)

    def add(self, result: StepResult, dead_share: Tensor, sound: Tensor) -> None:
        """Take note of a step, if it is sound."""
        self.sums[0] += sound
        self.sums[1] += result.activity.tokens * sound
        parts = (
            result.total,
            result.auxk,
            result.error,
            result.variance,
            result.activity.active,
            dead_share,
        )
        self.sums[2:] += torch.where(sound, torch.stack([part.double() for part in parts]), 0)

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
