"""The command line on a tiny model and a tiny text, from the first stage to the report."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from groupsae import cli
from groupsae.config import load_config
from groupsae.recipes.eval import PARTS
from groupsae.records import STAGE_NAMES


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def statuses(call, run: Path) -> dict[str, str]:
    code, out, _ = call("show", run, "--json")
    assert code == 0
    return {stage: facts["status"] for stage, facts in json.loads(out)["stages"].items()}


def of_user(result: tuple[int, str, str], *words: str) -> str:
    """The message, if the command ended as a user's mistake does: exit code 2, one line, no traceback."""
    code, out, err = result
    message = err.strip().splitlines()[-1] if err.strip() else ""
    assert code == 2, result
    assert "Traceback" not in err and out == ""
    assert err.count("Error: ") == 1 and "Error: " in message, err
    for word in words:
        assert word in message
    return message


# ---- a whole run


def test_a_run_leaves_every_file_of_a_run_directory(done):
    found = {path.relative_to(done).as_posix() for path in done.rglob("*") if path.is_file()}
    weights = {path.parent.name for path in done.glob("groups/*/sae.safetensors")}
    assert {f"layers.{layer}" for layer in range(3)} < weights
    assert found >= {
        "config.toml",
        "manifest.json",
        "tokens/index.json",
        "tokens/rows.safetensors",
        "distances.json",
        "partition.json",
        "plan.json",
        "suite.json",
        "scales.safetensors",
        "train.json",
        "metrics.jsonl",
        "eval/reconstruction.json",
        "eval/losses.json",
        "report/index.html",
        *(f"groups/{name}/cfg.json" for name in weights),
    }
    assert not [name for name in found if Path(name).name.startswith(".")]


def test_a_finished_run_is_done_in_every_stage(done, call):
    assert statuses(call, done) == dict.fromkeys(STAGE_NAMES, "done")


def test_running_again_does_nothing(done, call):
    before = snapshot(done)
    code, _, err = call("run", "tiny.toml")
    assert code == 0
    assert "complete" in err and "loading model" not in err
    assert snapshot(done) == before


@pytest.mark.parametrize("run", ["tiny.toml", "runs/tiny"])
def test_the_results_go_to_stdout_and_progress_to_stderr(done, call, run):
    code, out, err = call("run", run, "--json")
    assert code == 0
    assert [suite["name"] for suite in json.loads(out)["suites"]] == ["baseline", "groups"]
    assert "complete" in err


def test_two_runs_of_one_config_give_the_same_bytes(done, call):
    assert call("run", "tiny.toml", "--out", "runs/again")[0] == 0
    again = done.parent / "again"
    names = ["tokens/rows.safetensors", "distances.json", "partition.json", "scales.safetensors"]
    names += ["eval/reconstruction.json", "eval/losses.json"]
    names += [path.relative_to(done).as_posix() for path in done.glob("groups/*/*")]
    for name in names:
        assert (again / name).read_bytes() == (done / name).read_bytes(), name


def test_each_stage_can_be_run_alone_in_order(here, place, call):
    for stage in STAGE_NAMES:
        assert call(stage, "tiny.toml")[0] == 0
    assert statuses(call, here / "runs/tiny") == dict.fromkeys(STAGE_NAMES, "done")
    for name in ("eval/losses.json", "groups/layers.0/sae.safetensors"):
        assert (here / "runs/tiny" / name).read_bytes() == (place / "runs/tiny" / name).read_bytes()


@pytest.mark.parametrize("flag", ["--context-length", "--text.context-length"])
def test_a_stages_own_key_is_a_flag_with_and_without_its_section(here, call, flag):
    assert call("tokens", "tiny.toml", flag, "8")[0] == 0
    assert call("tokens", "tiny.toml", f"{flag}=8")[0] == 0
    assert json.loads((here / "runs/tiny/tokens/index.json").read_text())["context_length"] == 8


def test_a_run_goes_to_the_place_given(here, call):
    assert call("tokens", "tiny.toml", "--out", "elsewhere/mine")[0] == 0
    assert (here / "elsewhere/mine/tokens/rows.safetensors").is_file()
    assert not (here / "runs").exists()


def test_the_place_given_counts_for_a_run_directory_as_well(done, call):
    before = snapshot(done)
    assert call("tokens", "runs/tiny", "--context-length", "8", "--out", "runs/other", "--overwrite")[0] == 0
    assert json.loads((done.parent / "other/tokens/index.json").read_text())["context_length"] == 8
    assert snapshot(done) == before


