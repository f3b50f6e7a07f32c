"""A training so small that it can be run many times, and what it leaves, to the bit."""

import json
from dataclasses import fields

import torch
from safetensors.torch import load_file

from groupsae.activations.source import SyntheticSource
from groupsae.config import PerLayer, TopKConfig, TrainConfig
from groupsae.partition import Partition
from groupsae.training.checkpoint import Checkpoints
from groupsae.training.fit import fit_layer_maps, measure_scales
from groupsae.training.hooks import Hooks
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
STEPS, NOTHING = 16, PerLayer()
PAIRS = Partition((("layers.0", "layers.2"), ("layers.1",)))


def make_source(**options):
    """Three layers of width 8; 640 tokens, so that training reads them more than once."""
    return SyntheticSource(**{"num_layers": 3, "d_model": 8, "num_rows": 40, "row_tokens": 16} | options)


def run(
    groups=PAIRS.groups,
    *,
    source=None,
    sae=SAE,
    train=TRAIN,
    seed=0,
    folder=None,
    key="a",
    keep=2,
    own=NOTHING,
    **options,
):
    """Train groups, with checkpoints in a folder, if there is one; the options are those of `train_groups` and `Hooks`.

    `own` is what layers have of their own.
    """
    source = source or make_source()
    scales = measure_scales(source, train.scale_tokens, center=train.center, seed=seed)
    checkpoints = folder and Checkpoints(folder, key, keep=keep)
    layer_maps = fit_layer_maps(source, groups, scales, own, train.scale_tokens, d_sae=sae.width(source.d_model))
    hooks = Hooks(**{field.name: options.pop(field.name) for field in fields(Hooks) if field.name in options})
    options = {"hooks": hooks, "buffer_tokens": 128, "checkpoints": checkpoints, "layer_maps": layer_maps} | options
    return train_groups(source, groups, scales, sae, train, seed=seed, **options)


def weights(trained):
    """Copies of all weights, by group and name, and of what layers have of their own."""
    return {
        f"{group}/{name}": tensor.clone()
        for modules in (trained.saes, trained.layer_maps)
        for group, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def equal(one, other):
    """Whether two sets of tensors have the same names and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state_on_disk(folder):
    """What the last checkpoint of a folder holds: weights, Adam's moments, dead counters, meters; where it stands."""
    manifest = json.loads(last_manifest(folder).read_text())
    del manifest["seconds"]
    files = [folder / name for name in manifest["files"]]
    tensors = {f"{file.parent.name}/{file.name}/{k}": t.clone() for file in files for k, t in load_file(file).items()}
    return manifest, tensors


def last_manifest(folder):
    """The manifest of the last checkpoint in a folder, or None."""
    return max(folder.glob("checkpoints/step-*.json"), key=lambda path: int(path.stem[5:]), default=None)


class Stop(Exception):
    """Stands for whatever ends a training early."""


def stop_after(steps):
    """A progress callback that ends training in step number `steps`, before its state could be saved."""
    count = 0

    def progress(tokens):
        nonlocal count
        count += 1
        if count == steps:
            raise Stop

    return progress


class Log:
    """Records as metrics.jsonl keeps them: those after the checkpoint that training goes on from are cut off."""

    def __init__(self):
        self.records = []

    def __call__(self, record):
        self.records.append(record)

    def cut(self, progress):
        self.records = [record for record in self.records if record["step"] <= progress.step]

    @property
    def without_seconds(self):
        return [{key: value for key, value in record.items() if key != "seconds"} for record in self.records]
