import csv
import json
from pathlib import Path

import numpy as np
import pytest

from groupsae.errors import ConfigError
from groupsae.grouping.criteria import mean_angle
from groupsae.grouping.distances import Distances
from groupsae.partition import Partition
from groupsae.planning.fvu_law import Option, PilotPoint, cheapest_within, compute_optimal, fit_pilot
from groupsae.planning.published import QUANTITIES, predict_excess, published_law, published_tables

REFERENCE = Path(__file__).parents[1] / "reference"


def reference(name):
    return (REFERENCE / name).read_text()


# ---- without a pilot


def test_the_shipped_table_is_the_published_one():
    rows = list(csv.DictReader(reference("recon_summary_by_G.csv").splitlines()))
    for model, table in published_tables().items():
        grouped = [row for row in rows if row["model"] == model and row["source"] == "hierarchical"]
        assert table["groups"] == [int(row["G"]) for row in grouped]
        assert table["amad"] == [float(row["amad"]) for row in grouped]
        assert table["delta_ce_pct"] == [float(row["delta_ce_pct"]) for row in grouped]
        if "fvu" in table:
            assert table["fvu"] == pytest.approx([1 - float(row["explained_variance"]) for row in grouped], abs=1e-9)


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("pythia-160m", "dist_pythia-160m_angular_SURROGATE.json"),
        ("pythia-410m", "dist_pythia-410m_angular_5M_preliminary.json"),
        ("pythia-1b", "dist_pythia-1b_angular_10M_reconstructed.json"),
    ],
)
def test_the_shipped_mean_angles_come_out_of_the_recovered_matrices(model, file):
    rows = json.loads(reference(file))["lower_triangle_rows"][:-1]
    matrix = np.zeros((len(rows), len(rows)))
    for layer, row in enumerate(rows):
        matrix[layer, : len(row)] = matrix[: len(row), layer] = row
    names = tuple(f"layers.{layer}" for layer in range(len(rows)))
    distances = Distances(names, matrix, "angular", 1)
    groupings = json.loads(reference("groupings.json"))[model]["hierarchical"]
    for groups, shipped in zip(
        published_tables()[model]["groups"], published_tables()[model]["mean-angle"], strict=True
    ):
        labels = groupings[str(groups)]["labels"]
        assert mean_angle(distances, Partition.from_labels(names, labels)) / len(names) == pytest.approx(
            shipped, abs=6e-5
        )


@pytest.mark.parametrize("measure", ["mean-angle", "amad"])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_intervals_hold_the_published_values_as_often_as_they_say(quantity, measure):
    held = []
    column = QUANTITIES[quantity]
    for table in published_tables().values():
        for proxy, value in zip(table[measure], table.get(column, ()), strict=False):
            prediction = predict_excess(proxy, quantity, measure, probability=0.8)
            held.append(prediction.low <= value / table[f"{column}_per_layer"] - 1 <= prediction.high)
    assert np.mean(held) >= 0.8


def test_the_excess_is_nearly_in_proportion_to_the_mean_angle():
    assert 0.85 < published_law("fvu").exponent < 1.15
    assert 0.85 < published_law("delta_ce").exponent < 1.15


def test_the_mean_angle_predicts_better_than_amad():
    for quantity in QUANTITIES:
        assert published_law(quantity, "mean-angle").spread < published_law(quantity, "amad").spread


def test_one_sae_per_layer_has_no_excess():
    prediction = predict_excess(0.0)
    assert (prediction.value, prediction.low, prediction.high) == (0, 0, 0)


def test_more_probability_needs_a_wider_interval():
    narrow, wide = (predict_excess(0.1, probability=probability) for probability in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((-0.1,), "0 or more"),
        ((float("nan"),), "0 or more"),
        ((0.1, "kl"), "known are fvu, delta_ce"),
        ((0.1, "fvu", "diameter"), "mean-angle, amad"),
        ((0.1, "fvu", "amad", 1.0), "between 0 and 1"),
    ],
)
def test_an_impossible_prediction_is_an_error(call, message):
    with pytest.raises(ConfigError, match=message):
        predict_excess(*call)


# ---- with a pilot

LAYERS = ("layers.0", "layers.1", "layers.2")
TOKENS = (5e3, 1e4, 2e4)
TRUTH = {"alpha": (-1.5, -1.0, -0.9), "a": (0.40, 0.22, 0.20), "c": 1.6, "p": 1.1}


def true_fvu(layer, proxy, tokens):
    place = LAYERS.index(layer)
    alone = np.exp(TRUTH["alpha"][place]) * (tokens / 2e4) ** -TRUTH["a"][place]
    return alone * (1 + TRUTH["c"] * proxy ** TRUTH["p"])


def pilot(noise=0.0, proxies=(0.0, 0.08, 0.15), tokens=TOKENS):
    random = np.random.default_rng(0)
    return [
        PilotPoint(layer, proxy, count, true_fvu(layer, proxy, count) * np.exp(noise * random.standard_normal()))
        for layer in LAYERS
        for proxy in proxies
        for count in tokens
    ]


def spread_out(proxy):
    return dict.fromkeys(LAYERS, proxy)


def test_a_law_predicts_groups_and_tokens_that_the_pilot_did_not_try():
    law = fit_pilot(pilot(noise=0.01))
    for proxy in (0.0, 0.05, 0.12):
        for tokens in (1e4, 4e5):
            expected = np.mean([true_fvu(layer, proxy, tokens) for layer in LAYERS])
            prediction = law.predict(spread_out(proxy), tokens)
            assert prediction.value == pytest.approx(expected, rel=0.1)
            assert prediction.low < expected < prediction.high


