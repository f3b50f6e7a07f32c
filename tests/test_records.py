import json
import subprocess
import sys
import textwrap

import permissions
import pytest

from groupsae.config import (
    CircuitsConfig,
    ContextsConfig,
    EvalConfig,
    GroupConfig,
    ModelConfig,
    PlanConfig,
    RunConfig,
    TextConfig,
    TopKConfig,
    TrainConfig,
)
from groupsae.errors import RunError, StorageError
from groupsae.records import STAGE_NAMES, RunDirectory
from groupsae.records.types.manifest import ModelRecord
from groupsae.storage import sweep, write_atomically


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finish(run, *stages):
    """Record stages as done, each with one file."""
    run.adopt()
    for stage in stages:
        run.write_text(f"{stage}.txt", f"{stage} of {run.config.seed}")
        run.finish(stage, 1.0, [f"{stage}.txt"])


def statuses(run):
    return {stage: run.status(stage) for stage in STAGE_NAMES}


# ---- files


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", lambda path: path.write_text("new"))
    assert files(tmp_path) == {"a/b.txt": b"new"}


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, OSError])
def test_a_writer_that_fails_leaves_what_was_there_and_no_temporary_file(tmp_path, old, error):
    if old:
        (tmp_path / "a.txt").write_text(old)
    before = files(tmp_path)

    def write(path):
        path.write_text("half")
        raise error("in the middle")

    with pytest.raises(StorageError if error is OSError else error):
        write_atomically(tmp_path / "a.txt", write)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_a_storage_error_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"Cannot write .*file/run/a\.txt: .* what was there before is intact"):
        write_atomically(tmp_path / "file" / "run" / "a.txt", lambda path: path.write_text("new"))


def test_a_read_only_folder_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with permissions.binding(), pytest.raises(StorageError, match="Permission denied"):
        write_atomically(tmp_path / "a.txt", lambda path: path.write_text("new"))


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import numpy, torch
    from groupsae.errors import StorageError
    from groupsae.records import RunDirectory
    from groupsae.config import RunConfig
    from safetensors.torch import save_file
    from groupsae.text.tokens import TokenRows

    rows = TokenRows(numpy.zeros((1000, 8), numpy.uint16), (), 1, TokenRows(numpy.zeros((10, 8), numpy.uint16)))
    run = RunDirectory(Path(sys.argv[1]), RunConfig())
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    tasks = {
        "text": lambda: run.write_text("text.txt", "x" * 9999),
        "json": lambda: run.append_json("lines.jsonl", "x" * 9999),
        "rows": lambda: run.write("rows.safetensors", rows.save),
        "weights": lambda: run.write("w.safetensors", lambda path: save_file({"w": torch.zeros(9999)}, path)),
    }
    for name, write in tasks.items():
        try:
            write()
        except StorageError as error:
            print(name, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_a_full_disk_is_a_storage_error_and_leaves_nothing_half_written(tmp_path):
    for name in ("text.txt", "rows.safetensors", "w.safetensors"):
        (tmp_path / name).write_text("old")
    script = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)]
    found = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert [line.split()[0] for line in found.stdout.splitlines()] == ["text", "json", "rows", "weights"]
    assert "File too large" in found.stdout
    whole = {name: text for name, text in files(tmp_path).items() if name != "lines.jsonl"}
    assert whole == {"text.txt": b"old", "rows.safetensors": b"old", "w.safetensors": b"old"}


