"""A rule-based judge for each test, and a client of it that is in a hurry."""

import pytest
from rule_judge import serving

from groupsae.interpretability.judge.cache import AnswerCache
from groupsae.interpretability.judge.client import Judge
from groupsae.interpretability.judge.settings import KEY_VARIABLE, JudgeServer

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
