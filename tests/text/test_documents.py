import io
import sys
import types
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from groupsae.errors import ConfigError, TextError
from groupsae.text.demo.text import LEFT_OUT, is_held_out, standard_library_files, standard_library_path
from groupsae.text.documents import documents
from groupsae.text.notes import ReadingNotes


def texts(*source, **options):
    return [document.text for document in documents(map(str, source), **options)]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".py", ".TXT"])
def test_a_text_file_is_one_document(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    file.write_text("one\n\ntwo\n")
    assert texts(file) == ["one\n\ntwo\n"]


def test_each_line_of_jsonl_is_a_document(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": "t\\nw\\u00f6", "id": 2}\n')
    assert texts(file) == ["one", "t\nwö"]


def test_each_row_of_parquet_is_a_document(tmp_path):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3, 4], "text": ["one", None, "", "two"]}), file)
    assert texts(file) == ["one", "two"]


def test_the_field_can_be_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"body": ["two"]}), tmp_path / "b.parquet")
    assert texts(tmp_path, field="body") == ["one", "two"]


def test_a_folder_gives_the_readable_files_below_it_in_order(tmp_path):
    for name in ("b.txt", "a/z.md", "a/b/c.py", "image.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a/b/c.py", "a/z.md", "b.txt"]


def test_sources_are_read_in_the_order_given(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert texts(tmp_path / "b.txt", tmp_path / "a.txt") == ["b", "a"]


def test_a_dash_reads_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO("läuft \xff".encode("latin-1"))))
    assert texts("-") == ["l�uft �"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_bytes_that_are_not_utf8_are_replaced(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"a\xff\xc3b" if suffix == ".txt" else b'{"text": "a\xff\xc3b"}')
    assert texts(file) == ["a��b"]


def test_nul_bytes_are_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0b")
    assert texts(tmp_path / "a.txt") == ["a\0b"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_byte_order_mark_is_not_text(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    file.write_text("a" if suffix == ".txt" else '{"text": "a"}', encoding="utf-8-sig")
    assert texts(file) == ["a"]


def test_a_lone_surrogate_in_json_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert texts(tmp_path / "a.jsonl") == ["a�b 😀"]


def test_a_missing_file_is_an_error_before_any_text_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    reading = documents([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    with pytest.raises(TextError, match=r"There is no text at '.*b\.txt'\. Readable are files and folders of \.txt"):
        next(reading)


def test_a_file_of_an_unknown_kind_is_an_error_that_says_what_can_be_read(tmp_path):
    (tmp_path / "a.docx").write_text("a")
    with pytest.raises(
        TextError, match=r"a\.docx is of an unknown kind\. Readable are files and folders of \.txt \.md \.py"
    ):
        texts(tmp_path / "a.docx")


def test_a_folder_without_text_is_an_error(tmp_path):
    with pytest.raises(TextError, match="holds no text"):
        texts(tmp_path)


def test_text_given_in_place_of_a_name_is_an_error(tmp_path):
    with pytest.raises(TextError, match="cannot be read"):
        texts("the text itself " * 1000)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('"text"', r"line 2 has no text under 'text' \(it has: str\)"),
        ('{"body": "a", "id": 1}', r"line 2 has no text under 'text' \(it has: body, id\)\. Set text\.field\."),
        ('{"text": 5}', "line 2: 'text' holds the number 5"),
    ],
)
def test_a_bad_line_of_jsonl_is_an_error_with_its_number(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(TextError, match=message):
        texts(tmp_path / "a.jsonl")


def test_a_missing_column_of_parquet_is_an_error(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(TextError, match="no column 'text', only id, body"):
        texts(tmp_path / "a.parquet")


def test_a_column_of_parquet_that_is_not_text_is_an_error(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [[1.5, 2]]}), tmp_path / "a.parquet")
    with pytest.raises(TextError, match=r"row 0: 'text' holds a list of numbers\. It should hold a text"):
        texts(tmp_path / "a.parquet")


@pytest.mark.parametrize("keep", [0, 100])
def test_a_parquet_file_that_is_cut_off_is_an_error(tmp_path, keep):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 1000]}), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(TextError, match="cannot be read"):
        texts(file)


# ---- Hugging Face datasets


def install_datasets(monkeypatch, load_dataset):
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_dataset_without_the_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'groupsae\[hub\]'"):
        texts("hf:somebody/something")


def test_a_dataset_is_streamed(monkeypatch):
    asked = []

    def load_dataset(name, subset, *, split, streaming):
        asked.append((name, subset, split, streaming))
        return iter({"body": text} for text in ("one", "two"))

    install_datasets(monkeypatch, load_dataset)
    assert texts("hf:somebody/something:en", field="body", split="validation") == ["one", "two"]
    assert texts("hf:somebody/something", field="body") == ["one", "two"]
    assert asked == [("somebody/something", "en", "validation", True), ("somebody/something", None, "train", True)]


def test_a_dataset_without_the_field_is_an_error(monkeypatch):
    install_datasets(monkeypatch, lambda *_, **__: iter([{"body": "one"}]))
    with pytest.raises(TextError, match=r"something, document 0 has no text under 'text' \(it has: body\)"):
        texts("hf:somebody/something")


def test_null_and_empty_texts_of_a_dataset_are_left_out_and_counted(monkeypatch):
    rows = [{"text": text} for text in ("one", None, "", "two")]
    install_datasets(monkeypatch, lambda *_, **__: iter(rows))
    notes = ReadingNotes()
    found = [document.text for document in documents(["hf:somebody/something"], notes=notes)]
    assert (found, notes.num_empty) == (["one", "two"], 2)


def test_empty_standard_input_is_counted(monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
    notes = ReadingNotes()
    assert (list(documents(["-"], notes=notes)), notes.num_empty) == ([], 1)


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError, RuntimeError])
def test_a_dataset_that_cannot_be_had_is_an_error(monkeypatch, error):
    def load_dataset(*_, **__):
        raise error("no such dataset")

    install_datasets(monkeypatch, load_dataset)
    with pytest.raises(TextError, match="'somebody/something' cannot be read: no such dataset"):
        texts("hf:somebody/something")


# ---- the demo's source


def test_the_standard_library_is_split_in_two_without_overlap():
    train, held_out = set(standard_library_files(False)), set(standard_library_files(True))
    assert train and held_out
    assert not train & held_out
    assert train | held_out == set(standard_library_files())
    assert len(held_out) < len(train) / 4


def test_the_standard_library_leaves_tests_and_installed_packages_out():
    relative = [file.relative_to(standard_library_path()) for file in standard_library_files()]
    assert not [path for path in relative if {"test", "tests", "site-packages"} & set(path.parts)]
    assert {"ast.py", "json/decoder.py"} <= {path.as_posix() for path in relative}
    assert {"test", "tests", "site-packages"} <= LEFT_OUT


def test_the_demo_holds_out_the_files_that_its_model_was_not_trained_on():
    held_out = {document.text for document in documents(["demo"]) if document.held_out}
    expected = {file.read_text(encoding="utf-8", errors="replace") for file in standard_library_files(True)}
    assert held_out == expected - {""}


def test_the_split_of_the_demo_is_pinned():
    """The built-in model was trained on this side of the split; another hash would show it held-out files."""
    names = ("ast.py", "json/decoder.py", "asyncio/events.py", "argparse.py", "typing.py", "csv.py", "os.py")
    assert [name for name in names if is_held_out(Path(name))] == ["ast.py"]