def test_a_missing_earlier_stage_names_the_command(here, call):
    message = of_user(call("distances", "tiny.toml"), "'tokens' has not run", "`groupsae tokens runs/tiny` first")
    assert message.startswith("RunError")
    assert not (here / "runs").exists()


# ---- doing a stage again


@pytest.mark.parametrize(
    ("stage", "flags", "file"),
    [
        ("tokens", ("--context-length", "8"), "tokens/rows.safetensors"),
        ("distances", ("--num-tokens", "100"), "distances.json"),
        ("train", ("--num-tokens", "256"), "suite.json"),
        ("eval", ("--num-tokens", "32"), "eval/losses.json"),
    ],
)
def test_a_stage_with_another_flag_is_refused_and_nothing_changes(done, call, stage, flags, file):
    before = snapshot(done)
    of_user(call(stage, "runs/tiny", *flags), file, "--overwrite", "--out")
    assert snapshot(done) == before


def test_a_changed_file_is_refused_for_the_run_of_the_old_one_and_the_keys_are_named(done, call):
    before = snapshot(done)
    file = Path("tiny.toml")
    file.write_text(file.read_text().replace("k = 4", "k = 3"))
    of_user(
        call("run", "tiny.toml"), "another config", "sae.k: 4 -> 3 (read by plan and train)", "--out", "--overwrite"
    )
    assert snapshot(done) == before


def test_a_stage_made_again_makes_later_ones_stale(done, call):
    assert call("distances", "runs/tiny", "--num-tokens", "100", "--overwrite")[0] == 0
    found = statuses(call, done)
    assert found == {"tokens": "done", "distances": "done"} | dict.fromkeys(STAGE_NAMES[2:], "stale")
    of_user(call("eval", "runs/tiny"), "eval/losses.json", "older results")


def test_overwriting_brings_a_run_up_to_date(done, call):
    file = Path("tiny.toml")
    file.write_text(file.read_text().replace("k = 4", "k = 3"))
    tokens = snapshot(done)["tokens/rows.safetensors"]
    assert call("run", "tiny.toml", "--overwrite")[0] == 0
    assert statuses(call, done) == dict.fromkeys(STAGE_NAMES, "done")
    assert json.loads((done / "train.json").read_text())["k"] == 3
    assert snapshot(done)["tokens/rows.safetensors"] == tokens


def test_a_stage_that_is_done_is_left_alone(done, call):
    before = snapshot(done)
    code, _, err = call("train", "runs/tiny")
    assert code == 0
    assert "done already" in err
    assert snapshot(done) == before


def test_a_lost_file_is_made_again(done, call):
    lost = done / "eval/losses.json"
    content = lost.read_bytes()
    lost.unlink()
    assert statuses(call, done)["eval"] == "missing"
    assert call("run", "runs/tiny")[0] == 0
    assert lost.read_bytes() == content
    assert statuses(call, done) == dict.fromkeys(STAGE_NAMES, "done")


def test_lost_rows_that_come_out_the_same_leave_the_rest_done(done, call):
    (done / "tokens/rows.safetensors").unlink()
    assert call("run", "runs/tiny")[0] == 0
    assert statuses(call, done) == dict.fromkeys(STAGE_NAMES, "done")


def test_another_device_or_log_interval_is_not_another_run(done, call):
    code, _, err = call("run", "tiny.toml", "--model.device", "cpu", "--train.log-every-tokens", "64")
    assert code == 0
    assert "complete" in err


# ---- architectures


def test_an_architecture_is_chosen_by_a_flag_and_keeps_what_the_file_says(here, call):
    code, out, err = call("run", "tiny.toml", "--sae.architecture", "jumprelu", "--sae.bandwidth", "0.3", "--json")
    assert code == 0, err
    written = load_config(here / "runs/tiny/config.toml").sae
    assert (written.architecture, written.k, written.expansion, written.bandwidth) == ("jumprelu", 4, 2, 0.3)
    assert all(stage["status"] == "done" for stage in json.loads(out)["stages"].values())


def test_the_flags_are_those_of_the_architecture(call, here):
    assert "--sae.prefixes" in call("train", "tiny.toml", "--sae.architecture=matryoshka", "--help")[1]
    code, out, _ = call("train", "tiny.toml", "--help")
    assert code == 0 and "--sae.prefixes" not in out and "--sae.auxk-weight" in out
    code, _, err = call("train", "tiny.toml", "--sae.architecture", "relu", "--sae.auxk-weight", "1")
    assert code == 2 and "--sae.auxk-weight" in err


