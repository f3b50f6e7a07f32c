"""The plan stage on the tiny run: prices, budgets, the pilot, and planning without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groupsae.planning.memory import Available
from groupsae.recipes import pilot as pilot_recipe
from groupsae.recipes import plan as plan_recipe
from groupsae.records.types.plan import PlanRecord

ROOT = Path(__file__).parents[1]


def plan_of(call, run, *flags):
    code, out, err = call("plan", run, "--overwrite", "--json", *flags)
    assert code == 0, err
    return PlanRecord.model_validate_json(out)


def refused(call, run, *flags):
    code, _, err = call("plan", run, "--overwrite", *flags)
    assert code == 2 and "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_every_number_of_groups_is_priced_by_every_method(done, call):
    plan = plan_of(call, done)
    assert set(plan.candidates) == {"optimal", "complete", "published", "equal"}
    for rows in plan.candidates.values():
        assert [row.num_groups for row in rows] == [1, 2, 3]
        totals = [row.cost.own_flops for row in rows]
        assert totals == sorted(totals) and totals[0] < totals[-1]
        assert all(row.cost.host_bytes > 0 and row.disk_bytes > 0 for row in rows)


def test_sharing_is_predicted_to_cost_quality_and_one_sae_per_layer_none(done, call):
    increases = [row.fvu_increase.value for row in plan_of(call, done).own_candidates]
    assert increases == sorted(increases, reverse=True)
    assert increases[-1] == 0 < increases[0]


def test_what_sharing_costs_the_model_is_predicted_as_well(done, call):
    rows = plan_of(call, done).own_candidates
    assert rows[0].delta_ce_increase.value > rows[1].delta_ce_increase.value > 0


def test_distances_of_other_hookpoints_are_refused(done, call):
    record = json.loads((done / "distances.json").read_text())
    record["hookpoints"] = [name.replace("layers", "blocks") for name in record["hookpoints"]]
    (done / "distances.json").write_text(json.dumps(record, indent=1) + "\n")
    code, _, err = call("group", done, "--overwrite")
    assert code == 2 and "blocks.0" in err and "groupsae distances" in err


def test_calibration_gives_seconds_and_none_without_it(done, call):
    assert plan_of(call, done, "--no-calibrate").run.seconds is None
    timed = plan_of(call, done, "--calibrate")
    assert timed.cache.num_tokens > 0 and timed.cache.size_bytes > timed.cache.num_tokens
    assert plan_of(call, done, "--no-calibrate").cache is None
    assert timed.run.seconds > timed.own_candidates[-1].seconds > timed.own_candidates[0].seconds > 0


def test_the_run_is_priced_with_its_baseline_and_shared_saes_once(done, call):
    plan = plan_of(call, done)
    groups = {group for partition in plan.partitions.values() for group in partition.groups}
    steps = plan.run.own_mflop.saes
    assert steps == pytest.approx(len(groups) * plan.own_candidates[0].cost.own_mflop.saes)


def test_a_budget_takes_the_most_groups_within_it(done, call):
    totals = [row.cost.own_flops for row in plan_of(call, done).own_candidates]
    for groups, total in enumerate(totals, start=1):
        assert plan_of(call, done, "--budget-flops", total).choice.num_groups == groups


def test_a_budget_that_nothing_meets_names_the_cheapest(done, call):
    cheapest = plan_of(call, done).own_candidates[0].cost.own_flops
    assert f"{cheapest:.3g}" in refused(call, done, "--budget-flops", "1000")


def test_a_bound_on_quality_takes_the_fewest_groups_within_it(done, call):
    rows = plan_of(call, done).own_candidates
    for row in rows[:-1]:
        bound = row.fvu_increase.value * 1.001
        assert plan_of(call, done, "--max-fvu-increase", bound).choice.num_groups == row.num_groups


def test_a_refused_plan_leaves_the_run_as_it_was(done, call):
    before = (done / "config.toml").read_bytes()
    refused(call, done, "--budget-flops", "1000")
    assert (done / "config.toml").read_bytes() == before
    stages = json.loads(call("show", done, "--json")[1])["stages"]
    assert {facts["status"] for facts in stages.values()} == {"done"}


def test_two_rules_at_once_are_refused(done, call):
    assert "both set" in refused(call, done, "--budget-flops", "1e12", "--max-fvu-increase", "0.1")


def test_what_the_plan_chooses_is_trained(done, call):
    totals = [row.cost.own_flops for row in plan_of(call, done).own_candidates]
    plan_of(call, done, "--budget-flops", totals[0])
    assert call("train", done, "--overwrite")[0] == 0
    assert len(json.loads((done / "suite.json").read_text())["groups"]) == 1


def test_a_plan_that_only_looks_leaves_training_done(done, call):
    plan_of(call, done, "--calibrate")
    assert json.loads(call("show", done, "--json")[1])["stages"]["train"]["status"] == "done"


def test_a_run_that_does_not_fit_is_refused_with_one_that_does(done, call, monkeypatch):
    needed = plan_of(call, done).run.host_bytes
    monkeypatch.setattr(plan_recipe, "available", lambda folder: Available(host=needed - 1))
    code, out, err = call("plan", done, "--overwrite")
    assert code == 2
    assert "does not fit" in err and "Lower " in err
    assert "what complete partitions cost" in out


def test_a_pilot_predicts_fvu_with_an_interval(done, call, monkeypatch):
    monkeypatch.setattr(pilot_recipe, "SHARE_OF_RUN", 2.0)
    plan = plan_of(call, done, "--pilot")
    for row in plan.own_candidates:
        assert 0 < row.fvu.low < row.fvu.value < row.fvu.high
    assert plan.compute_optimal.num_groups in (1, 2, 3)


@pytest.mark.parametrize("pilot_saes", [4, 6])
@pytest.mark.parametrize("run_saes", [9, 30])
def test_a_pilot_costs_at_most_two_percent(pilot_saes, run_saes):
    most = pilot_recipe.pilot_tokens(pilot_saes, run_saes, 1_000_000)
    spent = pilot_saes * sum(int(most * stretch) for stretch in pilot_recipe.STRETCHES)
    assert 0.0199 < spent / (run_saes * 1_000_000) <= 0.02


@pytest.mark.parametrize(
    ("model", "groups", "chosen", "baseline"),
    [("160m", 6, 773.8, 1245.7), ("410m", 9, 2214.6, 4563.4), ("1b", 6, 5771.4, 11811.2)],
)
def test_published_costs_come_out_of_a_config_file_alone(model, groups, chosen, baseline, tmp_path, monkeypatch, call):
    monkeypatch.chdir(ROOT)
    code, out, err = call("plan", f"configs/plan-pythia-{model}.toml", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    plan = PlanRecord.model_validate_json(out)
    total = {row.num_groups: row.published_mflop for row in plan.own_candidates}
    assert (round(total[groups], 1), round(total[len(total)], 1)) == (chosen, baseline)
    assert plan.choice.num_groups == groups
    assert all(row.own_mflop < row.published_mflop for row in plan.own_candidates)


# ---- every layer of a token


def test_every_layer_of_a_token_takes_less_of_the_model_and_as_much_of_the_saes(done, call):
    alone = ("--train.no-baseline", "--no-calibrate")
    one = plan_of(call, done, *alone)
    every = plan_of(call, done, *alone, "--train.layers-per-token", "all")
    for a, b in zip(one.own_candidates, every.own_candidates, strict=True):
        largest = max(map(len, a.groups))
        cheaper = b.cost.own_flops < a.cost.own_flops
        assert cheaper == (min(map(len, a.groups)) > 1 or largest > 1), a.groups


def test_a_small_buffer_is_warned_of_where_every_layer_of_a_token_is_trained_on(done, call):
    flags = ("--overwrite", "--no-calibrate", "--train.no-baseline")
    _, _, err = call("plan", done, *flags, "--train.layers-per-token", "all")
    assert "warning" in err and "buffer_tokens" in err
    _, _, err = call("plan", done, *flags, "--train.layers-per-token", "1")
    assert "warning" not in err and 'layers_per_token = "all" takes several times less text' in err
