"""The client against a judge in every kind of trouble: counted, said, never fatal, and never paid twice."""

import socket
import threading
import time

import pytest
from rule_judge import completion

from groupsae.errors import ConfigError, RunError
from groupsae.interpretability.judge.cache import Answer, AnswerCache, request_digest
from groupsae.interpretability.judge.client import LOST_IN_A_ROW, NOT_SENT, Judge
from groupsae.interpretability.judge.settings import KEY_VARIABLE, JudgeServer, Sampling


def bodies(count):
    return [{"model": "rules", "messages": [{"role": "user", "content": str(number)}]} for number in range(count)]


def echo(number, body):
    return 200, completion(body["messages"][0]["content"])


def once(trouble):
    """Every request is refused with this status, or treated so, the first time, and answered the second."""
    seen = set()

    def reply(number, body):
        text = body["messages"][0]["content"]
        if text in seen:
            return echo(number, body)
        seen.add(text)
        return trouble(number, body) if callable(trouble) else (trouble, {"error": {"message": "later"}})

    return reply


def texts(answers):
    return [None if answer is None else answer.text for answer in answers]


def test_answers_come_in_the_order_of_the_requests(client, rules):
    rules.reply = lambda number, body: (time.sleep(0.02 * (number % 3)), echo(number, body))[1]
    judge = client(concurrent=4)
    assert texts(judge.ask(bodies(12))) == [str(number) for number in range(12)]
    assert 2 <= rules.most_at_once <= 4
    assert (judge.tally.answered, judge.tally.prompt_tokens, judge.tally.completion_tokens) == (12, 1200, 84)


def test_equal_requests_are_sent_once(client, rules):
    rules.reply = echo
    judge = client()
    assert texts(judge.ask(bodies(3) * 4)) == ["0", "1", "2"] * 4
    assert len(rules.bodies) == 3 and (judge.tally.answered, judge.tally.cached) == (3, 0)
    rules.reply = lambda number, body: (400, {})
    judge = client()
    assert judge.ask([{"model": "rules", "messages": []}] * 4) == [None] * 4
    assert len(rules.bodies) == 4 and judge.tally.lost == {"status 400": 1}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_fault_that_passes_is_counted_and_the_request_sent_again(client, rules, status):
    rules.reply = once(status)
    judge = client()
    assert texts(judge.ask(bodies(5))) == ["0", "1", "2", "3", "4"]
    assert judge.tally.faults == {f"status {status}": 5} and judge.tally.complete and not judge.tally.verdict


@pytest.mark.parametrize("value", ["<html>busy</html>", "", {}, {"choices": []}, {"choices": [{"message": None}]}, [1]])
def test_a_response_that_is_no_completion_is_asked_for_again(client, rules, value):
    rules.reply = once(lambda number, body: (200, value))
    judge = client()
    assert texts(judge.ask(bodies(2))) == ["0", "1"]
    assert judge.tally.faults == {"no chat completion in the response": 2}


def test_an_answer_without_text_is_lost_at_once(client, rules):
    rules.reply = lambda number, body: (200, completion(None))
    judge = client()
    assert judge.ask(bodies(2)) == [None, None]
    assert judge.tally.lost == {"no text in the response": 2} and len(rules.bodies) == 2


def test_a_time_out_is_a_fault_that_may_pass(client, rules):
    rules.reply = once(lambda number, body: (time.sleep(1.6), echo(number, body))[1])
    judge = client(timeout=1.0)
    assert texts(judge.ask(bodies(3))) == ["0", "1", "2"]
    assert set(judge.tally.faults) == {"time-out"} and judge.tally.faults["time-out"] >= 3  # more on a busy machine


def test_a_server_that_hangs_up_is_a_fault_that_may_pass(client, rules):
    rules.reply = once(0)
    judge = client()
    assert texts(judge.ask(bodies(3))) == ["0", "1", "2"]
    assert sum(judge.tally.faults.values()) == 3 and all("no connection" in name for name in judge.tally.faults)


def test_a_request_that_is_refused_is_lost_without_another_try(client, rules):
    refusal = 400, {"error": {"message": "use\nmax_completion_tokens"}}
    rules.reply = lambda number, body: refusal if body["messages"][0]["content"] == "1" else echo(number, body)
    judge = client()
    assert texts(judge.ask(bodies(3))) == ["0", None, "2"]
    assert judge.tally.lost == {"status 400": 1} and len(rules.bodies) == 3 and not judge.tally.verdict
    assert judge.tally.said == {"status 400": "use max_completion_tokens"}


@pytest.mark.parametrize("value", ["<html>\n" + "x" * 999, "", {"message": "no"}, [1], {"error": {}}, {"error": "no"}])
def test_any_refusal_is_said_in_a_short_line(client, rules, value):
    rules.reply = lambda number, body: (422, value)
    judge = client()
    assert judge.ask(bodies(1)) == [None]
    assert len(judge.tally.said["status 422"]) <= 200 and "\n" not in judge.tally.said["status 422"]


