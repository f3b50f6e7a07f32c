"""Quality from a pilot: FVU as a function of groups and tokens, and the best use of a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from groupsae.errors import ConfigError
from groupsae.planning.published import Prediction, published_law


@dataclass(frozen=True)
class PilotPoint:
    """One small SAE: its group's mean-angle proxy (0 for a group of one), the tokens it saw, its FVU."""

    proxy: float
    num_tokens: float
    fvu: float


@dataclass(frozen=True, eq=False)
class FvuLaw:
    """FVU(proxy, n) = floor + b (n / n_0)^-a + c proxy^p, n_0 the most tokens of the pilot.

    `parameters` are (floor, b, a, c, p), `covariance` (5, 5) their uncertainty, `noise` the relative
    standard deviation of a point around the law, `freedom` the degrees of freedom it is known by.
    """

    parameters: tuple[float, float, float, float, float]
    covariance: np.ndarray
    noise: float
    freedom: int
    reference_tokens: float

    def predict(self, proxies: float | Sequence[float], num_tokens: float, probability: float = 0.8) -> Prediction:
        """The mean FVU over layers with these proxies after this many tokens per SAE.

        `proxies` is one group's, or a partition's: `grouping.quality.layer_proxies`. The interval holds the law's
        uncertainty and that of a point around it. Raises ConfigError for a negative proxy or less than one token.
        """
        proxies_L = np.atleast_1d(np.asarray(proxies, dtype=np.float64))
        if not (len(proxies_L) and (proxies_L >= 0).all() and num_tokens >= 1):
            raise ConfigError(f"proxies = {proxies}, num_tokens = {num_tokens}; they must be at least 0 and 1.")
        at = np.stack([proxies_L, np.full(len(proxies_L), num_tokens / self.reference_tokens)])
        value = float(_law(at, *self.parameters).mean())
        slopes = optimize.approx_fprime(np.array(self.parameters), lambda theta: _law(at, *theta).mean(), 1e-7)
        variance = float(slopes @ self.covariance @ slopes) + (self.noise * value) ** 2
        width = stats.t.ppf((1 + probability) / 2, self.freedom) * variance**0.5
        return Prediction(value, max(0.0, value - float(width)), value + float(width))


def fit_pilot(points: Sequence[PilotPoint]) -> FvuLaw:
    """The law through a pilot's points, by bounded least squares of relative errors.

    Needs 3 different numbers of tokens, 2 different proxies (one of them 0 is best) and 6 points. With
    fewer than 3 proxies the exponent p cannot be seen and is taken from the published suites.
    Raises ConfigError saying what is missing, or which point is impossible.
    """
    _require_enough(points)
    proxies, tokens, fvus = np.array([(point.proxy, point.num_tokens, point.fvu) for point in points]).T
    reference = tokens.max()
    least, most = np.array([0, 0, 0.05, 0, 0.25]), np.array([fvus.min(), np.inf, 2, np.inf, 4])
    start = np.array([fvus.min() / 2, fvus.min() / 2, 0.5, max(np.ptp(fvus), 1e-3), published_law().exponent])
    free = np.ones(5, dtype=bool)
    free[-1] = len(set(proxies.tolist())) >= 3

    def law(at: np.ndarray, *chosen: float) -> np.ndarray:
        theta = start.copy()
        theta[free] = chosen
        return _law(at, *theta)

    at = np.stack([proxies, tokens / reference])
    try:
        found, covariance = optimize.curve_fit(
            law, at, fvus, start[free], sigma=fvus, bounds=(least[free], most[free]), x_scale="jac", max_nfev=20_000
        )
    except RuntimeError as error:
        raise ConfigError(f"No law fits the pilot's points: {error} Add points at other token counts.") from None
    theta, whole = start.copy(), np.zeros((5, 5))
    theta[free], whole[np.ix_(free, free)] = found, np.where(np.isfinite(covariance), covariance, 0)
    freedom = max(1, len(points) - int(free.sum()))
    noise = float(np.sqrt(np.square(_law(at, *theta) / fvus - 1).sum() / freedom))
    return FvuLaw(tuple(theta.tolist()), whole, noise, freedom, float(reference))


def _law(at: np.ndarray, floor: float, b: float, a: float, c: float, p: float) -> np.ndarray:
    """The law at (2, N) proxies and relative tokens; written so that a proxy of 0 has no excess for any p."""
    proxies, tokens = at
    return floor + b * tokens**-a + c * np.where(proxies > 0, proxies, 0.0) ** p


def _require_enough(points: Sequence[PilotPoint]) -> None:
    for point in points:
        if not (point.fvu > 0 and point.proxy >= 0 and point.num_tokens >= 1 and np.isfinite(point.fvu)):
            raise ConfigError(f"{point} is impossible: FVU must be above 0, the proxy 0 or more, tokens 1 or more.")
    found = (len({p.num_tokens for p in points}), len({p.proxy for p in points}), len(points))
    if found[0] < 3 or found[1] < 2 or found[2] < 6:
        raise ConfigError(
            f"A pilot of {found[2]} points with {found[0]} numbers of tokens and {found[1]} proxies is too small; "
            "6 points, 3 numbers of tokens and 2 proxies are needed. Evaluate each pilot SAE at more steps."
        )


# ---- choosing


@dataclass(frozen=True)
class Option:
    """A partition on offer: its number of groups, its layers' proxies, and FLOPs per token seen by each SAE."""

    groups: int
    proxies: tuple[float, ...]
    flops_per_token: float


@dataclass(frozen=True)
class Allocation:
    """An option with a budget: the tokens each SAE gets, and the FVU predicted for them."""

    option: Option
    num_tokens: float
    fvu: Prediction


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
