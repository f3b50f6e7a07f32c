"""The predicted peak of main memory beside the peak of a training in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch

LINUX_CPU = sys.platform == "linux" and torch.version.cuda is None
TRAINING = """
import json
import groupsae.recipes.train, groupsae.recipes.plan, groupsae.cli.commands
from groupsae.activations.harvest import Harvester
from groupsae.config import TopKConfig, TrainConfig
from groupsae.grouping.choose import equal
from groupsae.model_structure import find_blocks
from groupsae.models import load_model
from groupsae.planning.architecture import Architecture
from groupsae.planning.memory import Footprint, predict_memory
from groupsae.planning.pricing import Pricing
from groupsae.text.tokens import TokenRows
from groupsae.training.fit import measure_scales
from groupsae.training.trainer import train_groups
import numpy as np, torch

torch.set_num_threads(1)
model, _ = load_model("demo")
rows = TokenRows(np.random.default_rng(0).integers(0, 200, (320, 256)).astype(np.uint16))
names = [f"layers.{layer}" for layer in range(7)]
acts = Harvester(model, rows, names, norm_limits=dict.fromkeys(names, 1e9))
groups = [*equal(names, 2).groups, *((name,) for name in names)]
sae = TopKConfig(d_sae=2048, k=16)
train = TrainConfig(num_tokens=36_000, batch_tokens=2048, scale_tokens=4096)
train_groups(acts, groups, measure_scales(acts, 4096), sae, train, seed=0, buffer_tokens=32_768)
size = Footprint(Architecture.of(model, find_blocks(model)[1]), 7, 1, 2048, 2048, 16, 256, 32_768,
                 stored_tokens=rows.ids_RT.size, on_device=False)
predicted = predict_memory(Pricing(size, 16, 36_000, 0).footprint_of(groups)).host
# Not getrusage, whose peak a process inherits from the one that started it.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([predicted, 1024 * int(peak.split()[1])]))
"""


@pytest.mark.skipif(not LINUX_CPU, reason="The process itself was measured with a CPU build of torch on Linux.")
def test_the_predicted_peak_is_within_ten_percent_of_the_measured_one():
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.1)
