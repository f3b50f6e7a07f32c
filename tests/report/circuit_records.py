"""Records of circuits and similarity with invented numbers."""

from __future__ import annotations

from groupsae.estimate import Estimate
from groupsae.metrics import CIRCUITS, SIMILARITY, units
from groupsae.records.types.circuits import (
    CircuitCurve,
    CircuitPoint,
    CircuitSize,
    CircuitsRecord,
    SplicedCircuits,
    SuiteCircuits,
    TaskCircuits,
    TaskSkill,
)
from groupsae.records.types.similarity import (
    ConcordanceRecord,
    DictionaryName,
    MatchingRecord,
    SimilarityRecord,
    SpreadingRecord,
    StabilityRecord,
)

SIZES = (1, 8, 64)
OWN, SHARED = DictionaryName(suite="baseline", group="layers.0"), DictionaryName(suite="groups", group="layers.0-2")
REFUSED = "only 0 of 64 pairs can be used"


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1)


def curve(values: tuple[float, ...], *, defined: bool = True) -> CircuitCurve:
    points = tuple(
        CircuitPoint(size=size, m=value, ratio=estimate(value) if defined else None, median=value)
        for size, value in zip(SIZES, values, strict=True)
    )
    area = estimate(0.5) if defined else None
    return CircuitCurve(points=points, area=area, area_linear=area)


def suite(height: float, *, defined: bool = True) -> SuiteCircuits:
    kept, removed = (
        SplicedCircuits(
            empty=0.0,
            ceiling=estimate(ceiling) if defined else None,
            faithfulness=curve((0.1, height / 2, height), defined=defined),
            completeness=curve((1 - height / 3, 0.3, 0.0), defined=defined),
        )
        for ceiling in (1.0, height)
    )
    sizes = tuple(CircuitSize(size=size, nodes=3 * size, weakest_effect=0.1) for size in SIZES)
    return SuiteCircuits(sizes=sizes, error_kept=kept, error_removed=removed)


def circuits(
    suites: tuple[str, ...] = ("baseline", "groups"),
    tasks: tuple[str, ...] = ("closing-quote", "pairs"),
    undefined: str = "",
    skipped: str = REFUSED,
) -> CircuitsRecord:
    """`tasks` are scored, `greater-than` is not; the ratios of the suite `undefined` are not defined."""
    skill = TaskSkill(accuracy=0.99, logit_difference=5.0, patch_logit_difference=-5.0)
    found = {name: suite(0.9, defined=name != undefined) for name in suites}
    used = {"given": 64, "dropped": {}, "num_choose": 32, "num_test": 30}
    done = TaskCircuits(**used, skill=skill, skipped=None, full=5.0, suites=found)
    refused = TaskCircuits(**used, skill=None, skipped=skipped, full=None, suites={})
    return CircuitsRecord(units=units(CIRCUITS), tasks=dict.fromkeys(tasks, done) | {"greater-than": refused})


def similarity(count: int = 4, *, alike: bool = False, first: DictionaryName | None = None) -> SimilarityRecord:
    """`count` dictionaries: one per layer, and a group's."""
    names = [DictionaryName(suite="baseline", group=f"layers.{index}") for index in range(count - 1)]
    names = [first, *names[1:]] if first else names
    matrix = [[1.0 if alike or a == b else 0.3 + 0.01 * a + 0.02 * b for b in range(count)] for a in range(count)]
    return SimilarityRecord(
        units=units(SIMILARITY),
        num_tokens=4096,
        sample_tokens=4096,
        threshold=0.7,
        dictionaries=(*names, SHARED),
        mmcs=matrix,
        mmcs_random=[0.25] * (count - 1) + [0.31],
        concordance=(),
        spreading={},
        stability=(),
    )


def shares(other: DictionaryName = SHARED, suite: str = "groups", group: str = "layers.0-2") -> SimilarityRecord:
    """With a row of each table."""
    concordance = ConcordanceRecord(
        hookpoint="layers.0",
        one=OWN,
        other=other,
        one_in_other=0.19,
        other_in_one=None,
        silent_one=150,
        silent_other=243,
    )
    spreading = SpreadingRecord(
        layers=("layers.0", "layers.1", "layers.2"),
        entropy=0.9,
        entropy_histogram=(0,) * 10,
        mean_layer=1.25,
        layer_histogram=(0, 0, 0),
        one_layer_share=0.04,
        firing_share=(0.3, 0.3, 0.4),
        silent=17,
    )
    matching = MatchingRecord(share=0.25, mean_cosine=0.5, pairs=9, method="mutual")
    stability = StabilityRecord(group="layers.0", one="baseline", other="groups", matching=matching)
    return similarity(first=None if other == SHARED else other).model_copy(
        update={"concordance": (concordance,), "spreading": {suite: {group: spreading}}, "stability": (stability,)}
    )
