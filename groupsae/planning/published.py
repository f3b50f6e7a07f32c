"""Quality without a pilot: what the published suites lost by sharing SAEs, as a power of the distances.

`published.json` holds, for each number of groups of pythia-160m, 410m and 1b, the published AMAD, FVU
(1 - explained variance) and increase of cross-entropy in percent, and those of one SAE per layer: means
over layers of the official evaluation files of Group-SAE (arXiv 2410.21508). `mean-angle` is the mean over
layers of the mean distance to the members of their group, from distance matrices recovered from the
published figures: good to about 0.002 for pythia-1b, surrogate for 160m, an earlier run's for 410m. FVU of
pythia-1b is left out: its baseline was evaluated with another batch size, on which that number depends.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from scipy import stats

from groupsae.errors import ConfigError
from groupsae.estimate import Estimate

QUANTITIES = {"fvu": "fvu", "delta_ce": "delta_ce_pct"}
MEASURES = ("mean-angle", "amad")


@dataclass(frozen=True)
class PowerLaw:
    """excess = factor * proxy^exponent, with `spread` the standard deviation of ln(excess) around it."""

    factor: float
    exponent: float
    spread: float
    models: int

    def predict(self, proxy: float, probability: float = 0.8) -> Estimate:
        """The excess at this proxy. A proxy of 0 (one SAE per layer) has none. ConfigError for a negative one."""
        if not proxy >= 0:
            raise ConfigError(f"proxy = {proxy}; a mean angle or an AMAD is 0 or more.")
        if not 0 < probability < 1:
            raise ConfigError(f"probability = {probability}; it must lie between 0 and 1, such as 0.8.")
        value = self.factor * proxy**self.exponent
        width = np.exp(stats.norm.ppf((1 + probability) / 2) * self.spread)
        return Estimate(float(value), float(value / width), float(value * width))


def predict_excess(
    proxy: float, quantity: str = "fvu", measure: str = "mean-angle", probability: float = 0.8
) -> Estimate:
    """The relative excess over one SAE per layer that the published suites suggest: 0.12 is 12 % more.

    `proxy` is `grouping.quality.mean_angle` divided by the number of layers, or AMAD, by `measure`; angular
    distances in both cases. The interval comes from three models of one family at one budget: take it as a
    lower bound on what you do not know, and calibrate with a pilot (`planning.quality`).
    """
    return published_law(quantity, measure).predict(proxy, probability)


@functools.cache
def published_law(quantity: str = "fvu", measure: str = "mean-angle") -> PowerLaw:
    """The power law through the published excesses, by least squares of their logarithms.

    `spread` is the root mean square error of ln(excess) when each model is predicted from the others, not of
    the fit itself: points of one model lie on one curve and are not independent.
    Raises ConfigError for an unknown quantity or measure.
    """
    if quantity not in QUANTITIES or measure not in MEASURES:
        raise ConfigError(
            f"No published fit of {quantity!r} by {measure!r}; known are {', '.join(QUANTITIES)} by "
            f"{', '.join(MEASURES)}."
        )
    points = list(_points(quantity, measure).values())
    misses = [
        own_2N[1] - np.polyval(_line([other for other in points if other is not own_2N]), own_2N[0])
        for own_2N in points
    ]
    exponent, intercept = _line(points)
    spread = float(np.sqrt(np.mean(np.square(np.concatenate(misses)))))
    return PowerLaw(float(np.exp(intercept)), float(exponent), spread, len(points))


def published_tables() -> dict[str, dict[str, Any]]:
    """The published columns by model; see the module's docstring for what they hold."""
    text = resources.files("groupsae.planning").joinpath("published.json").read_text(encoding="utf-8")
    return json.loads(text)["models"]


def _points(quantity: str, measure: str) -> dict[str, np.ndarray]:
    """ln proxy and ln excess (2, N) of each model that has this quantity."""
    column = QUANTITIES[quantity]
    points = {}
    for model, table in published_tables().items():
        if column in table:
            excess_N = np.array(table[column]) / table[f"{column}_per_layer"] - 1
            points[model] = np.log([table[measure], excess_N])
    return points


def _line(points: list[np.ndarray]) -> np.ndarray:
    proxies_N, excesses_N = np.concatenate(points, axis=1)
    return np.polyfit(proxies_N, excesses_N, 1)