@pytest.mark.parametrize(("status", "advice"), [(401, KEY_VARIABLE), (403, KEY_VARIABLE), (404, "--judge-model")])
def test_a_refusal_of_key_or_model_ends_it_at_once(client, rules, status, advice):
    rules.reply = lambda number, body: (status, {"error": {"message": "bad key sk-12...89"}})
    judge = client(concurrent=1)
    assert judge.ask(bodies(50)) == [None] * 50
    assert len(rules.bodies) == 1
    assert judge.tally.lost == {f"status {status}": 1, NOT_SENT: 49}
    assert advice in judge.tally.verdict
    assert bool(judge.tally.said) == (status == 404)


def test_a_judge_that_is_down_is_given_up_soon(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    judge = Judge(JudgeServer(url, "m", retries=1, backoff=0.001), cache)
    began = time.monotonic()
    assert judge.ask(bodies(500)) == [None] * 500
    assert time.monotonic() - began < 30
    assert judge.tally.lost[NOT_SENT] > 400 and judge.tally.lost.total() == 500
    assert f"{LOST_IN_A_ROW} requests in a row" in judge.tally.verdict


def test_an_overloaded_judge_is_given_up_after_its_retries(client, rules):
    rules.reply = lambda number, body: (429, {})
    judge = client(retries=2, concurrent=1)
    assert judge.ask(bodies(30)) == [None] * 30
    assert len(rules.bodies) == 3 * LOST_IN_A_ROW and judge.tally.lost["status 429"] == LOST_IN_A_ROW


def test_the_wait_that_a_server_asks_for_is_kept(client, rules):
    rules.headers, rules.reply = {"Retry-After": "0.4"}, once(429)
    began = time.monotonic()
    assert texts(client().ask(bodies(1))) == ["0"]
    assert time.monotonic() - began >= 0.4


def test_what_had_no_answer_is_asked_again_and_nothing_else(client, rules):
    rules.reply = lambda number, body: (500, {}) if int(body["messages"][0]["content"]) % 2 else echo(number, body)
    assert texts(client(retries=0).ask(bodies(6))) == ["0", None, "2", None, "4", None]
    rules.bodies.clear()
    rules.reply = echo
    judge = client()
    assert texts(judge.ask(bodies(6))) == [str(number) for number in range(6)]
    assert sorted(body["messages"][0]["content"] for body in rules.bodies) == ["1", "3", "5"]
    assert (judge.tally.cached, judge.tally.answered) == (3, 3)


def test_once_stopped_nothing_more_is_sent_and_what_came_is_kept(client, rules, cache):
    stop = threading.Event()

    def reply(number, body):
        if number == 4:
            stop.set()
        return echo(number, body)

    rules.reply = reply
    judge = client(stopped=stop.is_set, concurrent=1)
    found = texts(judge.ask(bodies(20)))
    assert found[:5] == ["0", "1", "2", "3", "4"] and set(found[5:]) == {None}
    assert len(cache) == 5 and judge.tally.lost == {NOT_SENT: 15}


def test_the_key_comes_from_the_environment_and_goes_into_the_header_only(client, rules, cache, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret-key")
    rules.reply = echo
    client().ask(bodies(1))
    monkeypatch.delenv(KEY_VARIABLE)
    client().ask(bodies(2))
    assert rules.keys == ["Bearer secret-key", None]
    assert b"secret" not in b"".join(path.read_bytes() for path in cache.path.parent.iterdir())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a/v1", "http://", "http://k:s@host/v1", "http://h/v1?key=s"])
def test_an_address_that_cannot_be_used_is_refused(url):
    with pytest.raises(ConfigError, match="--judge-url"):
        JudgeServer(url, "m")


@pytest.mark.parametrize(
    "options", [{"model": " "}, {"concurrent": 0}, {"retries": -1}, {"timeout": 0}, {"timeout": float("nan")}]
)
def test_settings_that_cannot_be_used_are_refused(options):
    with pytest.raises(ConfigError):
        JudgeServer(**{"url": "http://127.0.0.1/v1", "model": "m"} | options)
    with pytest.raises(ConfigError):
        Sampling(latents=0)


def test_an_address_may_or_may_not_end_in_the_method():
    ends = ("", "/", "/chat/completions")
    assert {JudgeServer(f"http://h/v1{end}", "m").endpoint for end in ends} == {"http://h/v1/chat/completions"}


# ---- answers on disk


def test_answers_are_there_for_the_next_process(tmp_path):
    body, answer = bodies(1)[0], Answer("text ✓", 3, 2, 0.5)
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        assert cache.get(body) is None and cache.median_seconds("rules") is None
        cache.put(body, answer)
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        assert cache.get(dict(reversed(body.items()))) == answer
        assert (cache.median_seconds("rules"), cache.median_seconds("other")) == (0.5, None)
    assert request_digest(body | {"temperature": 1}) != request_digest(body)


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"no database " * 100)
    with pytest.raises(RunError, match="--cache"), AnswerCache(path):
        pass
    assert path.read_bytes() == b"no database " * 100