def test_the_increases_interval_holds_what_is_measured_as_often_as_it_says():
    """Pilots, and then suites, whose ln FVU scatters around the law by 0.03 at each layer on its own."""
    random, held, wide = np.random.default_rng(1), 0, 0
    proxies, trials = dict(zip(LAYERS, (0.0, 0.1, 0.12), strict=True)), 100
    for _ in range(trials):
        points = [
            PilotPoint(point.layer, point.proxy, point.num_tokens, point.fvu * np.exp(0.03 * random.standard_normal()))
            for point in pilot()
        ]
        law = fit_pilot(points)
        found = law.predict_increase(proxies, 2e5, 0.8)
        alone = {layer: true_fvu(layer, 0.0, 2e5) * np.exp(0.03 * random.standard_normal()) for layer in LAYERS}
        grouped = alone | {
            layer: true_fvu(layer, proxy, 2e5) * np.exp(0.03 * random.standard_normal())
            for layer, proxy in proxies.items()
            if proxy
        }
        held += found.low <= sum(grouped.values()) / sum(alone.values()) - 1 <= found.high
        base = law.predict(dict.fromkeys(LAYERS, 0.0), 2e5).value
        fvu = law.predict(proxies, 2e5)
        wide += (fvu.high - fvu.low) / base > 1.2 * (found.high - found.low)
    assert 0.72 < held / trials < 0.9
    assert wide == trials


def test_the_increase_is_the_ratio_of_the_predictions():
    law, proxies = fit_pilot(pilot(0.01)), dict(zip(LAYERS, (0.0, 0.1, 0.12), strict=True))
    expected = law.predict(proxies, 1e5).value / law.predict(spread_out(0.0), 1e5).value - 1
    found = law.predict_increase(proxies, 1e5)
    assert found.value == pytest.approx(expected) and found.low < found.value < found.high
    none = law.predict_increase(spread_out(0.0), 1e5)
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_the_prediction_for_a_partition_is_the_mean_over_its_layers():
    law = fit_pilot(pilot())
    proxies = dict(zip(LAYERS, (0.0, 0.1, 0.1), strict=True))
    expected = np.mean([law.predict({layer: proxy}, 5e5).value for layer, proxy in proxies.items()])
    assert law.predict(proxies, 5e5).value == pytest.approx(expected)


def test_a_layer_that_is_easy_is_not_predicted_by_one_that_is_hard():
    law = fit_pilot(pilot())
    assert law.predict({"layers.0": 0.0}, 2e4).value == pytest.approx(np.exp(-1.5), rel=0.02)
    assert law.predict({"layers.2": 0.0}, 2e4).value == pytest.approx(np.exp(-0.9), rel=0.02)


def test_a_longer_extrapolation_is_less_certain():
    law = fit_pilot(pilot(noise=0.02))
    near, far = (law.predict(spread_out(0.1), tokens) for tokens in (4e4, 4e6))
    assert np.log(far.high / far.low) > np.log(near.high / near.low)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "too small"),
        (pilot(tokens=(1e4,)), "too small"),
        (pilot(proxies=(0.1,)), "too small"),
        ([PilotPoint("layers.0", 0.1, 1e5, float("nan"))], "impossible"),
        ([PilotPoint("layers.0", -0.1, 1e5, 0.1)], "impossible"),
    ],
)
def test_a_pilot_that_decides_nothing_is_an_error(points, message):
    with pytest.raises(ConfigError, match=message):
        fit_pilot(points)


@pytest.mark.parametrize(
    "call", [({"layers.0": 0.1}, 0), ({"layers.9": 0.1}, 1e5), ({"layers.0": -1.0}, 1e5), ({}, 1e5)]
)
def test_a_law_has_no_value_for_what_it_has_not_seen(call):
    with pytest.raises(ConfigError, match="layers must be among"):
        fit_pilot(pilot()).predict(*call)


# ---- choosing

OPTIONS = [Option(groups, spread_out(0.3 / groups**1.2), 1e6 + 3e5 * groups) for groups in range(1, 12)]


def test_the_dearer_an_sae_beside_the_model_the_fewer_groups_are_best():
    law = fit_pilot(pilot())
    dear = [Option(option.groups, option.proxies, 1e6 + 3e6 * option.groups) for option in OPTIONS]
    best = [compute_optimal(law, options, 1e12)[0].option.groups for options in (dear, OPTIONS)]
    assert best[0] < best[1]


def test_a_budget_is_spent_whole_and_the_best_comes_first():
    allocations = compute_optimal(fit_pilot(pilot()), OPTIONS, 1e12)
    assert all(a.num_tokens * a.option.flops_per_token == pytest.approx(1e12) for a in allocations)
    values = [a.fvu.value for a in allocations]
    assert len(values) == len(OPTIONS)
    assert values == sorted(values)


def test_options_that_get_too_few_tokens_are_left_out():
    allocations = compute_optimal(fit_pilot(pilot()), OPTIONS, 2e11, least_tokens=1e5)
    assert {a.option.groups for a in allocations} == {1, 2, 3}


def test_a_budget_that_nothing_meets_is_an_error_that_names_the_cheapest():
    with pytest.raises(ConfigError, match=r"cheapest, 1 group\(s\), takes 1.3e\+11"):
        compute_optimal(fit_pilot(pilot()), OPTIONS, 1e10, least_tokens=1e5)


def test_the_cheapest_option_within_a_quality_is_taken():
    increases = [0.5 / option.groups for option in OPTIONS]
    assert cheapest_within(OPTIONS, increases, 0.12).groups == 5


def test_a_quality_that_nothing_meets_is_an_error_that_names_the_smallest():
    with pytest.raises(ConfigError, match=r"smallest predicted is 0\.0455"):
        cheapest_within(OPTIONS, [0.5 / option.groups for option in OPTIONS], 0.01)
