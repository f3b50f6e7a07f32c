"""A rule-based judge for each test, and a client of it that is in a hurry."""

import json
import shutil

import pytest
from rule_judge import serving
from tiny import save_model, tiny_model, tiny_text

from groupsae.config import load_config
from groupsae.interpretability.judge.cache import AnswerCache
from groupsae.interpretability.judge.client import Judge
from groupsae.interpretability.judge.settings import KEY_VARIABLE, JudgeServer
from groupsae.recipes.run import run_all
from groupsae.records import RunDirectory

SETTINGS = """
seed = 3
[model]
name = "{folder}/model"
[text]
source = ["{folder}/text.jsonl"]
context_length = 16
held_out_share = 0.2
[activations]
batch_rows = 16
[distances]
num_tokens = 300
[group]
groups = 2
[plan]
calibrate = false
[sae]
expansion = 2
k = 4
[train]
num_tokens = 512
batch_tokens = 64
scale_tokens = 200
log_every_tokens = 256
[eval]
num_tokens = 64
[circuits]
tasks = ["closing-bracket"]
num_pairs = 16
min_pairs = 8
min_accuracy = 0
set_sizes = [1]
resamples = 20
"""

pytest.importorskip("httpx2", reason="httpx2 is not installed (groupsae[judge])")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture
def rules():
    with serving() as judge:
        yield judge


@pytest.fixture
def cache(tmp_path):
    with AnswerCache(tmp_path / "answers.sqlite") as opened:
        yield opened


@pytest.fixture
def client(rules, cache):
    """Makes a client of the rule-based judge."""

    def make(*, stopped=lambda: False, **options):
        settings = {"url": rules.url, "model": "rules", "timeout": 5.0, "backoff": 0.001} | options
        return Judge(JudgeServer(**settings), cache, stopped=stopped)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A trained run, not evaluated, on enough text for windows of every latent. Only to be copied."""
    folder = tmp_path_factory.mktemp("judged")
    save_model(folder / "model", tiny_model(layers=4))
    lines = [json.dumps({"text": f"{number} {tiny_text(20, number)}"}) for number in range(200)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "tiny.toml").write_text(SETTINGS.format(folder=folder))
    directory = RunDirectory.at(folder / "tiny", load_config(folder / "tiny.toml"))
    run_all(directory, until="train")
    return directory.path


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the trained run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "tiny")
