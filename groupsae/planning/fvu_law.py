"""Quality from a pilot: FVU as a function of groups and tokens, and the best use of a budget.

    FVU_l(proxy, n) = exp(alpha_l) (n / n_0)^-a_l (1 + c proxy^p)

for layer l after n tokens per SAE, its group having the mean-angle `proxy` (0 in a group of one).
Layers differ by several times in how hard they are and how fast they are learned, so each has its
own alpha and a; what sharing costs is a share of FVU, common to all. A floor under the power of n is
not fitted: a pilot is far above it (docs/log.md has what was tried).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from groupsae.errors import ConfigError
from groupsae.estimate import Estimate
from groupsae.planning.published import published_law

SLOPE_WEIGHT, EXPONENT_WEIGHT = 0.3, 0.1
"""How strongly a layer's a is drawn to the layers' mean, and p to the published exponent."""


@dataclass(frozen=True)
class PilotPoint:
    """One layer under one small SAE: its group's mean-angle proxy, the tokens the SAE saw, the layer's FVU."""

    layer: str
    proxy: float
    num_tokens: float
    fvu: float


@dataclass(frozen=True, eq=False)
class FvuLaw:
    """The law of the module's docstring. `theta` is (alpha_L, a_L, ln c, p), `covariance` its uncertainty,
    `noise` the standard deviation of ln FVU around it, known by `freedom` degrees of freedom."""

    layers: tuple[str, ...]
    theta: np.ndarray
    covariance: np.ndarray
    noise: float
    freedom: int
    reference_tokens: float

    def predict(self, proxies: Mapping[str, float], num_tokens: float, probability: float = 0.8) -> Estimate:
        """The mean FVU over these layers, each with its group's proxy, after this many tokens per SAE.

        The interval holds the law's uncertainty and that of a point around it, not whether a power of n goes on
        beyond the pilot. Raises ConfigError for a layer the pilot did not see, a negative proxy, or no token.
        """
        self._require_known(proxies, num_tokens)

        def log_mean(theta: np.ndarray) -> float:
            return float(np.log(self._fvu_N(theta, proxies, num_tokens).mean()))

        value, width = self._interval(log_mean, self.noise**2, probability)
        return Estimate(float(np.exp(value)), float(np.exp(value - width)), float(np.exp(value + width)))

    def predict_increase(self, proxies: Mapping[str, float], num_tokens: float, probability: float = 0.8) -> Estimate:
        """The share by which the mean FVU over these layers exceeds that of one SAE per layer: 0.12 is 12 % more.

        The interval is that of the ratio: what is uncertain of both alike, such as how hard a layer is, cancels.
        A layer alone in its group has the same SAE on both sides. Raises as `predict` does.
        """
        self._require_known(proxies, num_tokens)
        alone = dict.fromkeys(proxies, 0.0)

        def log_ratio(theta: np.ndarray) -> float:
            fvu_N, alone_N = (self._fvu_N(theta, each, num_tokens) for each in (proxies, alone))
            return float(np.log(fvu_N.mean() / alone_N.mean()))

        both = [self._fvu_N(self.theta, each, num_tokens) for each in (proxies, alone)]
        shared_N = np.array([proxy > 0 for proxy in proxies.values()])
        weight = sum(float(np.square(fvu_N[shared_N] / fvu_N.sum()).sum()) for fvu_N in both)
        value, width = self._interval(log_ratio, self.noise**2 * weight, probability)
        return Estimate(*(float(np.expm1(end)) for end in (value, value - width, value + width)))

    def _fvu_N(self, theta: np.ndarray, proxies: Mapping[str, float], num_tokens: float) -> np.ndarray:
        places_N = np.array([self.layers.index(layer) for layer in proxies])
        tokens = num_tokens / self.reference_tokens
        return np.exp(_log_fvu(theta, places_N, np.array(list(proxies.values())), tokens))

    def _interval(self, of: Callable[[np.ndarray], float], noise: float, probability: float) -> tuple[float, float]:
        """A function of the parameters, and half the width of its interval; `noise` is a variance beside theirs."""
        slopes = optimize.approx_fprime(self.theta, of, 1e-6)
        spread = float(np.sqrt(slopes @ self.covariance @ slopes + noise))
        return of(self.theta), float(stats.t.ppf((1 + probability) / 2, self.freedom)) * spread

    def _require_known(self, proxies: Mapping[str, float], num_tokens: float) -> None:
        unknown = [layer for layer in proxies if layer not in self.layers]
        if unknown or not proxies or min(proxies.values()) < 0 or not num_tokens >= 1:
            raise ConfigError(
                f"proxies = {dict(proxies)}, num_tokens = {num_tokens}: layers must be among {', '.join(self.layers)}, "
                "proxies at least 0, tokens at least 1."
            )


def fit_pilot(points: Sequence[PilotPoint]) -> FvuLaw:
    """The law through a pilot's points, by least squares of ln FVU.

    Every layer must be seen at two numbers of tokens or more, and some layer under two proxies.
    Raises ConfigError saying what is missing, or which point is impossible.
    """
    layers = tuple(dict.fromkeys(point.layer for point in points))
    _require_enough(points, layers)
    places_N = np.array([layers.index(point.layer) for point in points])
    proxies_N, tokens_N, fvus_N = np.array([(point.proxy, point.num_tokens, point.fvu) for point in points]).T
    reference, exponent = float(tokens_N.max()), published_law().exponent
    count = len(layers)

    def residuals(theta: np.ndarray) -> np.ndarray:
        misses = _log_fvu(theta, places_N, proxies_N, tokens_N / reference) - np.log(fvus_N)
        slopes = theta[count : 2 * count]
        drawn = SLOPE_WEIGHT * (slopes - slopes.mean())
        return np.concatenate([misses, drawn, [EXPONENT_WEIGHT * (theta[-1] - exponent)]])

    start = np.concatenate([np.full(count, np.log(fvus_N).mean()), np.full(count, 0.3), [0.0, exponent]])
    least = np.concatenate([np.full(count, -np.inf), np.zeros(count), [-12.0, 0.25]])
    most = np.concatenate([np.full(count, np.inf), np.full(count, 3.0), [6.0, 4.0]])
    found = optimize.least_squares(residuals, start, bounds=(least, most), max_nfev=20_000)
    freedom = max(1, len(points) - 2 * count - 1)
    noise = float(np.sqrt(np.square(found.fun[: len(points)]).sum() / freedom))
    covariance = noise**2 * np.linalg.pinv(found.jac.T @ found.jac)
    return FvuLaw(layers, found.x, covariance, noise, freedom, reference)


def _log_fvu(theta: np.ndarray, places_N: np.ndarray, proxies_N: np.ndarray, tokens: np.ndarray | float) -> np.ndarray:
    """ln FVU of layers by their place, at these proxies and relative tokens; a proxy of 0 has no excess for any p."""
    count = (len(theta) - 2) // 2
    alpha, slope, (log_c, p) = theta[:count], theta[count : 2 * count], theta[-2:]
    excess_N = np.exp(log_c) * np.where(proxies_N > 0, proxies_N, 0.0) ** p
    return alpha[places_N] - slope[places_N] * np.log(tokens) + np.log1p(excess_N)


def _require_enough(points: Sequence[PilotPoint], layers: Sequence[str]) -> None:
    for point in points:
        if not (point.fvu > 0 and point.proxy >= 0 and point.num_tokens >= 1 and np.isfinite(point.fvu)):
            raise ConfigError(f"{point} is impossible: FVU must be above 0, the proxy 0 or more, tokens 1 or more.")
    tokens = {layer: {p.num_tokens for p in points if p.layer == layer} for layer in layers}
    proxies = {layer: {p.proxy for p in points if p.layer == layer} for layer in layers}
    if not points or min(map(len, tokens.values())) < 2 or max(map(len, proxies.values())) < 2:
        raise ConfigError(
            f"A pilot of {len(points)} points on {len(layers)} layers is too small: each layer must be seen at two "
            "numbers of tokens, and some layer in two different groups."
        )


# ---- choosing


@dataclass(frozen=True)
class Option:
    """A partition on offer: its number of groups, its layers' proxies, and FLOPs per token seen by each SAE."""

    groups: int
    proxies: Mapping[str, float]
    flops_per_token: float


