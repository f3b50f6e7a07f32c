"""The documents of one file: formats, compression, encodings, fields, and rows without text."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from groupsae.errors import TextError
from groupsae.text.documents import documents
from groupsae.text.notes import ReadingNotes

ROWS = [{"text": "one", "meta": {"text": "in one"}}, {"text": "two ö", "meta": {"text": "in two"}}]


def read(*source, **options):
    notes = ReadingNotes()
    return list(documents(map(str, source), notes=notes, **options)), notes


def texts(*source, **options):
    return [document.text for document in read(*source, **options)[0]]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def write_rows(path, rows):
    """Rows in the format that the suffix says."""
    name, content = path.name, lines(rows).encode()
    if ".json." in name or name.endswith(".json"):
        content = json.dumps(rows).encode()
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith(".arrow"):
        table = pyarrow.Table.from_pylist(rows)
        make = pyarrow.ipc.new_file if "file" in name else pyarrow.ipc.new_stream
        with pyarrow.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(content))
    elif name.endswith(".zst"):
        path.write_bytes(zstd(content))
    else:
        path.write_bytes(content)
    return path


KINDS = [
    *("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.json.zst", "a.ndjson"),
    *("a.parquet", "stream.arrow", "file.arrow"),
]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_documents(tmp_path, name):
    path = write_rows(tmp_path / name, ROWS)
    assert texts(path) == ["one", "two ö"]
    assert texts(tmp_path) == ["one", "two ö"]


@pytest.mark.parametrize("name", KINDS)
def test_a_field_inside_another_is_named_with_a_dot(tmp_path, name):
    assert texts(write_rows(tmp_path / name, ROWS), field="meta.text") == ["in one", "in two"]


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_field_is_an_error(tmp_path, name):
    with pytest.raises(TextError, match=r"'body'.*Set text\.field"):
        texts(write_rows(tmp_path / name, ROWS), field="body")


@pytest.mark.parametrize("name", KINDS)
def test_null_and_empty_texts_are_left_out_and_counted(tmp_path, name):
    rows = [{"text": text} for text in ("one", None, "", "two", None)]
    found, notes = read(write_rows(tmp_path / name, rows))
    assert [document.text for document in found] == ["one", "two"]
    assert notes.num_empty == 3
    assert notes.sentences() == ["3 documents left out: null or empty"]


def test_an_empty_text_file_is_counted_as_well(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("b")
    found, notes = read(tmp_path)
    assert (len(found), notes.num_empty) == (1, 1)


def test_null_above_a_nested_field_is_null(tmp_path):
    _, notes = read(write_rows(tmp_path / "a.jsonl", [{"meta": None}]), field="meta.text")
    assert notes.num_empty == 1


def test_a_field_whose_name_has_a_dot_is_found_first(tmp_path):
    rows = [{"meta.text": "own", "meta": {"text": "inner"}}]
    assert texts(write_rows(tmp_path / "a.jsonl", rows), field="meta.text") == ["own"]
    assert texts(write_rows(tmp_path / "a.parquet", rows), field="meta.text") == ["own"]


@pytest.mark.parametrize("name", KINDS)
def test_chat_messages_and_token_ids_are_read(tmp_path, name):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]
    path = write_rows(tmp_path / name, [{"messages": messages, "input_ids": [3, 1, 4]}])
    (chat,), _ = read(path, field="messages")
    assert list(chat.messages) == messages
    (ready,), _ = read(path, field="input_ids")
    assert ready.ids.tolist() == [3, 1, 4]
    assert chat.digest != ready.digest


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "the number 5"),
        (True, "true, a truth value"),
        ({"text": "a", "id": 1}, "an object with text, id.*Set text.field, for example to 'value.text'"),
        (["a", "b"], "a list of texts"),
        ([1.5], "a list of numbers"),
        ([True], "a list of truth values"),
        ([{"from": "human", "value": "a"}], "a list of objects with from, value"),
        ([1, None], "a list of integers and null"),
        ([-1], "-1, which is no token id"),
    ],
)
def test_other_types_are_named_as_what_they_are(tmp_path, value, said):
    path = write_rows(tmp_path / "a.jsonl", [{"value": value}])
    with pytest.raises(TextError, match=rf"line 1: 'value' holds {said}"):
        read(path, field="value")


# ---- .json


def test_a_json_file_may_hold_an_object_on_each_line(tmp_path):
    (tmp_path / "a.json").write_text(lines(ROWS))
    assert texts(tmp_path / "a.json") == ["one", "two ö"]


def test_a_json_file_may_hold_one_object(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=2))
    assert texts(tmp_path / "a.json") == ["one"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"name": "x", "version": 1}', "holds an object with name, version"),
        ("[1, 2]", "holds other values"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ('{"text": "a"}\n{', "line 2 is not JSON"),
    ],
)
def test_a_json_file_without_records_is_an_error(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(TextError, match=said):
        texts(tmp_path / "a.json")


# ---- compressed


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_text_is_one_document(tmp_path, suffix):
    content = gzip.compress(b"one\ntwo") if suffix == ".gz" else zstd(b"one\ntwo")
    (tmp_path / f"a.txt{suffix}").write_bytes(content)
    assert texts(tmp_path / f"a.txt{suffix}") == ["one\ntwo"]


def test_files_of_several_compressed_parts_are_read_to_the_end(tmp_path):
    parts = [(row_lines := lines([row]).encode()) and (gzip.compress(row_lines), zstd(row_lines)) for row in ROWS]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(part[0] for part in parts))
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(part[1] for part in parts))
    assert texts(tmp_path) == ["one", "two ö"] * 2


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("keep", [0.1, 0.9])
def test_a_file_that_is_cut_off_or_damaged_is_an_error(tmp_path, name, keep):
    rows = [{"text": f"{number} {number**7}"} for number in range(500)]
    path = write_rows(tmp_path / name, rows)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(TextError, match="cannot be read"):
        texts(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.arrow", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("this is no such file " * 20)
    with pytest.raises(TextError, match="cannot be read"):
        texts(tmp_path / name)


# ---- encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.jsonl.gz"])
def test_other_encodings_are_read_by_their_byte_order_mark(tmp_path, encoding, name):
    text = "Füchse 狐 😀\nzwei"
    content = text if name == "a.txt" else lines([{"text": text}, {"text": "b"}])
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    data = (mark + content).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found, _ = read(tmp_path / name)
    assert [document.text for document in found] == ([text] if name == "a.txt" else [text, "b"])
    assert sum(document.num_replaced for document in found) == 0


def test_damaged_utf16_is_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes("ab".encode("utf-16") + b"x")
    ((document,), _) = read(tmp_path / "a.txt")
    assert (document.text, document.num_replaced) == ("ab\ufffd", 1)


# ---- folders of the library datasets


def test_a_saved_dataset_is_read_without_its_caches(tmp_path):
    write_rows(tmp_path / "data-00000-of-00001.arrow", ROWS)
    write_rows(tmp_path / "cache-1234.arrow", [{"text": "half mapped"}])
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (tmp_path / "dataset_info.json").write_text("{}")
    found, notes = read(tmp_path)
    assert [document.text for document in found] == ["one", "two ö"]
    assert notes.sentences() == ["1 file of an unknown kind passed over: .arrow that state.json does not list"]


def test_what_save_to_disk_writes_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    sides = {name: datasets.Dataset.from_list([{"text": name}, {"text": None}]) for name in ("train", "test")}
    datasets.DatasetDict(sides).save_to_disk(tmp_path)
    found, notes = read(tmp_path)
    assert [document.text for document in found] == ["train"]
    assert (notes.num_empty, notes.other_splits) == (1, {"test": 1})
    assert texts(tmp_path, split="test") == ["test"]