def test_an_unknown_architecture_is_refused_with_the_nearest(call, here):
    of_user(
        call("train", "tiny.toml", "--sae.architecture", "gatd"),
        "There is no architecture 'gatd'.",
        "Did you mean 'gated'?",
    )


# ---- what cannot be


def test_more_groups_than_layers_are_refused_before_text_is_read(here, call, monkeypatch):
    monkeypatch.setattr("groupsae.recipes.tokens.read_rows", lambda *_, **__: pytest.fail("text was read"))
    of_user(call("run", "tiny.toml", "--group.groups", "4"), "group.groups = 4", "only 3 hookpoints", "1 to 3")
    assert not (here / "runs").exists()


def test_more_latents_kept_than_there_are_are_refused_before_text_is_read(here, call, monkeypatch):
    monkeypatch.setattr("groupsae.recipes.tokens.read_rows", lambda *_, **__: pytest.fail("text was read"))
    of_user(call("run", "tiny.toml", "--sae.k", "33"), "sae.k = 33 is more than the 32 latents")


def test_a_hookpoint_that_is_not_there_is_refused_before_text_is_read(here, call, monkeypatch):
    monkeypatch.setattr("groupsae.recipes.tokens.read_rows", lambda *_, **__: pytest.fail("text was read"))
    of_user(call("run", "tiny.toml", "--activations.hookpoints", "layer.1"), "Did you mean 'layers.1'?")


def test_a_hookpoint_that_is_not_there_is_refused_by_the_stage_that_reads_text(here, call, monkeypatch):
    monkeypatch.setattr("groupsae.recipes.tokens.read_rows", lambda *_, **__: pytest.fail("text was read"))
    file = here / "tiny.toml"
    file.write_text(file.read_text().replace("[activations]", '[activations]\nhookpoints = "layer.1"'))
    of_user(call("tokens", "tiny.toml"), "Did you mean 'layers.1'?")


def test_rows_longer_than_the_model_reads_are_refused(here, call):
    of_user(call("run", "tiny.toml", "--text.context-length", "128"), "context_length = 128", "at most 64")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("/model", "/no-model", ("ModelError: There is no model directory", "no-model")),
        ("/text.jsonl", "/no-text.jsonl", ("TextError: There is no text at", "no-text.jsonl")),
        ("context_length = 16", "context_legnth = 16", ("in [text]", "Did you mean 'context_length'?")),
        ("num_tokens = 512", "num_tokens = -512", ("in [train]: num_tokens", "given -512")),
        ("k = 4", 'k = "four"', ("in [sae]: k", "given 'four'")),
        ("groups = 2", 'method = "/no/groups.toml"', ("/no/groups.toml",)),
        ("[train]", "[train", ("tiny.toml cannot be read as TOML",)),
    ],
)
def test_a_fault_in_the_config_is_the_users(here, call, old, new, words):
    file = here / "tiny.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    of_user(call("run", "tiny.toml"), *words)


def test_a_damaged_file_of_a_run_is_the_users(done, call):
    file = done / "distances.json"
    file.write_text("{".ljust(file.stat().st_size))
    of_user(call("group", "runs/tiny", "--overwrite"), "distances.json is damaged")
    file.write_text("{")
    of_user(call("group", "runs/tiny", "--overwrite"), "'distances' is out of date (distances.json has 1 bytes where")


def test_cut_off_rows_are_the_users(done, call):
    rows = done / "tokens/rows.safetensors"
    rows.write_bytes(rows.read_bytes()[:-10])
    of_user(call("distances", "runs/tiny", "--overwrite"), "'tokens' is out of date (tokens/rows.safetensors has")


def test_a_place_that_cannot_be_written_is_the_users(here, call):
    (here / "file").write_text("in the way")
    of_user(call("tokens", "tiny.toml", "--out", "file/run"), "StorageError: Cannot write")


