"""Reading activations for a distance: each hookpoint's exact mean, and blocks of centered tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, stream
from groupsae.errors import ConfigError, NumericalError, TextError

Progress = Callable[[int], None]

_ELEMENTS = {"cpu": 2**22}
_ELEMENTS_ON_ACCELERATOR = 2**26


def exact_means(
    source: ActivationSource, num_tokens: int, seed: int, progress: Progress | None = None
) -> tuple[Tensor, int]:
    """The mean_LD (float64) over the tokens of `stream(source, num_tokens, seed)`, and their number.

    Sums are float64. Raises ConfigError for less than one token, TextError if the source has none,
    NumericalError naming the hookpoints that hold NaN or infinity.
    """
    if num_tokens < 1:
        raise ConfigError(f"num_tokens = {num_tokens}; distances need at least 1 token, sensibly 100,000 or more.")
    total_LD = torch.zeros(len(source.hookpoints), source.d_model, dtype=torch.float64)
    total_LD = total_LD.to(accumulator_device(source.device))
    count = 0
    for x_LND in stream(source, num_tokens, seed):
        for x_LnD in token_blocks(x_LND):
            total_LD += _sum_over_tokens(x_LnD).to(total_LD.device)
        count += x_LND.shape[1]
        _require_finite(total_LD, source.hookpoints)
        if progress:
            progress(x_LND.shape[1])
    if not count:
        raise TextError("The source gave no tokens, so there is nothing to measure. Give it more text.")
    return total_LD / count, count


class Centering:
    """Subtracts each hookpoint's mean in float32, as exactly as float64 would.

    The mean is split into a float32 part and what that part misses, so that a mean much larger
    than what varies costs no digits.
    """

    def __init__(self, mean_LD: Tensor, device: torch.device) -> None:
        coarse_LD = mean_LD.float()
        self._coarse_L1D = coarse_LD[:, None].to(device)
        self._fine_L1D = (mean_LD - coarse_LD.double()).float()[:, None].to(device)

    def __call__(self, x_LnD: Tensor) -> Tensor:
        """The centered activations (L, n, D), float32."""
        return (x_LnD.float() - self._coarse_L1D).sub_(self._fine_L1D)


def token_blocks(x_LND: Tensor, per_token: int = 0) -> Iterator[Tensor]:
    """The activations in blocks of tokens, each small enough that L D + `per_token` numbers per token stay small."""
    layers, _, width = x_LND.shape
    elements = _ELEMENTS.get(x_LND.device.type, _ELEMENTS_ON_ACCELERATOR)
    yield from x_LND.split(max(1, elements // (layers * width + per_token)), dim=1)


def accumulator_device(device: torch.device) -> torch.device:
    """Where float64 sums are kept: on the device, or on the CPU if the device has no float64 (mps)."""
    return torch.device("cpu") if device.type == "mps" else device


def require_reachable(until_stderr: float | None) -> None:
    """Raises ConfigError for a standard error that no measurement can reach."""
    if until_stderr is not None and not until_stderr > 0:
        raise ConfigError(f"until_stderr = {until_stderr}; it must be positive, such as 0.002, or left out.")


def _sum_over_tokens(x_LnD: Tensor) -> Tensor:
    return x_LnD.to(accumulator_device(x_LnD.device)).sum(dim=1, dtype=torch.float64)


def _require_finite(total_LD: Tensor, hookpoints: tuple[str, ...]) -> None:
    finite_L = torch.isfinite(total_LD).all(dim=1).tolist()
    if not all(finite_L):
        broken = ", ".join(name for name, finite in zip(hookpoints, finite_L, strict=True) if not finite)
        raise NumericalError(
            f"The activations at {broken} hold NaN or infinity. Load the model in float32 or bfloat16, "
            "or leave these hookpoints out."
        )
