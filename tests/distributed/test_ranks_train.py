"""Training on several ranks gives the same bytes as on one."""

import json

import pytest
import torch
from rank_processes import run_ranks
from safetensors.torch import load_file

from groupsae.activations.source import SyntheticSource
from groupsae.config import TopKConfig, TrainConfig
from groupsae.partition import Partition, group_name
from groupsae.training.checkpoint import Checkpoints
from groupsae.training.fit import measure_scales
from groupsae.training.hooks import Hooks
from groupsae.training.log import LogFile
from groupsae.training.trainer import train_groups

SAE = TopKConfig(d_sae=24, k=3, dead_after_tokens=150)
TRAIN = TrainConfig(
    num_tokens=1000,
    batch_tokens=64,
    learning_rate=3e-3,
    scale_tokens=300,
    log_every_tokens=150,
    save_every_tokens=250,
)
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("alone")
    (weights,) = run_ranks(1, lambda ranks: train_in(folder, ranks))
    return weights, left_in(folder)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_leave_the_same_bytes_as_one_process(alone, tmp_path, size):
    told = run_ranks(size, lambda ranks: train_in(tmp_path, ranks))
    weights = {name: tensors for one in told for name, tensors in one.items()}
    assert sum(map(len, told)) == len(alone[0]) and weights.keys() == alone[0].keys()
    assert all(torch.equal(weights[name][key], t) for name, tensors in alone[0].items() for key, t in tensors.items())
    assert left_in(tmp_path) == alone[1]
