"""What ranks tell each other: values, sums, rows, disagreements; and how they are joined."""

import platform
import socket

import pytest
import torch
from rank_processes import Failed, environment_of, run_ranks

from groupsae.distributed.exchange import send_rows
from groupsae.distributed.launch import current_ranks, joined, wanted_size
from groupsae.distributed.ranks import ALONE
from groupsae.errors import ConfigError


def test_one_process_is_a_world_of_one_without_a_process_group():
    with joined() as ranks:
        assert ranks is ALONE is current_ranks()
        assert ranks.gather({"a": 1}) == [{"a": 1}] and ranks.first and ranks.alone
    assert not torch.distributed.is_initialized()


def test_values_of_any_length_come_in_the_order_of_ranks():
    def work(ranks):
        return ranks.gather(["é" * 100 * ranks.rank, ranks.rank]), ranks.from_first(ranks.rank), ranks.hosts

    for told, first, hosts in run_ranks(3, work):
        assert told == [["é" * 100 * rank, rank] for rank in range(3)]
        assert first == 0 and hosts == (platform.node(),) * 3


def test_sums_have_the_same_bits_on_every_rank():
    def work(ranks):
        return ranks.add(torch.rand(50, generator=torch.Generator().manual_seed(ranks.rank), dtype=torch.float64))

    sums = run_ranks(3, work)
    parts = [torch.rand(50, generator=torch.Generator().manual_seed(rank), dtype=torch.float64) for rank in range(3)]
    assert torch.equal(sums[0], parts[0] + parts[1] + parts[2])
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_to_those_who_want_them_in_the_order_of_ranks(dtype):
    counts = [3, 0, 2]  # rank 1 has nothing to send

    def rows(rank, to):
        return (torch.arange(counts[rank] * 2).view(-1, 2) + 100 * rank + 1000 * to).to(dtype)

    def work(ranks):
        wanted = (True, True, False)  # rank 2 wants nothing
        into = torch.empty(sum(counts), 2, dtype=dtype) if wanted[ranks.rank] else None
        sent = [rows(ranks.rank, to) if wanted[to] else None for to in range(3)]
        send_rows(ranks, sent, into, counts)
        return into

    found = run_ranks(3, work)
    assert found[2] is None
    for to in (0, 1):
        assert torch.equal(found[to], torch.cat([rows(rank, to) for rank in range(3)]))


def test_nobody_goes_before_rank_0(tmp_path):
    def work(ranks):
        with ranks.first_goes_ahead():
            if ranks.first:
                (tmp_path / "made").write_text("")
            return (tmp_path / "made").exists()

    assert run_ranks(3, work) == [True] * 3


def test_ranks_that_see_different_things_are_named():
    def work(ranks):
        ranks.require_alike({"torch": "2.6" if ranks.rank == 1 else "2.7", "config": 1}, remedy="Use one version.")

    with pytest.raises(Failed) as failed:
        run_ranks(3, work)
    here = platform.node()
    assert f"torch: '2.7' on rank 0 on {here} and rank 2 on {here}, '2.6' on rank 1 on {here}" in str(failed.value)
    assert "config: " not in str(failed.value) and "Use one version." in str(failed.value)


def test_a_rank_that_does_not_answer_is_named_after_the_timeout():
    def work(ranks):
        if ranks.rank == 1:
            import time

            time.sleep(8)
        ranks.barrier()

    with pytest.raises(Failed, match=r"rank 1 on .* was lost"):
        run_ranks(2, work, timeout=2)


def test_a_port_in_use_is_said(monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        for name, value in environment_of(0, 2, other.getsockname()[1], timeout=2).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=r"port of 127.0.0.1:\d+ is in use"), joined():
            pass


@pytest.mark.parametrize("given", ["soon", "0", "-1", "inf"])
def test_an_impossible_timeout_is_refused(monkeypatch, given):
    for name, value in environment_of(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GROUPSAE_TIMEOUT", given)
    with pytest.raises(ConfigError, match="GROUPSAE_TIMEOUT"), joined():
        pass


def test_without_torchrun_there_is_one_rank():
    assert wanted_size({}) == 1 == wanted_size({"WORLD_SIZE": "4"})
    assert wanted_size(environment_of(0, 4, 1)) == 4