@dataclass(frozen=True)
class Allocation:
    """An option with a budget: the tokens each SAE gets, and the FVU predicted for them."""

    option: Option
    num_tokens: float
    fvu: Estimate


def compute_optimal(
    law: FvuLaw, options: Sequence[Option], budget_flops: float, least_tokens: float = 1
) -> list[Allocation]:
    """What each option gives for the budget, the lowest predicted FVU first: the compute-optimal number of groups.

    An option gets budget / flops_per_token tokens; those with fewer than `least_tokens` are left out.
    Raises ConfigError, naming the cheapest, if the budget is enough for none.
    """
    if not options:
        raise ConfigError("There is no option to choose from; give at least one.")
    affordable = [option for option in options if budget_flops / option.flops_per_token >= max(1, least_tokens)]
    if not affordable:
        cheapest = min(options, key=lambda option: option.flops_per_token)
        raise ConfigError(
            f"{budget_flops:.3g} FLOPs are enough for none of {len(options)} options; the cheapest, "
            f"{cheapest.groups} group(s), takes {cheapest.flops_per_token * max(1, least_tokens):.3g}."
        )
    allocations = [
        Allocation(option, tokens, law.predict(option.proxies, tokens))
        for option in affordable
        for tokens in [budget_flops / option.flops_per_token]
    ]
    return sorted(allocations, key=lambda allocation: allocation.fvu.value)


def cheapest_within(options: Sequence[Option], increases: Sequence[float], max_increase: float) -> Option:
    """The cheapest option whose predicted relative increase of FVU over one SAE per layer is at most `max_increase`.

    `increases` belong to `options` one by one. Raises ConfigError, naming the smallest, if none is.
    """
    within = [option for option, value in zip(options, increases, strict=True) if value <= max_increase]
    if not within:
        least = f"the smallest predicted is {min(increases):.3g}" if increases else "there are no options"
        raise ConfigError(f"No option keeps the increase of FVU within {max_increase:g}; {least}.")
    return min(within, key=lambda option: option.flops_per_token)
