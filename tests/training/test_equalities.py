"""Trainings that must give the same bytes, and trainings that must not."""

import pytest
import torch
from training_cases import PAIRS, SAE, TRAIN, Log, equal, make_source, run, weights

from groupsae.activations.source import SyntheticSource
from groupsae.config import BatchTopKConfig, TopKConfig, TrainConfig
from groupsae.errors import ConfigError, PartitionError
from groupsae.partition import Partition
from groupsae.training.fit import measure_scales
from groupsae.training.trainer import TrainJob, train, train_together

HOOKPOINTS = ("layers.0", "layers.1", "layers.2")


def layer_alone(source, hookpoint):
    """The same activations, of one layer only."""

    class OneLayer:
        hookpoints = (hookpoint,)
        d_model, num_rows, row_tokens = source.d_model, source.num_rows, source.row_tokens
        batch_rows, device, num_masked = source.batch_rows, source.device, 0

        def read(self, rows):
            index = source.hookpoints.index(hookpoint)
            return source.read(rows)[index : index + 1]

    return OneLayer()


def test_singletons_in_one_pass_equal_each_layer_trained_alone():
    together = weights(run(Partition.singletons(HOOKPOINTS).groups))
    alone = {}
    for hookpoint in HOOKPOINTS:
        alone |= weights(run([(hookpoint,)], source=layer_alone(make_source(), hookpoint)))
    assert equal(together, alone)


@pytest.mark.parametrize("center", [False, True])
def test_a_group_trains_alike_whether_or_not_a_baseline_trains_beside_it(center):
    settings = TRAIN.model_copy(update={"center": center})
    alone = weights(run(PAIRS.groups, train=settings))
    beside = weights(run([*Partition.singletons(HOOKPOINTS).groups, *PAIRS.groups], train=settings))
    assert equal(alone, {name: beside[name] for name in alone})


def test_a_group_of_two_suites_is_trained_once():
    trained = run([("layers.1",), *PAIRS.groups])
    assert list(trained.saes) == ["layers.1", "layers.0+2"]


def test_the_order_in_which_a_group_names_its_layers_does_not_matter():
    assert equal(weights(run([("layers.2", "layers.0")])), weights(run([("layers.0", "layers.2")])))


def test_two_runs_with_one_seed_give_the_same_bytes():
    torch.manual_seed(1)
    first = weights(run())
    torch.manual_seed(2)
    assert equal(first, weights(run()))


def test_another_seed_gives_other_weights():
    one, other = weights(run(seed=0)), weights(run(seed=1))
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_training_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("every", [1, 64, 333, 10**9])
def test_watching_does_not_change_what_is_trained(every):
    settings = TRAIN.model_copy(update={"log_every_tokens": every})
    watched = run(train=settings, log=Log(), progress=lambda tokens: None)
    assert equal(weights(watched), weights(run()))


@pytest.mark.parametrize("every", [1, 333, 10**9])
def test_saving_does_not_change_what_is_trained(tmp_path, every):
    settings = TRAIN.model_copy(update={"save_every_tokens": every})
    assert equal(weights(run(train=settings, folder=tmp_path)), weights(run()))


def test_the_portions_in_which_rows_are_read_do_not_matter():
    few, many = make_source(), make_source()
    few.batch_rows, many.batch_rows = 1, 7
    one, other = weights(run(source=few)), weights(run(source=many))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_the_whole_suite_is_trained_on_the_tokens_asked_for():
    seen = []
    run(progress=seen.append)
    assert sum(seen) == TRAIN.num_tokens


