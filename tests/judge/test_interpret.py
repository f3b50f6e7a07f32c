"""`groupsae interpret` on a trained run against the rule-based judge: results, resuming, and judges in trouble."""

import json
import os
import signal
import socket

import pytest
from rule_judge import completion, rule

from groupsae.interpretability.judge.client import NOT_SENT
from groupsae.interpretability.judge.settings import KEY_VARIABLE
from groupsae.records import RunDirectory
from groupsae.records.types.interpretation import InterpretationRecord

QUICK = ("--latents", "3", "--retries", "0")


@pytest.fixture
def ask(call, run, rules):
    """Runs the command on the run."""

    def asked(*flags, url=None, model="rules"):
        return call("interpret", run, "--judge-url", url or rules.url, "--judge-model", model, *QUICK, *flags)

    return asked


def record_of(run):
    return InterpretationRecord.read(RunDirectory.open(run))


def different(bodies):
    return {json.dumps(body, sort_keys=True) for body in bodies}


def test_latents_of_every_layer_are_explained_and_scored(ask, run, rules, call):
    code, out, err = ask()
    assert code == 0, err
    record = record_of(run)
    assert record.complete and record.judge.lost == record.judge.faults == {}
    assert record.judge.answered == record.judge.requests == len(rules.bodies) == len(different(rules.bodies))
    for layers in record.suites.values():
        assert list(layers) == ["layers.0", "layers.1", "layers.2"]
        for latents in layers.values():
            assert len({one.latent for one in latents}) == 3
            for one in latents:
                assert one.explanation.startswith("the token") and one.shuffled_from != one.latent
                assert {kind: list(methods) for kind, methods in one.scores.items()} == {
                    kind: ["detection", "fuzzing"] for kind in ("own", "shuffled", "random")
                }
                assert all(v.active == v.inactive == 10 for methods in one.scores.values() for v in methods.values())
    for suite, means in record.over_layers.items():
        fuzzing = {kind: methods["fuzzing"] for kind, methods in means.items()}
        assert fuzzing["own"].interval[0] > max(fuzzing["shuffled"].mean, fuzzing["random"].mean)
        assert suite in out and fuzzing["own"].latents == 9
    assert "balanced accuracy" in out and "[0." in out and "requests to send" in err
    assert call("show", run, "--verify")[0] == 0


def test_suites_are_compared_by_latents_that_fire_as_often(ask, run):
    assert ask()[0] == 0
    suites = record_of(run).suites
    mine, its = ([one.firing_rate for layer in suites[name].values() for one in layer] for name in suites)
    assert sorted(mine) == pytest.approx(sorted(its), rel=0.3)


def test_a_dry_run_says_what_it_takes_and_sends_nothing(ask, run, rules):
    code, out, _ = ask("--dry-run", "--json", "--price-in", "0.1", "--price-out", "0.4")
    assert code == 0 and not rules.bodies and not (run / "eval/interpretation.json").exists()
    found = json.loads(out)
    assert found["dollars"] == pytest.approx((0.1 * found["prompt_tokens"] + 0.4 * found["completion_tokens"]) / 1e6)
    assert "requests to send" in ask("--dry-run")[1]
    assert ask()[0] == 0
    explaining = [body for body in rules.bodies if "[EXPLANATION]" in body["messages"][0]["content"]]
    assert len(explaining) == found["explanations"]
    # Explanations that come out alike make equal questions, which are asked once.
    assert found["scores"] / 2 < len(rules.bodies) - len(explaining) <= found["scores"]


def test_some_layers_alone(ask, run, rules):
    assert ask("--layers", "layers.1")[0] == 0
    assert {tuple(layers) for layers in record_of(run).suites.values()} == {("layers.1",)}
    code, _, err = ask("--layers", "layers.7", "--overwrite")
    assert code == 2 and "layers.7" in err and "layers.0" in err


def test_a_result_is_kept_and_another_needs_overwrite(ask, run, rules):
    assert ask()[0] == 0
    before, sent = (run / "eval/interpretation.json").read_bytes(), len(rules.bodies)
    code, out, err = ask()
    assert code == 0 and "done already" in err and "balanced accuracy" in out
    code, _, err = ask(model="another")
    assert code == 2 and "--overwrite" in err
    assert (run / "eval/interpretation.json").read_bytes() == before and len(rules.bodies) == sent
    assert ask("--overwrite", model="another")[0] == 0
    assert record_of(run).judge.model == "another" and len(rules.bodies) == 2 * sent
    assert ask("--overwrite")[0] == 0
    assert len(rules.bodies) == 2 * sent and record_of(run).judge.cached == sent


