"""Which files of a folder are read, and what is said of the others."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from groupsae.errors import TextError
from groupsae.text.documents import documents, source_files
from groupsae.text.files import kind_of, split_of
from groupsae.text.notes import ReadingNotes


def fill(folder, *names):
    """Files that each hold their own name as text, in the format that the suffix says."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = json.dumps({"text": name}) + "\n"
        if name.endswith((".jsonl.gz", ".json.gz")):
            path.write_bytes(gzip.compress(row.encode()))
        elif name.endswith((".jsonl", ".json")):
            path.write_text(row)
        elif name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.table({"text": [name]}), path)
        else:
            path.write_text(name)
    return folder


def read(folder, split="train"):
    notes = ReadingNotes()
    found = [document.text for document in documents([str(folder)], split=split, notes=notes)]
    return found, notes.sentences()


def test_the_card_of_a_compressed_dataset_is_not_the_corpus(tmp_path):
    fill(tmp_path, "README.md", "data/train-00000.jsonl.gz", "data/train-00001.jsonl.gz")
    found, said = read(tmp_path)
    assert found == ["data/train-00000.jsonl.gz", "data/train-00001.jsonl.gz"]
    assert said == ["1 card or code file beside the data passed over: README.md"]


@pytest.mark.parametrize("data", ["a.jsonl", "a.parquet", "a.json"])
def test_a_card_beside_data_is_passed_over_by_name(tmp_path, data):
    found, said = read(fill(tmp_path, "README.md", "LICENSE.txt", data))
    assert found == [data]
    assert said == ["2 card or code files beside the data passed over: LICENSE.txt, README.md"]


def test_a_loading_script_beside_data_is_passed_over(tmp_path):
    found, said = read(fill(tmp_path, "stories.py", "a.parquet", "b.txt"))
    assert found == ["a.parquet", "b.txt"]
    assert "stories.py" in said[0]


@pytest.mark.parametrize("code", ["README.md", "stories.py", "notes.md"])
@pytest.mark.parametrize("data", ["train.csv", "a.warc", "part.jsonl.xz"])
def test_a_card_or_code_beside_data_of_an_unknown_kind_is_refused(tmp_path, code, data):
    fill(tmp_path, code, data)
    with pytest.raises(TextError, match=rf"holds data of a kind that is not read \(1 file: \.\w+\).*{code}.*hf:"):
        read(tmp_path)


def test_a_card_beside_files_that_nobody_knows_is_refused(tmp_path):
    fill(tmp_path, "README.md", "part.unheard")
    with pytest.raises(TextError, match=r"\.unheard"):
        read(tmp_path)


def test_code_and_pictures_are_read_as_before(tmp_path):
    found, said = read(fill(tmp_path, "README.md", "a.py", "logo.png"))
    assert found == ["README.md", "a.py"]
    assert said == ["1 file of an unknown kind passed over: .png"]


def test_files_of_an_unknown_kind_are_counted_by_suffix(tmp_path):
    _, said = read(fill(tmp_path, "a.jsonl", "b.csv", "c.csv", "d.bin", "Makefile"))
    assert said == ["4 files of an unknown kind passed over: .bin (1), .csv (2), no suffix (1)"]


def test_hidden_files_are_not_text(tmp_path):
    found, said = read(fill(tmp_path, "a.txt", ".cache/b.txt", ".c.txt"))
    assert (found, said) == (["a.txt"], [])


def test_a_folder_with_unreadable_files_only_says_what_they_are(tmp_path):
    with pytest.raises(TextError, match=r"holds no text\. 1 file of an unknown kind passed over: \.csv\. Readable"):
        read(fill(tmp_path, "a.csv"))


def test_a_json_of_a_folder_that_holds_no_records_is_passed_over(tmp_path):
    fill(tmp_path, "a.txt")
    (tmp_path / "package.json").write_text('{"name": "x", "version": 1}')
    found, said = read(tmp_path)
    assert found == ["a.txt"]
    assert ".json without records" in said[0]


def test_a_file_that_is_named_is_read_whatever_its_name_is(tmp_path):
    fill(tmp_path, "README.md", "test.jsonl")
    assert read(tmp_path / "README.md")[0] == ["README.md"]
    assert read(tmp_path / "test.jsonl")[0] == ["test.jsonl"]


# ---- splits


SHARDS = ("data/train-00000.parquet", "data/test-00000.parquet", "data/validation-00000.parquet")


def test_test_and_validation_shards_are_not_training_text(tmp_path):
    found, said = read(fill(tmp_path, *SHARDS))
    assert found == [SHARDS[0]]
    assert said == ["2 files of other splits passed over: test (1), validation (1) (text.split chooses)"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("test", [SHARDS[1]]),
        ("validation", [SHARDS[2]]),
        ("train+test", [SHARDS[1], SHARDS[0]]),
        ("all", sorted(SHARDS)),
    ],
)
def test_the_split_can_be_chosen(tmp_path, split, expected):
    assert read(fill(tmp_path, *SHARDS), split)[0] == expected


def test_a_file_that_names_no_split_is_training_text(tmp_path):
    assert read(fill(tmp_path, "corpus.jsonl", "dev.jsonl"))[0] == ["corpus.jsonl"]


def test_a_folder_without_the_split_says_which_it_holds(tmp_path):
    fill(tmp_path, "a-test.txt", "b-valid.txt")
    with pytest.raises(TextError, match=r"no files of the split 'train'.*test \(1 file\), validation \(1 file\)"):
        read(tmp_path)


def test_a_part_of_a_split_is_refused_for_folders(tmp_path):
    with pytest.raises(TextError, match=r"asks for a part of a split.*'hf:NAME' only"):
        read(fill(tmp_path, "a.txt"), "train[:10%]")


def test_a_split_with_a_name_of_its_own(tmp_path):
    names = ("train_sft-00000.parquet", "train_gen-00000.parquet")
    fill(tmp_path, *names)
    assert read(tmp_path, "train_sft")[0] == [names[0]]
    assert read(tmp_path)[0] == sorted(names)


def test_programs_have_no_split(tmp_path):
    assert read(fill(tmp_path, "test.py", "a/test/b.py"))[0] == ["a/test/b.py", "test.py"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("TinyStoriesV2-GPT4-valid.txt", "validation"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("test/data-00000.arrow", "test"),
        ("testimony.txt", None),
        ("development.txt", None),
        ("en/TEST.jsonl", "test"),
    ],
)
def test_the_split_in_a_name(path, split):
    assert split_of(path.lower()) == split


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.JSONL", ".jsonl"),
        ("a.jsonl.zst", ".jsonl"),
        ("a.ndjson.gz", ".jsonl"),
        ("a.v1.txt.gz", ".txt"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a.csv", None),
    ],
)
def test_the_kind_of_a_file(tmp_path, name, kind):
    assert kind_of(tmp_path / name) == kind


def test_the_files_of_a_source_are_those_of_every_split(tmp_path):
    fill(tmp_path, "README.md", *SHARDS)
    assert [file.name for file in source_files([str(tmp_path)])] == sorted(name.split("/")[1] for name in SHARDS)
