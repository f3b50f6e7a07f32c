"""The templates for clusters, as far as they run without one: with stand-ins for SLURM's and torch's commands."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

CLUSTERS = Path(__file__).parents[2] / "configs" / "clusters"
SCRIPTS = sorted(CLUSTERS.glob("*.sbatch"))
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Commands that write down what they were called with; `torchrun` waits for SIGTERM if `wait` exists."""
    commands = {
        "srun": 'echo "srun $1" >> calls; shift; exec "$@"',
        "torchrun": """echo "torchrun $*" >> calls
trap 'echo saved >> calls; exit 143' TERM
while [ -e wait ]; do sleep 0.05; done""",
        "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "node7\\nnode8\\n" || true',
        "groupsae": 'echo "groupsae $*" >> calls',
    }
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in {
        "JOB_ID": 41234,
        "JOB_NODELIST": "node[7-8]",
        "JOB_NUM_NODES": 2,
        "GPUS_ON_NODE": 8,
        "CPUS_PER_TASK": 64,
        "ARRAY_TASK_ID": 3,
        "ARRAY_TASK_COUNT": 16,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_need_a_run(script, stand_ins):
    subprocess.run(["bash", "-n", script], check=True)
    found = subprocess.run(["bash", script], cwd=stand_ins, capture_output=True, text=True)
    assert found.returncode != 0 and "usage: sbatch" in found.stderr


def test_slurm_starts_torchrun_on_the_first_node(stand_ins):
    subprocess.run(["bash", CLUSTERS / "slurm.sbatch", "runs/a"], cwd=stand_ins, check=True)
    calls = (stand_ins / "calls").read_text().splitlines()
    assert calls[-1] == (
        "torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-id 41234 "
        "--rdzv-endpoint node7:21234 -m groupsae train runs/a"
    )
    assert not any("requeue" in call for call in calls)


def test_slurm_saves_and_requeues_before_its_time_is_up(stand_ins):
    (stand_ins / "wait").write_text("")
    job = subprocess.Popen(["bash", CLUSTERS / "slurm.sbatch", "runs/a"], cwd=stand_ins)
    calls = stand_ins / "calls"
    until = time.monotonic() + 20
    while time.monotonic() < until and not (calls.exists() and "torchrun" in calls.read_text()):
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == 0
    assert calls.read_text().splitlines()[-2:] == ["saved", "scontrol requeue 41234"]


def test_an_array_trains_its_part(stand_ins):
    subprocess.run(["bash", CLUSTERS / "array.sbatch", "runs/a"], cwd=stand_ins, check=True)
    assert (stand_ins / "calls").read_text() == "groupsae train runs/a --part 3/16\n"


def test_the_task_of_skypilot_parses_and_starts_torchrun(stand_ins, monkeypatch):
    task = yaml.safe_load((CLUSTERS / "sky.yaml").read_text())
    assert task["num_nodes"] == 2 and "RUN" in task["envs"] and "/runs" in task["file_mounts"]
    environment = {
        "RUN": "a",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_RANK": "1",
    }
    subprocess.run(["bash", "-c", task["run"]], cwd=stand_ins, check=True, env=os.environ | environment)
    assert (
        (stand_ins / "calls")
        .read_text()
        .strip()
        .endswith("--node-rank 1 --master-addr 10.0.0.1 --master-port 29500 -m groupsae train /runs/a")
    )
