"""Tracking libraries receive what metrics.jsonl does, and nothing that they do reaches the training."""

from __future__ import annotations

import json
import sqlite3
import textwrap
import time
from pathlib import Path

import pytest

from groupsae.progress import say
from groupsae.training.trackers import TrackedRun, Trackers, scalars

RECORDS = [
    {
        "step": step,
        "tokens": 100 * step,
        "seconds": 0.5 * step,
        "kernel": "gather",
        "groups": {
            "layers.0": {"fvu": 1 / step, "l0": 16.0, "skipped": 0},
            "layers.1-layers.2": {"fvu": 2 / step, "l0": 16.0, "skipped": 0},
        },
    }
    for step in range(1, 6)
]
CONFIG = {"name": "tiny", "sae.k": 16, "text.source": ["demo"]}


def track(names, folder, records=RECORDS, **options):
    """Hand records to libraries; the seconds that handing on took, and those of the end."""
    began = time.monotonic()
    with Trackers(names, TrackedRun("tiny", folder, CONFIG), say, **options) as trackers:
        for record in records:
            trackers.log(record)
        logged = time.monotonic()
    return logged - began, time.monotonic() - logged


def test_the_numbers_of_a_record_by_name():
    record = RECORDS[0] | {"groups": {"a": {"loss": 1.5, "bad": float("nan"), "text": "x", "flag": True, "none": None}}}
    assert scalars(record) == {"steps": 1, "seconds": 0.5, "loss/a": 1.5}


