"""Anything at all, in place of what is expected: a result or one of our errors, never a traceback or a hang."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w
import torture
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from torture import note, times

from groupsae import cli
from groupsae.config import RunConfig, dump_config, load_config
from groupsae.errors import GroupsaeError, PartitionError, TextError
from groupsae.grouping.choose import read_partition
from groupsae.models import load_model
from groupsae.partition import Partition
from groupsae.recipes import context as workbench
from groupsae.text.tokens import TokenRows

TRIED: Counter[str] = Counter()
LONGEST = 60
PHASES = (Phase.explicit, Phase.generate)
"""No shrinking under torture: the first fault is told as it is."""


def tried(short: int, long: int):
    """Runs a test on so many inputs, each within a time, and counts them."""

    def decorate(test):
        return settings(
            max_examples=times(short, long),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        )(test)

    return decorate


@contextlib.contextmanager
def one(what: str):
    """Counts an input and ends what hangs."""
    TRIED[what] += 1

    def hang(*_):
        raise AssertionError(f"hung for {LONGEST} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def _told():
    yield
    tell()


def tell() -> None:
    """Have it printed how many inputs were tried."""
    for what, count in TRIED.items():
        note(f"fuzzing: {count} {what}, 0 tracebacks, 0 hangs")


def test_the_number_of_inputs_that_were_tried_is_printed(request, monkeypatch):
    printed: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "TRIED", Counter())
    monkeypatch.setattr(torture, "FIGURES", figures := [])
    summary = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    monkeypatch.setattr(summary, "FIGURES", figures)
    for _ in range(3):
        with one("doors"):
            pass
    tell()
    summary.pytest_terminal_summary(SimpleNamespace(section=printed.append, line=printed.append))
    assert printed == ["reliability", "fuzzing: 3 doors, 0 tracebacks, 0 hangs"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20) | st.just([])


# ---- configs


@st.composite
def configs(draw):
    """A config file: the defaults with some values replaced, or any bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    values = json.loads(json.dumps(RunConfig().model_dump(mode="json", exclude_none=True)))
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from([name for name, value in values.items() if isinstance(value, dict)] or [""]))
        place = values.get(section, values)
        place[draw(st.sampled_from([*place, "unknown"]))] = draw(
            PLAIN | st.sampled_from([10**12, 1e308, "../x", "hf:", "~"])
        )
    return tomli_w.dumps(values).encode("utf-8", "replace")


