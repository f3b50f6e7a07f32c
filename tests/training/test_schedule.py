"""When training ends: at its tokens, or early, where the loss has stopped falling."""

import pytest
import torch
from training_cases import PAIRS, TRAIN, Stop, equal, run, state_on_disk, stop_after, weights

from groupsae.training.schedule import Schedule

EARLY = TRAIN.model_copy(update={"stop_below": 1e6, "stop_window_tokens": 150})
"""Any window after the first ends training: no loss falls by all of itself per token."""


def play(schedule, losses, tokens=100):
    for loss in losses:
        if schedule.finished:
            break
        schedule.advance(min(tokens, schedule.left), torch.tensor(loss))
    return schedule


def make(**options):
    settings = {"num_tokens": 10_000, "batch_tokens": 100, "stop_window_tokens": 200} | options
    return Schedule(TRAIN.model_copy(update=settings), torch.device("cpu"))


def test_without_a_bound_no_training_ends_early():
    assert play(make(), [1.0] * 200).seen == 10_000


def test_a_loss_that_falls_fast_enough_goes_on_to_the_end():
    falling = [0.97**step for step in range(200)]  # 6 % per window of 200 tokens: 300 of itself per million
    assert play(make(stop_below=250.0), falling).seen == 10_000
    assert play(make(stop_below=350.0), falling).seen < 10_000


@pytest.mark.parametrize(("share", "end"), [(0.2, 500), (0.5, 800), (0.0, 400)])
def test_the_decay_begins_where_the_loss_stops_falling_and_takes_its_share(share, end):
    schedule = make(stop_below=1.0, decay_share=share)
    play(schedule, [1.0] * 4)
    assert (schedule.seen, schedule.end) == (400, end)
    assert schedule.progress == pytest.approx(1 - share)
    assert play(schedule, [1.0] * 99).seen == end and schedule.finished


def test_a_loss_that_stands_still_during_the_decay_changes_nothing():
    schedule = make(stop_below=1.0, decay_share=1.0)
    assert play(schedule, [1.0] * 200).seen == 10_000


def test_one_noisy_batch_does_not_end_training():
    losses = [0.9**step for step in range(10)]
    losses[5] *= 1.05
    assert play(make(stop_below=1.0), losses).end == 10_000


def test_the_state_restores_everything():
    one, other = make(stop_below=1.0), make(stop_below=1.0)
    play(one, [1.0, 0.9, 0.8])
    other.restore(one.state())
    assert torch.equal(other.state(), one.state())
    assert play(one, [0.8] * 99).end == play(other, [0.8] * 99).end


def test_an_sae_that_has_ended_takes_no_step_and_the_run_ends_with_the_last():
    seen, records = [], []
    trained = run(train=EARLY, progress=seen.append, log=records.append)
    longest = max(sae.lineage.tokens for sae in trained.saes.values())
    assert sum(seen) - TRAIN.batch_tokens < longest <= sum(seen) < TRAIN.num_tokens
    assert records[-1]["tokens"] == sum(seen)
    rates = [values["learning_rate"] for values in records[-1]["groups"].values()]
    assert all(rate < 0.5 * TRAIN.learning_rate for rate in rates)


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_going_on_equals_never_having_stopped_where_training_ends_early(tmp_path, steps):
    settings = EARLY.model_copy(update={"save_every_tokens": 128})
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    expected = weights(run(PAIRS.groups, train=settings, folder=whole))
    with pytest.raises(Stop):
        run(PAIRS.groups, train=settings, folder=parted, progress=stop_after(steps))
    assert equal(weights(run(PAIRS.groups, train=settings, folder=parted)), expected)
    assert equal(state_on_disk(parted)[1], state_on_disk(whole)[1])
    assert equal(weights(run(PAIRS.groups, train=settings, folder=parted)), expected)