def test_without_a_library_nothing_happens(tmp_path, capfd):
    track([], tmp_path)
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_library_that_is_missing_is_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    track(["wandb", "trackio"], tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 2
    assert "pip install 'groupsae[wandb]'" in err and "Training goes on" in err


# ---- libraries in trouble, played by a module of the same name


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Makes a module `trackio` whose functions have these bodies."""

    def make(init="pass", log="pass", finish="pass"):
        text = "import os, sys, time\n"
        for name, body in (("init", init), ("log", log), ("finish", finish)):
            text += f"def {name}(*args, **options):\n{textwrap.indent(body, '    ')}\n"
        folder = tmp_path / "library"
        folder.mkdir()
        (folder / "trackio.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return make


def test_every_record_is_handed_on_in_order(library, tmp_path):
    folder = library(log=f"open({str(tmp_path / 'seen')!r}, 'a').write(repr((args[0], options)) + chr(10))")
    track(["trackio"], tmp_path)
    seen = [eval(line) for line in (folder.parent / "seen").read_text().splitlines()]
    assert [options for _, options in seen] == [{"step": record["tokens"]} for record in RECORDS]
    assert [values for values, _ in seen] == [scalars(record) for record in RECORDS]


@pytest.mark.parametrize(
    ("where", "trouble", "reason"),
    [
        ("init", "raise ConnectionError('no network\\nmore')", "ConnectionError: no network"),
        ("init", "input('your key: ')", "EOFError"),
        ("init", "sys.exit(3)", "SystemExit: 3"),
        ("log", "raise OSError(122, 'Disk quota exceeded')", "Disk quota exceeded"),
        ("log", "os._exit(1)", "its process ended"),
        ("log", "os.kill(os.getpid(), 9)", "its process ended"),
        ("finish", "raise RuntimeError('full')", "RuntimeError: full"),
    ],
)
def test_a_library_that_fails_is_one_line(library, tmp_path, capfd, where, trouble, reason):
    library(**{where: trouble})
    track(["trackio"], tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert reason in err and "Training goes on" in err and "more" not in err


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_library_that_hangs_holds_nothing_up(library, tmp_path, capfd, where):
    library(**{where: "time.sleep(600)"})
    many = [RECORDS[0] | {"tokens": number} for number in range(2000)]
    logging, closing = track(["trackio"], tmp_path, many, closing_seconds=1.0)
    assert logging < 5 and closing < 10
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "did not finish within 1 s" in err


def test_a_library_that_falls_far_behind_is_given_up(library, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("groupsae.training.trackers.WAITING_RECORDS", 50)
    library(init="time.sleep(600)")
    big = {"layers.0": {f"number {i}": float(i) for i in range(2000)}}
    many = [RECORDS[0] | {"tokens": number, "groups": big} for number in range(200)]
    _, closing = track(["trackio"], tmp_path, many)
    err = capfd.readouterr().err
    assert "50 records behind" in err and len(err.splitlines()) == 1 and closing < 10


def test_what_a_library_prints_is_not_shown(library, tmp_path, capfd):
    noise = "print('noise'); sys.stderr.write('noise'); os.system('echo noise')"
    library(noise, noise, noise)
    track(["trackio"], tmp_path)
    assert "noise" not in "".join(capfd.readouterr())


def test_an_error_of_the_training_passes(library, tmp_path):
    library()
    with pytest.raises(ZeroDivisionError), Trackers(["trackio"], TrackedRun("tiny", tmp_path, CONFIG), say) as trackers:
        trackers.log(RECORDS[0])
        raise ZeroDivisionError


# ---- the real packages, without network


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No account, no network, and homes of their own."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("HOME", "HF_HOME", "TRACKIO_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    return tmp_path / "trackers"


def test_tensorboard_shows_every_number(offline, capfd):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (groupsae[tensorboard])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(["tensorboard"], offline)
    found = EventAccumulator(str(offline / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == set(scalars(RECORDS[0]))
    events = found.Scalars("fvu/layers.1-layers.2")
    assert [event.step for event in events] == [record["tokens"] for record in RECORDS]
    assert [event.value for event in events] == pytest.approx([2 / record["step"] for record in RECORDS])
    assert str(offline / "tensorboard") in capfd.readouterr().err


def test_tensorboard_forgets_steps_that_a_resumed_run_repeats(offline):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (groupsae[tensorboard])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(["tensorboard"], offline)
    time.sleep(1.1)  # files are named by the second
    track(["tensorboard"], offline, RECORDS[2:])
    events = EventAccumulator(str(offline / "tensorboard")).Reload().Scalars("fvu/layers.0")
    assert [event.step for event in events] == [record["tokens"] for record in RECORDS]


def test_wandb_without_an_account_records_offline(offline, capfd):
    pytest.importorskip("wandb", reason="wandb is not installed (groupsae[wandb])")
    track(["wandb"], offline)
    err = capfd.readouterr().err
    assert "wandb sync" in err and len(err.splitlines()) == 1
    (written,) = offline.rglob("run-*.wandb")
    data = written.read_bytes()
    assert "offline" in written.parent.name
    assert all(name.encode() in data for name in (*scalars(RECORDS[0]), "sae.k"))


def test_trackio_keeps_every_number(offline, capfd):
    pytest.importorskip("trackio", reason="trackio is not installed (groupsae[trackio])")
    track(["trackio"], offline)
    assert "trackio show" in capfd.readouterr().err
    (base,) = (offline.parent / "home" / "TRACKIO_DIR").rglob("groupsae*.db")
    with sqlite3.connect(base) as opened:
        found = opened.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for step, _ in found] == [record["tokens"] for record in RECORDS]
    assert json.loads(found[0][1]) == scalars(RECORDS[0])


# ---- a run


def test_a_training_is_the_same_with_and_without(done, call, library, tmp_path):
    names = sorted(path.relative_to(done) for path in (*done.rglob("sae.safetensors"), done / "metrics.jsonl"))
    before = {name: (done / name).read_bytes() for name in names}
    library(log=f"open({str(tmp_path / 'seen')!r}, 'a').write(str(options['step']) + chr(10))")
    code, _, err = call("train", done, "--overwrite", "--report-to", "trackio")
    assert code == 0 and "trackio show" in err
    assert {name: (done / name).read_bytes() for name in names} == before
    steps = [json.loads(line)["tokens"] for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [int(line) for line in (tmp_path / "seen").read_text().split()] == steps
    assert not (Path(done) / "trackers").exists()


def test_whom_to_report_to_may_change_and_must_be_known(done, call):
    assert call("train", done, "--report-to", "tensorboard")[0] == 0
    assert call("train", done, "--report-to", "mlflow")[0] == 2