@tried(30, 3000)
@given(content=configs())
def test_any_config_is_taken_or_refused_in_words(content):
    with one("configs"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        path.write_bytes(content)
        try:
            config = load_config(path)
        except GroupsaeError as error:
            assert str(error).startswith(str(path))
        else:
            path.write_text(dump_config(config), encoding="utf-8")
            assert load_config(path) == config or "nan" in dump_config(config)
        assert cli.main(["show", str(path)]) == 2
        assert [file.name for file in Path(folder).iterdir()] == ["x.toml"]


# ---- partitions

NAMES = ("layers.0", "layers.1", "layers.2", "layers.10")
NAME = st.sampled_from([*NAMES, "layers.*", "*", "[", "layers.99"]) | st.text(max_size=8)
GROUPS = st.lists(st.lists(NAME, max_size=4), max_size=4)


@tried(40, 3000)
@given(
    content=GROUPS.map(lambda groups: {"groups": groups}) | JSON | st.binary(max_size=60),
    suffix=st.sampled_from(["json", "toml"]),
)
def test_any_partition_file_is_taken_or_refused_in_words(content, suffix):
    with one("partitions"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{suffix}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            with contextlib.suppress(TypeError, AttributeError, UnicodeEncodeError):
                text = json.dumps(content) if suffix == "json" else tomli_w.dumps(content)
                path.write_text(text, encoding="utf-8")
        try:
            assert read_partition(path, NAMES).hookpoints == NAMES
        except GroupsaeError as error:
            assert str(error)


@tried(40, 3000)
@given(groups=GROUPS)
def test_any_groups_are_a_partition_or_refused_in_words(groups):
    with one("partitions"):
        try:
            partition = Partition(tuple(map(tuple, groups)))
        except PartitionError:
            return
        assert sorted(partition.hookpoints) == sorted(name for group in groups for name in group)
        assert len(partition.names) == len(groups)


# ---- texts


@tried(40, 3000)
@given(
    content=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    data=st.data(),
)
def test_any_text_gives_rows_or_is_refused_in_words(content, data):
    suffix = data.draw(st.sampled_from(["txt", "md", "py", "jsonl", "parquet"]))
    if suffix == "jsonl" and data.draw(st.booleans()):
        content = json.dumps({"text": content.decode("latin-1")}).encode()
    with one("texts"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{suffix}"
        path.write_bytes(content)
        try:
            rows = TokenRows.from_files(path, TOKENIZER, context_length=4)
        except TextError as error:
            assert "x." in str(error)
        else:
            assert len(rows) and len(rows.held_out)
            if suffix in ("txt", "md", "py"):
                bad = content.decode("utf-8", "replace").count("\ufffd") - content.count("\ufffd".encode())
                assert rows.num_replaced == bad
        assert path.read_bytes() == content


TOKENIZER = tiny_tokenizer()


def test_a_gigantic_line_is_a_text_like_any_other(tmp_path):
    length = times(2, 500) * 100_000
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "ab\0 " * (length // 4)}) + "\n")
    rows = TokenRows.from_files(
        tmp_path / "x.jsonl", TOKENIZER, context_length=64, max_tokens=10**9, max_held_out_tokens=10**9
    )
    assert rows.ids_RT.size + rows.held_out.ids_RT.size > length - 200
    note(f"a line of {length:,} characters: {len(rows)} rows")


# ---- run directories


@pytest.fixture(scope="module")
def model(place):
    """The tiny model, loaded once."""
    return load_model(str(place / "model"), device="cpu")


RECORDS = {"manifest.json", "report/index.html"}
"""What a command that ends in an error may have changed: a stage was done, and then its results could not be shown."""
COMMANDS = {
    "show": ("show", "--json"),
    "verify": ("show", "--verify"),
    "report": ("report",),
    "group": ("group", "--overwrite"),
    "eval": ("eval", "--overwrite"),
    "train": ("train",),
    "export": ("export", "--to", "saelens"),
    "run": ("run",),
}


@st.composite
def mutations(draw, files):
    """A file of a run, and what is done to it."""
    name = draw(st.sampled_from(files))
    kind = draw(st.sampled_from(["flip", "flip", "cut", "grow", "replace", "json", "json", "delete"]))
    place = draw(st.floats(0, 1, exclude_max=True))
    return name, kind, place, draw(st.integers(1, 255)), draw(st.binary(max_size=40)), draw(JSON), draw(st.booleans())


def mutate(path: Path, kind: str, place: float, flip: int, data: bytes, value: object) -> None:
    """Do it."""
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if kind == "delete":
        path.unlink()
    elif kind == "flip" and content:
        content[at] ^= flip
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[:at])
    elif kind == "grow":
        path.write_bytes(content[:at] + data + content[at:])
    elif kind == "json" and path.suffix == ".json":
        path.write_text(json.dumps(replaced(json.loads(content), place, value)))
    else:
        path.write_bytes(data)


def replaced(record: object, place: float, value: object) -> object:
    """A record with one of its parts, at some depth, replaced by a value."""
    items = list(record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ())
    index = int(place * (len(items) + 1))
    if index >= len(items):
        return value
    key, inner = items[index]
    changed = dict(record) if isinstance(record, dict) else list(record)
    changed[key] = replaced(inner, place * (len(items) + 1) - index, value)
    return changed


def test_any_damage_to_a_run_directory_ends_in_a_result_or_in_words(place, model, monkeypatch, capsys):
    monkeypatch.setattr(workbench, "load_model", lambda *_, **__: model)
    files = sorted(str(p.relative_to(place / "runs/tiny")) for p in (place / "runs/tiny").rglob("*") if p.is_file())

    @tried(8, 300)
    @given(mutation=mutations(files), command=st.sampled_from(sorted(COMMANDS)))
    def check(mutation, command):
        name, *damage, known = mutation
        with one("damaged run directories"), tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            shutil.copytree(place / "runs/tiny", run)
            mutate(run / name, *damage)
            if known and (run / name).exists():  # a size that the manifest expects gets by the cheap check
                pretend(run, name)
            before = contents(run)
            verb, *flags = COMMANDS[command]
            code = cli.main([verb, str(run), *flags])
            _, err = capsys.readouterr()
            assert code in (0, 2), (mutation, command, err[-3000:])
            assert "Traceback" not in err
            if verb == "show":
                assert contents(run) == before
            if code == 2 and verb != "run":
                changed = {key for key in before if contents(run).get(key) != before[key]}
                assert changed <= RECORDS, (mutation, command, changed)

    check()


def pretend(run: Path, name: str) -> None:
    """Write the file's size into the manifest, but not its SHA-256."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        manifest = json.loads((run / "manifest.json").read_text())
        for record in (*manifest["stages"].values(), *manifest["parts"].values()):
            if name in record["files"]:
                record["files"][name]["bytes"] = os.path.getsize(run / name)
        (run / "manifest.json").write_text(json.dumps(manifest))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
