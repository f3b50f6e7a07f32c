"""Meshes of 1 to 512 GPUs, calculated: what each rank does, receives and holds; and a job per group beside them."""

import math
from pathlib import Path

import pytest
from planning_cases import counted
from transformers import AutoConfig

from groupsae.errors import ConfigError, FitError
from groupsae.grouping.choose import equal
from groupsae.planning.memory import Footprint
from groupsae.planning.mesh import GroupWork, Mesh, mesh_cost
from groupsae.planning.on_gpus import GpuSetting
from groupsae.planning.pricing import Pricing
from groupsae.planning.roofline import GPUS

ROOT = Path(__file__).parents[2]
SHAPES = {"pythia-1b": (16, 32768), "gemma-2-2b": (8, 8192), "llama-3.1-8b": (8, 8192)}
WORK = [GroupWork(10.0, 4.0 * place, 1e9, 30.0) for place in range(1, 13)]


@pytest.fixture(scope="module")
def architectures():
    return {name: counted(AutoConfig.from_pretrained(ROOT / "configs" / "architectures" / name)) for name in SHAPES}


def simulate(architectures, name, num_gpus, groups=None):
    model, (expansion, batch) = architectures[name], SHAPES[name]
    names = [f"layers.{layer}" for layer in range(model.num_layers - 1)]
    run = Footprint(model, len(names), 1, expansion * model.d_model, batch, 16, 1024, 131072, bytes_per_number=2)
    setting = GpuSetting(GPUS["h100"], num_gpus, max(1, num_gpus // 8))
    return Pricing(run, 32, 10**9, 0, gpus=setting).price(equal(names, groups or len(names)).groups).on_gpu


@pytest.mark.parametrize("num_gpus", [1, 4, 8, 64, 256, 512])
@pytest.mark.parametrize("name", SHAPES)
def test_up_to_512_ranks_work_is_conserved_and_each_rank_holds_its_part(architectures, name, num_gpus):
    cost = simulate(architectures, name, num_gpus)
    mesh, layers = cost.mesh, architectures[name].num_layers - 1
    assert len(mesh.ranks) == len(cost.memory) == num_gpus
    assert math.isclose(sum(rank.read for rank in mesh.ranks), cost.read_per_token * 1e9, rel_tol=1e-9)
    trained = layers * 1e9 * cost.step.total
    assert trained <= sum(rank.train for rank in mesh.ranks) * (1 + 1e-9) <= 1.06 * trained
    learned = sum(memory.sae_weights for memory in cost.memory)
    assert learned == pytest.approx(sum(memory.sae_weights for memory in simulate(architectures, name, 1).memory))
    received = sum(rank.received_bytes for rank in mesh.ranks)
    pieces = sum(map(len, mesh.plan.owners))
    assert received <= pieces * 1e9 * 2 * architectures[name].d_model
    assert (received == 0) == (num_gpus == 1)
    assert 0 < mesh.useful_share <= mesh.overlapped_share <= 1 + 1e-9
    assert mesh.plan.imbalance >= 1


@pytest.mark.parametrize("name", SHAPES)
def test_more_gpus_take_less_time_and_less_memory_each(architectures, name):
    costs = [simulate(architectures, name, count) for count in (1, 8, 64, 512)]
    assert [cost.mesh.seconds for cost in costs] == sorted((cost.mesh.seconds for cost in costs), reverse=True)
    most = [max(memory.device for memory in cost.memory) for cost in costs]
    assert most[0] > most[1] > most[2] and most[3] < 1.05 * most[2]


@pytest.mark.parametrize("name", SHAPES)
def test_reading_evens_out_training_up_to_64_ranks(architectures, name):
    for num_gpus in (8, 64):
        assert simulate(architectures, name, num_gpus).mesh.plan.imbalance < 1.3


@pytest.mark.parametrize("name", SHAPES)
def test_on_64_gpus_a_mesh_wastes_far_less_than_a_job_per_group(architectures, name):
    mesh = simulate(architectures, name, 64).mesh
    assert mesh.array_share < 0.27 < 0.55 < mesh.useful_share
    assert mesh.overlapped_share > 0.75
    assert mesh.array_seconds > 10 * mesh.seconds


def test_a_job_per_group_repeats_the_reading():
    cost = mesh_cost(WORK, 48.0, Mesh(4, 1, 1e12, 1e12, math.inf))
    assert cost.useful_seconds == 48 + 12 * 10
    assert cost.array_work == 12 * 10 + sum(4 * place for place in range(1, 13))
    assert cost.array_share == cost.useful_seconds / cost.array_work


def test_one_rank_takes_what_the_parts_take():
    cost = mesh_cost(WORK, 48.0, Mesh(1, 1, 1.0, 1.0, math.inf))
    assert cost.seconds == cost.useful_seconds and cost.useful_share == 1
    assert cost.ranks[0].exchange == 0 and cost.ranks[0].held_bytes == 12 * 30


def test_what_leaves_a_node_goes_at_the_networks_rate():
    near = mesh_cost(WORK, 48.0, Mesh(8, 1, 1e9, 1e8, math.inf))
    far = mesh_cost(WORK, 48.0, Mesh(8, 4, 1e9, 1e8, math.inf))
    assert max(rank.exchange for rank in far.ranks) > 3 * max(rank.exchange for rank in near.ranks)
    assert far.seconds > near.seconds


def test_a_mesh_too_small_for_the_groups_is_refused():
    with pytest.raises(FitError):
        mesh_cost(WORK, 48.0, Mesh(4, 1, 1e9, 1e9, 50.0))
    with pytest.raises(ConfigError, match="10 GPUs on 4 nodes"):
        Mesh(10, 4, 1e9, 1e9, 1.0)