def test_nan_is_not_written_as_json(tmp_path):
    run = RunDirectory(tmp_path, RunConfig())
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("a.json", {"value": float("nan")})
    assert files(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_json_that_is_damaged_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "plan.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"plan\.json is damaged"):
        RunDirectory(tmp_path, RunConfig()).read_json("plan.json")


def test_json_that_is_missing_is_an_error_that_says_where_to_look(tmp_path):
    with pytest.raises(RunError, match=r"has no plan\.json\. `groupsae show .*` says what is missing"):
        RunDirectory(tmp_path, RunConfig()).read_json("plan.json")


@pytest.mark.parametrize("text", ["[]", "5", '{"stages": []}', "{"])
def test_a_damaged_manifest_is_an_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        RunDirectory(tmp_path, RunConfig()).status("tokens")


# ---- what belongs to what

CHANGES = {
    "seed": (RunConfig(seed=1), STAGE_NAMES),
    "model": (RunConfig(model=ModelConfig(dtype="bfloat16")), STAGE_NAMES),
    "text": (RunConfig(text=TextConfig(context_length=64)), STAGE_NAMES),
    "group": (RunConfig(group=GroupConfig(max_amad=0.3)), STAGE_NAMES[2:]),
    "sae": (RunConfig(sae=TopKConfig(k=7)), STAGE_NAMES[3:]),
    "train": (RunConfig(train=TrainConfig(num_tokens=7)), STAGE_NAMES[3:]),
    "contexts": (RunConfig(contexts=ContextsConfig(num_tokens=7)), ("contexts", "browse", "report")),
    "eval": (RunConfig(eval=EvalConfig(num_tokens=7)), ("eval", "report")),
    "circuits": (RunConfig(circuits=CircuitsConfig(num_pairs=7)), ("eval", "report")),
    "name": (RunConfig(name="other"), ()),
    "device": (RunConfig(model=ModelConfig(device="cpu")), ()),
    "log_every_tokens": (RunConfig(train=TrainConfig(log_every_tokens=7, save_every_tokens=8)), ()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_value_makes_stale_exactly_what_depends_on_it(tmp_path, what):
    changed, stale = CHANGES[what]
    finish(RunDirectory(tmp_path, RunConfig()), *STAGE_NAMES)
    assert set(statuses(RunDirectory(tmp_path, RunConfig())).values()) == {"done"}
    found = statuses(RunDirectory(tmp_path, changed))
    assert found == {stage: "stale" if stage in stale else "done" for stage in STAGE_NAMES}


def test_a_stage_is_missing_until_it_is_finished_and_when_a_file_of_it_is_gone(tmp_path):
    run = RunDirectory(tmp_path, RunConfig())
    assert set(statuses(run).values()) == {"missing"}
    finish(run, "tokens")
    assert run.status("tokens") == "done"
    run.file("tokens.txt").unlink()
    assert run.status("tokens") == "missing"


def test_an_earlier_stage_made_again_with_another_result_makes_later_ones_stale(tmp_path):
    run = RunDirectory(tmp_path, RunConfig())
    finish(run, *STAGE_NAMES)
    run.write_text("group.txt", "another result")
    run.finish("group", 1.0, ["group.txt"])
    found = statuses(run)
    assert (found["distances"], found["group"], found["train"], found["eval"]) == ("done", "done", "stale", "stale")


def test_an_earlier_stage_made_again_with_the_same_result_leaves_later_ones_alone(tmp_path):
    run = RunDirectory(tmp_path, RunConfig())
    finish(run, *STAGE_NAMES)
    run.finish("tokens", 2.0, ["tokens.txt"])
    assert set(statuses(run).values()) == {"done"}


def test_a_stage_that_is_needed_names_the_command_that_does_it(tmp_path):
    run = RunDirectory(tmp_path, RunConfig())
    finish(run, "tokens")
    run.require("tokens")
    with pytest.raises(RunError, match=rf"'distances' has not run .* `groupsae distances {tmp_path}` first"):
        run.require("tokens", "distances", "group")
    changed = RunDirectory(tmp_path, RunConfig(seed=3))
    with pytest.raises(RunError, match="'tokens' is out of date"):
        changed.require("tokens")


def test_the_manifest_records_what_was_run_where(tmp_path):
    run = RunDirectory(tmp_path, RunConfig())
    run.describe(ModelRecord(name="demo"))
    finish(run, "tokens")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"] == {"name": "demo"}
    assert {"groupsae", "python", "torch", "transformers", "platform", "cores", "commit"} <= set(
        manifest["environment"]
    )
    assert manifest["stages"]["tokens"]["files"]["tokens.txt"]["bytes"] == len("tokens of 0")


@pytest.mark.parametrize("kind", ["stages", "parts"])
@pytest.mark.parametrize("record", [3, {}, {"fingerprint": 1, "files": {}}, {"fingerprint": "", "files": {"x": 1}}])
def test_a_manifest_of_another_form_is_refused(tmp_path, kind, record):
    run = RunDirectory(tmp_path, RunConfig())
    finish(run, "tokens")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest[kind]["x"] = record
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        run.status("tokens")


def test_parts_of_a_stage_are_verified_as_the_stage_is(tmp_path):
    run = RunDirectory(tmp_path, RunConfig())
    finish(run, "tokens")
    run.write_text("losses.json", "1")
    run.finish("eval", 1.0, ["losses.json"], part="losses.json")
    run.require_intact()
    run.write_text("losses.json", "2")
    with pytest.raises(RunError, match=r"losses\.json has another SHA-256"):
        run.require_intact()


# ---- whose directory it is


def test_a_run_can_be_opened_again(tmp_path):
    config = RunConfig(seed=5, train=TrainConfig(learning_rate=1e-3))
    RunDirectory(tmp_path, config).adopt()
    assert RunDirectory.open(tmp_path).config == config


def test_a_run_directory_of_another_config_is_refused_and_the_keys_are_named(tmp_path):
    finish(RunDirectory(tmp_path, RunConfig()), "tokens", "train")
    other = RunConfig(seed=2, train=TrainConfig(num_tokens=5))
    named = r"seed: 0 -> 2 \(read by tokens and train\); train\.num_tokens: 100000000 -> 5 \(read by train\)"
    with pytest.raises(RunError, match=named):
        RunDirectory.at(tmp_path, other)
    assert RunDirectory.at(tmp_path, other, overwrite=True).config == other


def test_a_run_directory_of_a_config_that_gives_the_same_results_is_taken(tmp_path):
    RunDirectory(tmp_path, RunConfig()).adopt()
    other = RunConfig(model=ModelConfig(device="cpu"), train=TrainConfig(log_every_tokens=5))
    assert RunDirectory.at(tmp_path, other).config == other


def test_nothing_is_written_before_a_stage_runs(tmp_path):
    RunDirectory.at(tmp_path / "new", RunConfig())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: (path / "mine").mkdir(parents=True)])
def test_what_is_not_a_run_directory_is_not_written_into(tmp_path, make):
    make(tmp_path / "mine")
    with pytest.raises(RunError, match="exists and is not a run directory"):
        RunDirectory.at(tmp_path / "mine", RunConfig(), overwrite=True)


def test_opening_what_is_not_a_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory: it has no config\.toml"):
        RunDirectory.open(tmp_path)


def test_a_key_may_change_until_a_stage_has_read_it(tmp_path):
    before, after = RunConfig(plan=PlanConfig(calibrate=True)), RunConfig(plan=PlanConfig(calibrate=False))
    run = RunDirectory(tmp_path, before)
    run.adopt()
    finish(run, "tokens", "distances", "group")
    assert RunDirectory.at(tmp_path, after).config == after
    finish(run, "plan")
    with pytest.raises(RunError, match=r"plan\.calibrate: True -> False \(read by plan\)"):
        RunDirectory.at(tmp_path, after)
    assert RunDirectory.at(tmp_path, after, overwrite=True).config == after


def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(tmp_path):
    names = [".x1y2z3.part", "groups/a/.tmpXuRy4f", "groups/a/.tmp", ".tmp-notes", "groups/a/sae.safetensors"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert sorted(files(tmp_path)) == sorted(names[2:])
