"""Training on several ranks gives the same bytes as on one."""

import json
import os
import platform
import random
import signal
import time

import pytest
import torch
from rank_processes import Failed, run_ranks, spawn_ranks, wait
from safetensors.torch import load_file
from training_cases import SAE, TRAIN

from groupsae.activations.source import SyntheticSource
from groupsae.config import GatedConfig
from groupsae.distributed.ranks import ALONE
from groupsae.errors import Interrupted
from groupsae.partition import Partition, group_name
from groupsae.training.checkpoint import Checkpoints
from groupsae.training.fit import measure_scales
from groupsae.training.hooks import Hooks
from groupsae.training.log import LogFile
from groupsae.training.trainer import train_groups

LAYERS = tuple(f"layers.{layer}" for layer in range(4))
FIVE = (LAYERS[:2], LAYERS[2:], (LAYERS[0],), (LAYERS[1],), (LAYERS[3],))


def train_in(folder, ranks, groups=FIVE, train=TRAIN, sae=SAE, buffer_tokens=400, read_cost=0.0, **hooks):
    """Train in a folder as one of the ranks; the SAEs' weights that this rank has."""
    source = SyntheticSource(num_layers=4, d_model=8, num_rows=41, row_tokens=16)
    source.batch_rows = 3
    scales = measure_scales(source, train.scale_tokens)
    log = LogFile(folder / "metrics.jsonl")
    groups = [Partition((group,)).groups[0] for group in groups]
    checkpoints = Checkpoints(folder, "a", logs=[log], ranks=ranks)
    trained = train_groups(
        source,
        groups,
        scales,
        sae,
        train,
        seed=0,
        buffer_tokens=buffer_tokens,
        checkpoints=checkpoints,
        hooks=Hooks(log=lambda record: log.append(without(record, "seconds")), **hooks),
        ranks=ranks,
        read_cost=read_cost,
    )
    assert list(trained.lineages) == [group_name(group) for group in groups]
    return {name: {key: t.clone() for key, t in sae.state_dict().items()} for name, sae in trained.saes.items()}


def without(record, *names):
    return {key: value for key, value in record.items() if key not in names}


def left_in(folder):
    """All that training left: weights, moments and counters to the bit, manifests but for seconds, the log's bytes."""
    found = {"metrics.jsonl": (folder / "metrics.jsonl").read_bytes()}
    for path in sorted(folder.glob("checkpoints/*")):
        found[path.name] = without(json.loads(path.read_text()), "seconds")
    for path in sorted(folder.glob("groups/*/*")):
        found[str(path.relative_to(folder))] = {
            name: (t.dtype, t.numpy().tobytes()) for name, t in load_file(path).items()
        }
    return found


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """What one process leaves: this one, so that its forks have imported all that they need."""
    folder = tmp_path_factory.mktemp("alone")
    return train_in(folder, ALONE), left_in(folder)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_leave_the_same_bytes_as_one_process(alone, tmp_path, size):
    told = run_ranks(size, lambda ranks: train_in(tmp_path, ranks))
    weights = {name: tensors for one in told for name, tensors in one.items()}
    assert sum(map(len, told)) == len(alone[0]) and weights.keys() == alone[0].keys()
    assert all(torch.equal(weights[name][key], t) for name, tensors in alone[0].items() for key, t in tensors.items())
    assert left_in(tmp_path) == alone[1]


# ---- stops and failures


def interrupted(folder, ranks, rank, step, **options):
    """Train until a signal reaches one rank after so many steps; the step at which each rank was told to leave."""
    count = 0

    def stop():
        return 15 if ranks.rank == rank and count >= step else 0

    def progress(tokens):
        nonlocal count
        count += 1

    try:
        train_in(folder, ranks, stop=stop, progress=progress, **options)
    except Interrupted as stopped:
        return str(stopped)
    return "finished"


@pytest.mark.parametrize(("before", "after"), [(4, 3), (2, 1), (1, 4)])
def test_a_signal_to_one_rank_ends_all_and_another_number_of_ranks_goes_on(alone, tmp_path, before, after):
    told = run_ranks(before, lambda ranks: interrupted(tmp_path, ranks, before - 1, 5))
    assert len(set(told)) == 1 and told[0].startswith("Stopped after step")
    run_ranks(after, lambda ranks: train_in(tmp_path, ranks))
    found = left_in(tmp_path)
    assert without(found, "checkpoints") == alone[1]


