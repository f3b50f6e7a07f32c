"""No test reaches the network; one thread, so that tests are as quick on two cores as on many.

`here` and `done` are a working directory with a tiny config, without and with its finished run;
`call` runs a command in it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, which none of the above does

from tiny import save_model, tiny_model, tiny_text

from groupsae import cli

SETTINGS = """
seed = 3
[model]
name = "{folder}/model"
[text]
source = ["{folder}/text.jsonl"]
context_length = 16
held_out_share = 0.2
[activations]
batch_rows = 4
buffer_tokens = 256
[distances]
num_tokens = 300
[group]
groups = 2
[plan]
calibrate = false
[sae]
expansion = 2
k = 4
dead_after_tokens = 200
[train]
num_tokens = 512
batch_tokens = 64
scale_tokens = 200
precision = "float32"
log_every_tokens = 128
save_every_tokens = 256
[eval]
num_tokens = 64
[circuits]
tasks = ["closing-bracket"]
num_pairs = 16
min_pairs = 8
min_accuracy = 0
set_sizes = [1, 4]
resamples = 20
"""


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _no_timing():
    """`auto` is float32 on every machine, so that what tests compare depends on no timing."""
    from groupsae.training import precision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "bf16_speedup", lambda device: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """SIGINT as Python has it: processes of pytest-xdist ignore it, and tests send it to themselves."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with a model, a text, tiny.toml, and runs/tiny, which is complete. Only to be copied."""
    folder = tmp_path_factory.mktemp("place")
    save_model(folder / "model", tiny_model(layers=4))
    lines = [json.dumps({"text": f"{number} {tiny_text(20, number)}"}) for number in range(40)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "tiny.toml").write_text(SETTINGS.format(folder=folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["run", "tiny.toml"]) == 0
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """The working directory: tiny.toml, and no run."""
    shutil.copy(place / "tiny.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def done(place, here):
    """The same with the finished run in runs/tiny."""
    shutil.copytree(place / "runs", here / "runs")
    return here / "runs" / "tiny"


@pytest.fixture
def call(capsys):
    """Runs a command; gives its exit code, and what it printed on stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = cli.main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run