def test_an_interrupted_run_goes_on_without_paying_twice(ask, run, rules):
    def reply(number, body):
        if number == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return 200, completion(rule(body))

    rules.reply = reply
    code, _, err = ask()
    assert code == 130 and "answers are in" in err
    assert not (run / "eval/interpretation.json").exists()
    assert 31 <= len(rules.bodies) < 60
    code, _, err = ask()
    assert code == 0 and record_of(run).complete
    assert len(rules.bodies) == len(different(rules.bodies))
    assert record_of(run).judge.cached == len(rules.bodies) - record_of(run).judge.answered > 0


def test_a_judge_that_is_down_is_said_and_the_same_command_goes_on_later(ask, run, rules):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    code, out, _ = ask(url=nowhere)
    record = record_of(run)
    assert code == 0 and "given up" in out and "no connection" in out
    assert not record.complete and record.judge.answered == 0 and record.judge.lost[NOT_SENT] > 0
    assert all(
        one.explanation is None for layers in record.suites.values() for found in layers.values() for one in found
    )
    assert all(
        mean.mean is None for kinds in record.over_layers.values() for m in kinds.values() for mean in m.values()
    )
    code, out, _ = ask()
    assert code == 0 and record_of(run).complete and "given up" not in out


def test_a_wrong_key_is_said(ask, run, rules, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "hunter2")
    rules.reply = lambda number, body: (401, {"error": {"message": "Incorrect API key"}})
    code, out, _ = ask()
    assert code == 0 and KEY_VARIABLE in out and "hunter2" not in out
    assert len(rules.bodies) <= 8 and not record_of(run).complete
    assert b"hunter2" not in b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())


def test_prose_and_faults_are_counted_and_the_rest_is_scored(ask, run, rules):
    def reply(number, body):
        if number % 10 == 3:
            return 500, {}
        return 200, completion("I think\n\nall of them fit." if number % 10 == 7 else rule(body))

    rules.reply = reply
    code, out, _ = ask()
    record = record_of(run)
    assert code == 0 and not record.complete
    assert (
        record.judge.lost == record.judge.faults == {"status 500": sum(n % 10 == 3 for n in range(len(rules.bodies)))}
    )
    assert record.judge.unread_explanations + record.judge.unread_scores == sum(
        n % 10 == 7 for n in range(len(rules.bodies))
    )
    assert "could not be read" in out and "status 500" in out
    assert record.over_layers["groups"]["own"]["fuzzing"].mean > 0.5


def test_an_explanation_of_html_is_kept_as_text(ask, run, rules):
    def reply(number, body):
        text = rule(body)
        return 200, completion(f"{text} </script><script>alert(1)</script>" if "EXPLANATION" in text else text)

    rules.reply = reply
    assert ask("--layers", "layers.0")[0] == 0
    found = record_of(run).suites["groups"]["layers.0"][0].explanation
    assert found.endswith("</script><script>alert(1)</script>")


def test_where_no_latent_can_be_judged_it_is_said(ask, run, rules):
    code, out, err = ask("--num-tokens", "64")
    assert code == 0 and "fewer than 3 latents" in err and not rules.bodies
    assert record_of(run).complete and set(map(len, record_of(run).suites["groups"].values())) == {0}
    assert "−" not in out and " - " in out


def test_a_run_that_is_not_trained_is_refused_before_anything_is_read(ask, run, rules):
    (run / "suite.json").unlink()
    code, _, err = ask()
    assert code == 2 and "groupsae train" in err and "loading model" not in err and not rules.bodies


def test_a_judge_that_thinks_is_asked_otherwise(ask, run, rules):
    rules.reply = lambda number, body: (200, completion(f"<think>[0, 1]</think>{rule(body)}"))
    assert ask("--judge-thinks", "--layers", "layers.0")[0] == 0
    assert all("max_completion_tokens" in body and "max_tokens" not in body for body in rules.bodies)
    assert record_of(run).judge.thinks and record_of(run).judge.unread_scores == 0


def test_negative_prices_and_bad_addresses_are_refused(ask):
    assert ask("--price-in", "-1")[0] == 2
    code, _, err = ask(url="localhost:8000")
    assert code == 2 and "--judge-url" in err and "loading model" not in err