@pytest.mark.parametrize("stop_below", [50.0, 200.0])
def test_groups_that_end_early_end_alike_on_every_number_of_ranks(tmp_path, stop_below):
    train = TRAIN.model_copy(update={"stop_below": stop_below, "stop_window_tokens": 128, "num_tokens": 2000})
    found = {}
    for size in (1, 2, 3):
        (tmp_path / str(size)).mkdir()
        run_ranks(size, lambda ranks, size=size: train_in(tmp_path / str(size), ranks, train=train) and None)
        found[size] = left_in(tmp_path / str(size))
    assert found[1] == found[2] == found[3]
    last = max(int(name[5:-5]) for name in found[1] if name.startswith("step-"))
    assert last < 2000 / 64


def test_all_layers_of_a_token_are_trained_on_alike(tmp_path):
    train = TRAIN.model_copy(update={"layers_per_token": "all"})
    for size in (1, 3):
        (tmp_path / str(size)).mkdir()
        run_ranks(size, lambda ranks, size=size: train_in(tmp_path / str(size), ranks, train=train) and None)
    assert left_in(tmp_path / "1") == left_in(tmp_path / "3")


def test_more_ranks_than_groups_that_are_not_cut_read_more_and_train_nothing(tmp_path):
    sae = GatedConfig(d_sae=24, k=3, dead_after_tokens=150)
    options = {"groups": FIVE[:2], "sae": sae, "buffer_tokens": 100, "read_cost": 1000.0}
    for size in (1, 4):
        (tmp_path / str(size)).mkdir()
        told = run_ranks(size, lambda ranks, size=size: len(train_in(tmp_path / str(size), ranks, **options)))
    assert told == [1, 1, 0, 0]
    assert left_in(tmp_path / "1") == left_in(tmp_path / "4")


def test_an_error_on_one_rank_is_told_by_all(tmp_path):
    def work(ranks):
        def progress(tokens):
            if ranks.rank == 1:
                raise ValueError("no\nmore")

        train_in(tmp_path, ranks, progress=progress)

    with pytest.raises(Failed) as failed:
        run_ranks(3, work)
    cause = f"rank 1 on {platform.node()} failed first: ValueError: no more"
    for rank, told in enumerate(str(failed.value).split("rank ")[1:4]):
        assert ("ValueError" in told) if rank == 1 else True
    assert str(failed.value).count(f"RanksError: {cause}") >= 2


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_nobody_hangs_when_a_rank_is_killed_and_the_restart_ends_in_the_same_bytes(alone, tmp_path, victim):
    said = tmp_path / "said"
    said.mkdir()
    pids = spawn_ranks(3, lambda ranks: train_in(tmp_path, ranks, progress=lambda _: time.sleep(0.05)), said)
    while not list(tmp_path.glob("checkpoints/*")):
        time.sleep(0.01)
    os.kill(pids[victim], signal.SIGKILL)
    began = time.monotonic()
    codes = [wait(pid) for pid in pids]
    assert codes[victim] == -signal.SIGKILL and all(codes)
    assert time.monotonic() - began < 20
    errors = [(said / f"error-{rank}").read_text() for rank in range(3) if rank != victim]
    if victim:  # rank 0 keeps the store here, which torchrun's agent does otherwise
        assert any(f"rank {victim} on {platform.node()} was lost" in error for error in errors), errors
    run_ranks(2, lambda ranks: train_in(tmp_path, ranks))
    assert left_in(tmp_path) == alone[1]


@pytest.mark.slow
def test_twenty_kills_at_random_moments(alone, tmp_path):
    moments = random.Random(0)
    for number in range(20):
        size, folder = moments.choice([2, 3, 4]), tmp_path / str(number)
        (folder / "said").mkdir(parents=True)
        slowly = lambda ranks, folder=folder: train_in(folder, ranks, progress=lambda _: time.sleep(0.05))  # noqa: E731
        pids = spawn_ranks(size, slowly, folder / "said")
        time.sleep(moments.uniform(0.2, 2.5))
        os.kill(pids[moments.randrange(size)], signal.SIGKILL)
        began = time.monotonic()
        for pid in pids:
            wait(pid)
        assert time.monotonic() - began < 20
        run_ranks(moments.choice([1, 2, 3]), lambda ranks, folder=folder: train_in(folder, ranks))
        assert left_in(folder) == alone[1]