# ---- verbs and flags


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "tiny.toml"], ("There is no verb 'trian'", "Did you mean 'train'?")),
        (["zzz"], ("There is no verb 'zzz'. Known are tokens", "init")),
        (["run"], ("`groupsae run` needs a RUN",)),
        (["train", "--overwrite"], ("`groupsae train` needs a RUN",)),
        (["run", "none.toml"], ("There is no config file none.toml", "`groupsae init`")),
        (["show"], ("needs a run directory",)),
        (["show", "none"], ("none is not a run directory",)),
        (["show", "."], (". is not a run directory",)),
        (["show", "none.toml"], ("There is no config file none.toml",)),
        (["show", "tiny.toml"], ("runs/tiny is not a run directory",)),
        (["show", "tiny.toml", "--jsno"], ("--jsno", "groupsae show RUN [--json]")),
        (["init", "tiny.toml"], ("tiny.toml exists",)),
        (["init", "a.toml", "b.toml"], ("b.toml", "groupsae init [NAME.toml]")),
        (["init", "--overwrite"], ("--overwrite",)),
        (["train", "tiny.toml", "--num-tokens", "-5"], ("num_tokens", "greater than 0", "-5")),
    ],
)
def test_a_wrong_command_says_what_is_right(here, call, arguments, words):
    of_user(call(*arguments), *words)
    assert [path.name for path in here.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("flags", [["--num-token", "5"], ["--num-tokens"], ["--num-tokens", "many"], ["--k", "5"]])
def test_a_wrong_flag_ends_with_exit_code_two(here, call, flags):
    code, out, err = call("train", "tiny.toml", *flags)
    assert code == 2
    assert "Traceback" not in err + out
    assert flags[0] in err


@pytest.mark.parametrize("verb", ["run", "demo", "init", "show", *STAGE_NAMES])
def test_every_verb_has_help(here, call, verb):
    code, out, err = call(verb, "--help")
    assert code == 0
    assert f"groupsae {verb}" in out and err == ""
    assert [path.name for path in here.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_verb(call, arguments):
    code, out, _ = call(*arguments)
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in (*cli.STAGE_VERBS, *cli.OTHER_VERBS))


def test_every_stage_has_a_verb():
    assert tuple(cli.STAGE_VERBS) == STAGE_NAMES


@pytest.mark.parametrize(
    ("verb", "flags", "words"),
    [
        ("train", ("--nonsense", "1"), ("Unrecognized options: --nonsense, 1", "groupsae train RUN --help")),
        ("train", ("--num-tokns", "5"), ("Perhaps you meant", "--num-tokens INT")),
        ("train", ("--sae.k", "many"), ("--sae.k", "'many'")),
        ("transfer", ("--directon", "group"), ("Perhaps you meant", "--direction {forward,backward,group}")),
        ("eval", ("--bogus",), ("Unrecognized options: --bogus",)),
    ],
)
def test_a_wrong_flag_is_told_with_what_was_meant(here, call, verb, flags, words):
    code, out, err = call(verb, "tiny.toml", *flags)
    assert code == 2 and out == "" and "Traceback" not in err
    assert all(word in err for word in words), err
    assert not (here / "runs").exists()


def test_the_version_is_told(call):
    code, out, _ = call("--version")
    assert code == 0
    assert out.count(".") == 2


def test_init_writes_a_config_that_can_be_read(here, call):
    code, out, _ = call("init", "mine.toml")
    assert code == 0
    assert "groupsae run mine.toml" in out
    assert load_config(Path("mine.toml")).name == "mine"


def test_a_fault_of_our_own_is_told_as_such(done, call, monkeypatch):
    before = snapshot(done)

    def broken(compared):
        return 1 // 0

    monkeypatch.setitem(PARTS, "reconstruction", broken)
    code, _, err = call("eval", "runs/tiny", "--overwrite")
    assert code == 1
    assert "ZeroDivisionError" in err and "fault of groupsae" in err.splitlines()[-1]
    assert snapshot(done) == before


def test_an_interruption_ends_with_exit_code_130(here, call, monkeypatch):
    def interrupted(bench):
        raise KeyboardInterrupt

    monkeypatch.setattr("groupsae.recipes.tokens.tokenize", interrupted)
    code, _, err = call("tokens", "tiny.toml")
    assert code == 130
    assert "Traceback" not in err


def test_an_interrupted_second_training_goes_on_by_the_same_command(done, call, monkeypatch):
    again = ("train", done, "--num-tokens", "1024", "--overwrite")
    train = importlib.import_module("groupsae.recipes.train")
    whole, logged = train.train_together, []

    def stops_after_a_checkpoint(*arguments, hooks, **options):
        def interrupt(record):
            hooks.log(record)
            logged.append(record["tokens"])
            if record["tokens"] > 600:
                raise KeyboardInterrupt

        return whole(*arguments, hooks=replace(hooks, log=interrupt), **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_together", stops_after_a_checkpoint)
        assert call(*again)[0] == 130
    code, _, err = call(*again)
    assert code == 0 and "going on from step" in err
    tokens = [json.loads(line)["tokens"] for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert tokens == sorted(set(tokens)) and tokens[-1] == 1024
