"""Memory that really runs out, on a CPU: a child under a limit on its address space gives what one without gives."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_rows

from groupsae.activations.harvest import Harvester
from groupsae.config import BatchTopKConfig, JumpReLUConfig, TopKConfig, TrainConfig
from groupsae.model_structure import residual_stream
from groupsae.saes.scales import Scales
from groupsae.training.group_trainer import GroupTrainer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")

FRESH = multiprocessing.get_context("forkserver" if sys.platform == "linux" else None)
FRESH.set_forkserver_preload(["groupsae.training.group_trainer", "groupsae.models"])
D_MODEL, MIB = 8, 2**20
SAES = {
    "topk": (TopKConfig(d_sae=128, k=64), 2**16),
    "batchtopk": (BatchTopKConfig(d_sae=1024, k=4), 2**13),
    "jumprelu": (JumpReLUConfig(d_sae=1024, k=4), 2**13),
}
"""SAEs, and so many tokens at once that a step on them needs well over a hundred MiB."""


def limited(room: int) -> None:
    """From now on, this process gets at most so much more address space."""
    import resource

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))


def in_child(work, tmp_path, *arguments, room=None):
    """What `work` gives in a process of its own, with so much memory, and what that says on stderr.

    The process is forked from one that has done nothing yet: what others have freed would be room beside the limit.
    """
    file, err = tmp_path / f"{room}.safetensors", tmp_path / f"{room}.err"
    child = FRESH.Process(target=_write, args=(work, arguments, room, file, err))
    child.start()
    child.join(120)
    assert child.exitcode == 0, err.read_text()
    return load_file(file), err.read_text()


def _write(work, arguments, room, file, err):
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    save_file(work(*arguments, lambda: limited(room) if room else None), file)


def step(architecture, limit):
    """Two steps on large batches within a limit: the state after them, and in how many parts they were taken."""
    sae, tokens = SAES[architecture]
    scales = Scales(("layers.0",), torch.ones(1), torch.zeros(1, D_MODEL))
    group = GroupTrainer(("layers.0",), scales, D_MODEL, sae, TrainConfig(learning_rate=1e-3), 0)
    limit()
    for seed in range(2):
        z_ND = torch.randn(tokens, D_MODEL, generator=torch.Generator().manual_seed(seed))
        group.step(z_ND, torch.zeros(tokens, dtype=torch.long), 0.0)
    return group.state() | {"parts": torch.tensor(group.split.splits)}


@pytest.mark.parametrize("architecture", SAES)
def test_a_step_that_does_not_fit_whole_fits_in_parts_and_gives_the_same(architecture, tmp_path, capsys):
    whole, nothing_said = step(architecture, lambda: None), capsys.readouterr().err
    found, said = in_child(step, tmp_path, architecture, room=100 * MIB)
    assert whole.pop("parts") == 1 and found.pop("parts") > 1
    assert nothing_said == ""
    assert said == "memory does not hold a training step whole; it is taken in parts from now on\n"
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda why, n=name: f"{n}: {why}")


def read(limit):
    """Many rows at one hookpoint, as what is read has to fit in any case; and in how many parts they were read."""
    model, rows = tiny_model(), tiny_rows(4096, 64)
    harvester = Harvester(model, rows, residual_stream(model)[-1:], batch_rows=len(rows))
    harvester.read([0])
    limit()
    return {"x": harvester.read(range(len(rows))), "parts": torch.tensor(harvester._split.splits)}


def test_a_read_that_does_not_fit_whole_fits_in_parts_and_gives_the_same(tmp_path, capsys):
    whole, nothing_said = read(lambda: None), capsys.readouterr().err
    found, said = in_child(read, tmp_path, room=120 * MIB)
    assert whole["parts"] == 1 and found["parts"] > 1
    assert nothing_said == ""
    assert said == "memory does not hold a read of activations whole; it is taken in parts from now on\n"
    torch.testing.assert_close(found["x"], whole["x"], rtol=1e-5, atol=1e-5)