def test_all_groups_of_a_step_see_the_same_tokens_read_once():
    source = make_source()
    reads = []
    read = source.read
    source.read = lambda rows: reads.append(len(rows)) or read(rows)
    run([*Partition.singletons(HOOKPOINTS).groups, *PAIRS.groups], source=source)
    rows_per_block, rows_for_scale = 128 // 16, 2 * 24
    blocks = -(-1000 // 128)
    assert sum(reads) == blocks * rows_per_block + rows_for_scale


def test_with_every_layer_of_a_token_groups_train_alike_alone_and_beside_a_baseline():
    every = TRAIN.model_copy(update={"layers_per_token": "all"})
    beside = weights(run([*Partition.singletons(HOOKPOINTS).groups, *PAIRS.groups], train=every))
    alone = weights(run([PAIRS.groups[0]], train=every))
    assert all(torch.equal(tensor, beside[name]) for name, tensor in alone.items())
    one_layer = weights(run([*Partition.singletons(HOOKPOINTS).groups, *PAIRS.groups]))
    singles = [name for name in beside if "+" not in name and not name.startswith(PAIRS.names[0])]
    assert singles and all(torch.equal(one_layer[name], beside[name]) for name in singles)
    assert not all(torch.equal(one_layer[name], tensor) for name, tensor in alone.items())


def test_with_every_layer_of_a_token_a_group_of_two_reads_half_the_text_and_then_its_layers_are_left_out():
    every = TRAIN.model_copy(update={"layers_per_token": "all"})
    source = make_source()
    reads, narrowed = [], source.narrowed
    read = source.read
    source.read = lambda rows: reads.append((3, len(rows))) or read(rows)

    def watched(hookpoints):
        narrow = narrowed(hookpoints)
        narrow.read = lambda rows: reads.append((len(hookpoints), len(rows))) or type(narrow).read(narrow, rows)
        return narrow

    source.narrowed = watched
    run(source=source, train=every)
    rows_per_block, rows_for_scale = 8, 2 * 24
    tokens_of_three = sum(rows for layers, rows in reads if layers == 3) - rows_for_scale
    assert tokens_of_three * 16 == 512  # 500 tokens at each layer of the pair, in whole blocks
    assert sum(rows for layers, rows in reads if layers == 1) == (8 - 4) * rows_per_block


# ---- what training achieves


def test_training_lowers_the_share_of_variance_that_is_unexplained():
    log = Log()
    run(train=TRAIN.model_copy(update={"num_tokens": 6000, "learning_rate": 1e-2}), log=log)
    for group in PAIRS.names:
        fvu = [record["groups"][group]["fvu"] for record in log.records]
        assert fvu[-1] < 0.6 * fvu[0]


def test_a_group_that_is_not_contiguous_serves_each_layer_in_its_own_units():
    source = make_source(drift=0.05)
    suite = train(
        source, PAIRS, TopKConfig(d_sae=64, k=6), TrainConfig(num_tokens=20_000, batch_tokens=64, learning_rate=1e-2),
        buffer_tokens=256,
    )  # fmt: skip
    x_LND = source.read(range(40))
    for layer, hookpoint in enumerate(source.hookpoints):
        x_ND = x_LND[layer]
        error = (suite[hookpoint](x_ND) - x_ND).square().sum() / (x_ND - x_ND.mean(0)).square().sum()
        assert error < 0.5
    scale_L = suite.scales.scale_L
    assert scale_L[0] > 1.3 * scale_L[2]


def test_the_learning_rate_follows_the_tokens_seen_before_each_step():
    log = Log()
    run(train=TRAIN.model_copy(update={"decay_share": 0.5, "log_every_tokens": 1}), log=log)
    seen = [0, *(record["tokens"] for record in log.records)]
    for before, record in zip(seen, log.records, strict=False):
        expected = 3e-3 * min(1, (1 - before / 1000) / 0.5)
        assert record["groups"]["layers.1"]["learning_rate"] == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_logged_values_are_of_the_steps_since_the_last_record(share):
    log, every = Log(), Log()
    settings = TRAIN.model_copy(update={"decay_share": share})
    run(train=settings, log=log)
    run(train=settings.model_copy(update={"log_every_tokens": 1}), log=every)
    assert len(every.records) == every.records[-1]["step"]
    begin = 0
    for record in log.records:
        steps = [r["groups"]["layers.1"] for r in every.records[begin : record["step"]]]
        begin = record["step"]
        found = record["groups"]["layers.1"]
        assert found["loss"] == pytest.approx(sum(s["loss"] for s in steps) / len(steps))
        assert found["dead_share"] == pytest.approx(sum(s["dead_share"] for s in steps) / len(steps))
        assert found["learning_rate"] == steps[-1]["learning_rate"]
        assert 0 < found["l0"] <= SAE.k
    assert begin == len(every.records)


def test_logged_l0_counts_only_what_fired():
    log = Log()
    run(sae=SAE.model_copy(update={"k": 24}), log=log)
    assert all(0 < record["groups"]["layers.1"]["l0"] < 20 for record in log.records)


# ---- what is refused before anything is read


class Unreadable(SyntheticSource):
    def read(self, rows):
        raise AssertionError("read before the request was checked")


def test_a_hookpoint_that_is_not_read_is_refused():
    with pytest.raises(PartitionError, match=r"layers\.9 are not read"):
        train(Unreadable(), Partition((("layers.0", "layers.9"),)), SAE, TRAIN)


def test_a_layer_that_stands_twice_in_a_group_is_refused():
    with pytest.raises(PartitionError, match="more than once"):
        run([("layers.0", "layers.0")])


def test_more_kept_latents_than_there_are_is_refused_before_reading():
    with pytest.raises(ConfigError, match="lower k"):
        train(Unreadable(), PAIRS, TopKConfig(expansion=0.5, k=9), TRAIN)


def test_a_buffer_smaller_than_a_batch_is_refused():
    with pytest.raises(ConfigError, match="buffer_tokens = 32"):
        train(Unreadable(), PAIRS, SAE, TRAIN, buffer_tokens=32)


@pytest.mark.parametrize("num_tokens", [1, 2, 129, 193])
def test_a_last_batch_of_very_few_tokens_does_not_spoil_weights_or_records(num_tokens):
    log = Log()
    trained = run(train=TRAIN.model_copy(update={"num_tokens": num_tokens}), log=log)
    assert all(record["groups"][group]["loss"] < 10 for record in log.records for group in PAIRS.names)
    assert all(torch.isfinite(tensor).all() for tensor in weights(trained).values())


MEMBERS = {
    "few": (TopKConfig(d_sae=24, k=2, dead_after_tokens=150), 0),
    "many": (TopKConfig(d_sae=24, k=6, dead_after_tokens=150), 0),
    "another seed": (SAE, 5),
    "wide": (TopKConfig(d_sae=40, k=3, dead_after_tokens=150), 0),
    "nested": (TopKConfig(d_sae=24, k=3, nested_k=(1, 3, 6), dead_after_tokens=150), 0),
    "another architecture": (BatchTopKConfig(d_sae=24, k=3, dead_after_tokens=150), 0),
}


def together(names, layers_per_token):
    """The SAEs of these members of a sweep, by member and group, trained side by side."""
    source, settings = make_source(), TRAIN.model_copy(update={"layers_per_token": layers_per_token})
    scales = measure_scales(source, settings.scale_tokens, center=settings.center)
    jobs = {
        f"{name}/{number}": TrainJob(group, settings, sae=MEMBERS[name][0], seed=MEMBERS[name][1])
        for name in names
        for number, group in enumerate(PAIRS.groups)
    }
    return weights(train_together(source, jobs, scales, SAE, settings, seed=0, buffer_tokens=128))


@pytest.mark.parametrize("layers_per_token", [1, "all"])
def test_the_members_of_a_sweep_train_as_each_would_alone(layers_per_token):
    found = together(MEMBERS, layers_per_token)
    for name in MEMBERS:
        alone = together([name], layers_per_token)
        assert alone and equal(alone, {key: found[key] for key in alone})


def test_a_jobs_seed_is_the_whole_trainings_where_it_has_none():
    plain, other = run(), together(["another seed"], 1)
    names = list(plain.saes)
    assert not torch.equal(plain.saes[names[0]].W_enc, other["another seed/0/W_enc"])
    scales = measure_scales(make_source(), TRAIN.scale_tokens, center=TRAIN.center)
    jobs = {name: TrainJob(group, TRAIN) for name, group in zip(names, PAIRS.groups, strict=True)}
    again = train_together(make_source(), jobs, scales, SAE, TRAIN, seed=0, buffer_tokens=128)
    assert equal(weights(plain), weights(again))
