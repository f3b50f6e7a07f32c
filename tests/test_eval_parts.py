"""The eval stage in parts: any subset, resumed, side by side with another run; what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from groupsae.recipes.eval import PARTS
from groupsae.records import RunDirectory


def of_user(result, *texts):
    code, _, err = result
    assert code == 2, err
    message = err.strip().splitlines()[-1]
    assert all(text in message for text in texts), message
    return message


def eval_status(path):
    return RunDirectory.open(path).status("eval")


@pytest.fixture
def computed(monkeypatch):
    """The parts that are computed, in order."""
    calls = []
    for name, part in list(PARTS.items()):
        monkeypatch.setitem(PARTS, name, lambda c, name=name, part=part: calls.append(name) or part(c))
    return calls


@pytest.fixture
def unevaluated(done):
    """The finished run as it was before it was evaluated."""
    manifest = json.loads((done / "manifest.json").read_text())
    del manifest["stages"]["eval"], manifest["parts"]
    (done / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(done / "eval")
    return done


def test_a_part_alone_leaves_the_stage_unfinished_and_the_rest_finishes_it(unevaluated, call, computed):
    assert call("eval", unevaluated, "losses")[0] == 0
    assert (computed, eval_status(unevaluated)) == (["losses"], "missing")
    assert {path.name for path in (unevaluated / "eval").iterdir()} == {"losses.json", "summary.json"}
    assert call("run", unevaluated)[0] == 0
    others = ["reconstruction", "circuits", "similarity", "interpretability"]
    assert (computed, eval_status(unevaluated)) == (["losses", *others], "done")


def test_an_evaluation_that_was_cut_off_goes_on_after_the_last_part(unevaluated, call, computed, monkeypatch):
    def interrupted(compared):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(PARTS, "losses", interrupted)
        assert call("eval", unevaluated)[0] == 130
    assert call("eval", unevaluated)[0] == 0
    assert computed == list(PARTS)


def test_parts_that_are_done_are_not_computed_again_without_overwrite(done, call, computed):
    assert "done already" in call("eval", done, "losses")[2]
    assert computed == []
    before = (done / "eval/losses.json").read_bytes()
    assert call("eval", done, "losses", "--overwrite")[0] == 0
    assert (computed, eval_status(done)) == (["losses"], "done")
    assert (done / "eval/losses.json").read_bytes() == before


def test_a_part_made_anew_from_another_config_leaves_the_others_stale(done, call, computed):
    others = [part for part in PARTS if part != "losses"]
    assert call("eval", done, "losses", "--num-tokens", "32", "--overwrite")[0] == 0
    assert eval_status(done) == "stale"
    of_user(call("eval", done), *(f"eval/{part}.json" for part in others), "--overwrite", "--out")
    assert computed == ["losses"]
    assert call("eval", done, *others, "--overwrite")[0] == 0
    assert (computed, eval_status(done)) == (["losses", *others], "done")


def test_the_circuits_own_section_makes_only_circuits_stale(done, call, computed):
    changed = ("--circuits.set-sizes", "2")
    message = of_user(call("eval", done, *changed), "eval/circuits.json", "--overwrite")
    assert not any(f"eval/{part}.json" in message for part in PARTS if part != "circuits")
    assert call("eval", done, "circuits", *changed, "--overwrite")[0] == 0
    assert (computed, eval_status(done)) == (["circuits"], "done")
    task = json.loads((done / "eval/circuits.json").read_text())["tasks"]["closing-bracket"]
    assert [size["size"] for size in task["suites"]["groups"]["sizes"]] == [2]


def test_circuits_and_similarity_are_of_every_suite_and_shown(done, call):
    task = json.loads((done / "eval/circuits.json").read_text())["tasks"]["closing-bracket"]
    assert task["skipped"] is None and list(task["suites"]) == ["baseline", "groups"]
    similarity = json.loads((done / "eval/similarity.json").read_text())
    assert len(similarity["mmcs"]) == len(similarity["dictionaries"]) == 4
    _, out, _ = call("show", done)
    assert "circuits" in out and "concordance" in out
    suites = json.loads(call("show", done, "--json")[1])["suites"]
    known = [row["one_in_other"] for row in similarity["concordance"]]
    assert suites[0]["mean_concordance"] is None
    assert suites[1]["mean_concordance"] == pytest.approx(sum(known) / len(known))


PAIRS = [
    {"clean_prefix": f"{letter}(", "patch_prefix": f"{letter}[", "clean_answer": ")", "patch_answer": "]"}
    for letter in "abcdefghijklmnop"
]


def test_a_file_of_pairs_is_read_and_a_changed_one_makes_the_evaluation_stale(done, call):
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    asked = ("circuits", "--circuits.tasks", "mine.jsonl", "--overwrite")
    assert call("eval", done, *asked)[0] == 0
    assert list(json.loads((done / "eval/circuits.json").read_text())["tasks"]) == ["mine"]
    assert eval_status(done) == "done"
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, PAIRS[:14])))
    assert eval_status(done) == "stale"
    of_user(call("eval", done, "circuits"), "eval/circuits.json", "--overwrite")


@pytest.mark.parametrize("verb", ["eval", "run"])
def test_a_file_of_pairs_that_is_not_there_is_named_before_anything_is_computed(unevaluated, call, computed, verb):
    flags = ("--circuits.tasks", "none.json", "--overwrite")
    of_user(call(verb, unevaluated, *flags), "circuits.tasks names the file none.json")
    assert computed == []


def test_a_lost_part_alone_is_made_again(done, call, computed):
    (done / "eval/reconstruction.json").unlink()
    assert call("run", done)[0] == 0
    assert computed == ["reconstruction"]


@pytest.mark.parametrize(
    ("name", "texts"),
    [("losess", ("Did you mean 'losses'",)), ("zzz", (f"Known are {', '.join(PARTS)}",))],
)
def test_an_unknown_part_names_the_nearest(done, call, name, texts):
    of_user(call("eval", done, name), *texts)


def test_an_untrained_run_names_the_stage_and_its_command(here, call):
    assert call("tokens", "tiny.toml")[0] == 0
    of_user(call("eval", "runs/tiny", "losses"), "'distances' has not run", "`groupsae distances runs/tiny`")


# ---- against another run


@pytest.fixture
def other(done, call):
    """A second run on the same tokens, with other SAEs, trained and not evaluated."""
    shutil.copytree(done, done.parent / "other")
    path = done.parent / "other"
    assert call("train", path, "--sae.k", "3", "--overwrite")[0] == 0
    return path


def test_two_runs_are_evaluated_side_by_side_on_the_same_tokens(done, other, call):
    before = {path: path.read_bytes() for path in (done / "eval").glob("*.json")}
    code, out, _ = call("eval", done, "--against", other)
    assert code == 0 and "other/" in out
    found = json.loads((done / "eval/against/other/reconstruction.json").read_text())
    own = json.loads((done / "eval/reconstruction.json").read_text())
    assert list(found["suites"]) == ["baseline", "groups", "other/baseline", "other/groups"]
    assert {name: found["suites"][name] for name in own["suites"]} == own["suites"]
    assert found["suites"]["other/groups"]["layers.0"]["l0"] == 3
    assert found["compared_with"] == "baseline"
    summary = json.loads((done / "eval/against/other/summary.json").read_text())
    assert list(summary["suites"]) == list(found["suites"])
    assert summary["suites"]["other/groups"]["mean_l0"] == 3
    for suite in summary["suites"].values():
        assert (suite["mean_concordance"] is None) == suite["name"].endswith("baseline")
    tasks = json.loads((done / "eval/against/other/circuits.json").read_text())["tasks"].values()
    assert all(list(task["suites"]) == list(summary["suites"]) for task in tasks)
    assert json.loads(call("eval", done, "--against", other, "--json")[1])["suites"] == summary["suites"]
    assert {path: path.read_bytes() for path in before} == before
    assert eval_status(done) == "done"


def test_a_comparison_is_made_once_and_again_when_the_other_run_was_trained_anew(done, other, call, computed):
    for _ in range(2):
        assert call("eval", done, "reconstruction", "--against", other)[0] == 0
    assert computed == ["reconstruction"]
    assert call("train", other, "--sae.k", "2", "--overwrite")[0] == 0
    of_user(call("eval", done, "reconstruction", "--against", other), "eval/against/other/reconstruction.json")
    assert call("eval", done, "reconstruction", "--against", other, "--overwrite")[0] == 0
    assert computed == ["reconstruction"] * 2


def test_the_report_shows_the_comparison(done, other, call):
    assert call("eval", done, "reconstruction", "--against", other)[0] == 0
    assert call("report", done)[0] == 0
    assert "Beside the suites of other" in (done / "report/index.html").read_text(encoding="utf-8")


def test_a_run_with_other_tokens_is_refused_and_the_key_is_named(done, call):
    config = Path("tiny.toml").read_text().replace("context_length = 16", "context_length = 8")
    Path("short.toml").write_text(config)
    assert call("tokens", "short.toml")[0] == 0
    of_user(call("eval", done, "--against", "runs/short"), "different tokens", "text.context_length: 16 -> 8")


def test_a_run_of_another_model_is_refused_and_the_key_is_named(done, other, call):
    file = other / "config.toml"
    file.write_text(file.read_text().replace('dtype = "float32"', 'dtype = "bfloat16"'))
    manifest = json.loads((other / "manifest.json").read_text())
    run = RunDirectory.open(other)
    for stage in manifest["stages"]:
        manifest["stages"][stage]["fingerprint"] = run.fingerprint(stage)
    (other / "manifest.json").write_text(json.dumps(manifest))
    of_user(call("eval", done, "--against", other), "different models", "model.dtype: 'float32' -> 'bfloat16'")


def test_a_run_is_not_compared_with_itself_or_with_nothing(done, here, call):
    of_user(call("eval", done, "--against", done), "is this run itself")
    of_user(call("eval", done, "--against", here), "is not a run directory")


def test_an_untrained_other_run_names_the_command(done, call):
    assert call("tokens", "tiny.toml", "--out", "runs/young")[0] == 0
    of_user(call("eval", done, "--against", "runs/young"), "'train' has not run", "groupsae train runs/young")
