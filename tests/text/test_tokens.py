import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_text, tiny_tokenizer

from groupsae.errors import RunError, TextError
from groupsae.models import load_model
from groupsae.text import tokenizing
from groupsae.text.documents import Document
from groupsae.text.notes import ReadingNotes
from groupsae.text.tokens import TokenRows

END, BEGIN = 256, 257


def write(folder: Path, texts: list[str]) -> Path:
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def split(rows: TokenRows) -> list[set[str]]:
    """The documents of both sides, as text. Rows of two tokens cut off at most the last end of text."""
    decode = tiny_tokenizer().decode
    sides = (rows.ids_RT, rows.held_out.ids_RT)
    lines = ["".join(decode(row.tolist()) for row in ids) for ids in sides]
    return [set(filter(None, line.split("<|endoftext|>"))) for line in lines]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Sixty documents, each beginning with its number."""
    return write(tmp_path_factory.mktemp("many"), [f"{number}: {tiny_text(12, number)}" for number in range(60)])


def test_documents_are_packed_with_the_end_of_text_between_them(tmp_path):
    texts = [f"{number} " + "x" * number for number in range(40)]
    rows = TokenRows.from_files(write(tmp_path, texts), tiny_tokenizer(), context_length=2, held_out_share=0.2)
    held_out = split(rows)[1]
    expected = []
    for text in texts:
        if text not in held_out:
            expected += [*tiny_tokenizer()(text)["input_ids"], END]
    whole = len(expected) // 2 * 2
    assert rows.ids_RT.flatten().tolist() == expected[:whole]


def test_a_tokenizer_that_begins_texts_with_a_token_gets_it_at_the_start_of_every_row(many):
    with_begin = TokenRows.from_files(many, tiny_tokenizer(begin=True), context_length=9)
    without = TokenRows.from_files(many, tiny_tokenizer(), context_length=8)
    for one, other in ((with_begin, without), (with_begin.held_out, without.held_out)):
        assert (one.ids_RT[:, 0] == BEGIN).all()
        assert np.array_equal(one.ids_RT[:, 1:], other.ids_RT)


def test_special_tokens_are_known(many):
    rows = TokenRows.from_files(many, tiny_tokenizer(begin=True), context_length=16)
    assert rows.special_ids == rows.held_out.special_ids == (END, BEGIN)
    assert rows.keep(torch.tensor([[BEGIN, 5], [END, 256]])).tolist() == [[False, True], [False, False]]


def test_no_document_is_on_both_sides(many):
    train, held_out = split(TokenRows.from_files(many, tiny_tokenizer(), context_length=2))
    assert train and held_out
    assert not train & held_out


def test_about_the_share_asked_for_is_held_out(tmp_path):
    file = write(tmp_path, [f"{number} words" for number in range(600)])
    rows = TokenRows.from_files(file, tiny_tokenizer(), context_length=16, held_out_share=0.3)
    assert rows.num_documents + rows.held_out.num_documents == 600
    assert 120 < rows.held_out.num_documents < 240


def test_the_split_does_not_depend_on_the_order_or_on_other_documents(tmp_path, many):
    texts = [json.loads(line)["text"] for line in many.read_text().splitlines()]
    held_out = split(TokenRows.from_files(many, tiny_tokenizer(), context_length=2))[1]
    fewer = split(TokenRows.from_files(write(tmp_path, texts[40::-1]), tiny_tokenizer(), context_length=2))
    assert held_out and not fewer[0] & held_out


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_a_duplicate_document_is_on_one_side_only(tmp_path_factory, numbers):
    file = write(tmp_path_factory.mktemp("twice"), [f"{number}{tiny_text(3, number)}" for number in numbers])
    rows = TokenRows.from_files(file, tiny_tokenizer(), context_length=2, held_out_share=0.4)
    if len(set(numbers)) > 1:
        train, held_out = split(rows)
        assert not train & held_out
    else:
        assert rows.num_documents == rows.held_out.num_documents == 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.25])
def test_of_a_single_document_the_end_is_held_out(tmp_path, seed, share):
    file = tmp_path / "a.txt"
    file.write_text(tiny_text(200, seed))
    ids = tiny_tokenizer()(file.read_text())["input_ids"]
    rows = TokenRows.from_files(file, tiny_tokenizer(), context_length=2, held_out_share=share)
    together = [i for side in (rows, rows.held_out) for i in side.ids_RT.flatten().tolist() if i != END]
    train = len(rows.ids_RT.flatten()) // 2
    assert together[:train] == ids[:train]
    assert len(ids) - 2 <= len(together) <= len(ids)  # each side loses at most the half of a row
    assert rows.held_out.ids_RT.size / len(ids) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("seed", range(12))
def test_the_limits_of_a_single_document_are_those_of_each_side(tmp_path, seed):
    """Whichever side its hash puts it on."""
    file = tmp_path / "a.txt"
    file.write_text(tiny_text(200, seed))
    rows = TokenRows.from_files(
        file, tiny_tokenizer(), context_length=10, held_out_share=0.3, max_tokens=500, max_held_out_tokens=50
    )
    assert (rows.ids_RT.size, rows.held_out.ids_RT.size) == (500, 50)


def test_each_side_stops_at_its_limit(many):
    rows = TokenRows.from_files(
        many, tiny_tokenizer(), context_length=10, held_out_share=0.5, max_tokens=1000, max_held_out_tokens=100
    )
    assert 1000 <= rows.ids_RT.size <= 1020  # the limit is for text; an end of text is added to each document
    assert 100 <= rows.held_out.ids_RT.size <= 110


def test_reading_goes_on_past_the_limit_until_a_held_out_row_is_full(many):
    rows = TokenRows.from_files(many, tiny_tokenizer(), context_length=100, max_tokens=200)
    assert len(rows.held_out) >= 1


def test_a_stream_is_read_no_further_than_needed(monkeypatch):
    given_out = []

    def endless():
        for number in range(100_000):
            given_out.append(number)
            yield {"text": f"{number} {tiny_text(10, number)}"}

    module = types.ModuleType("datasets")
    module.load_dataset = lambda *_, **__: endless()
    monkeypatch.setitem(sys.modules, "datasets", module)
    rows = TokenRows.from_files("hf:some/data", tiny_tokenizer(), context_length=8, max_tokens=400)
    assert len(rows) >= 50
    assert len(given_out) < 1000


def test_progress_is_told_every_token(many):
    told = []
    rows = TokenRows.from_files(many, tiny_tokenizer(), context_length=8, progress=told.append)
    documents = rows.num_documents + rows.held_out.num_documents
    assert sum(told) + documents - 14 <= rows.ids_RT.size + rows.held_out.ids_RT.size <= sum(told) + documents


def test_the_same_files_give_the_same_rows(many):
    one, other = (TokenRows.from_files(many, tiny_tokenizer(), context_length=8) for _ in range(2))
    assert np.array_equal(one.ids_RT, other.ids_RT)


def test_rows_are_given_in_the_order_asked_for(many):
    rows = TokenRows.from_files(many, tiny_tokenizer(), context_length=8)
    assert rows[[3, 1]].dtype == torch.int64
    assert rows[[3, 1]].tolist() == [rows.ids_RT[3].tolist(), rows.ids_RT[1].tolist()]


@pytest.mark.parametrize("content", [b"a\xff\xfe b", b"a\0b\0\0", "ünïcödé 😀".encode()])
def test_odd_bytes_can_be_packed(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content * 40)
    assert len(TokenRows.from_files(tmp_path, tiny_tokenizer(), context_length=8))


def test_a_lone_surrogate_can_be_packed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n' * 2 + '{"text": "words and words and words"}\n')
    assert len(TokenRows.from_files(tmp_path, tiny_tokenizer(), context_length=2))


@pytest.mark.parametrize("texts", [[""], ["", ""], ["too short"]])
def test_text_that_does_not_fill_a_row_is_an_error(tmp_path, texts):
    with pytest.raises(TextError, match="does not fill one row of 32"):
        TokenRows.from_files(write(tmp_path, texts), tiny_tokenizer(), context_length=32)


def test_an_empty_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(TextError, match=r"training part of .*empty\.txt has 0 tokens in 0 documents"):
        TokenRows.from_files(tmp_path / "empty.txt", tiny_tokenizer(), context_length=8)


def test_too_little_held_out_text_is_an_error_that_says_which_side(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)
    with pytest.raises(TextError, match=r"The held-out part of .* has 10 tokens .*held_out_share"):
        TokenRows.from_files(tmp_path / "a.txt", tiny_tokenizer(), context_length=32)


def test_held_out_rows_have_no_held_out_rows_of_their_own(many):
    with pytest.raises(TextError, match="themselves held out"):
        _ = TokenRows.from_files(many, tiny_tokenizer(), context_length=8).held_out.held_out


# ---- on disk


def test_rows_survive_being_saved(many, tmp_path):
    rows = TokenRows.from_files(many, tiny_tokenizer(begin=True), context_length=8)
    rows.save(tmp_path / "rows.safetensors")
    loaded = TokenRows.load(tmp_path / "rows.safetensors")
    for one, other in ((loaded, rows), (loaded.held_out, rows.held_out)):
        assert np.array_equal(one.ids_RT, other.ids_RT)
        assert one.ids_RT.dtype == other.ids_RT.dtype
        assert (one.special_ids, one.num_documents) == (other.special_ids, other.num_documents)


def test_token_ids_beyond_sixteen_bits_survive(tmp_path):
    ids = np.array([[70_000, 3], [1, 2]], dtype=np.int32)
    TokenRows(ids, (1,), 1, TokenRows(ids, (1,), 1)).save(tmp_path / "rows.safetensors")
    assert TokenRows.load(tmp_path / "rows.safetensors")[[0]].tolist() == [[70_000, 3]]


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_rows_that_are_cut_off_are_an_error_that_says_what_to_do(many, tmp_path, keep):
    file = tmp_path / "rows.safetensors"
    TokenRows.from_files(many, tiny_tokenizer(), context_length=8).save(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"rows\.safetensors is missing or damaged .* Run `groupsae tokens`"):
        TokenRows.load(file)


def test_missing_rows_are_an_error(tmp_path):
    with pytest.raises(RunError, match="missing or damaged"):
        TokenRows.load(tmp_path / "rows.safetensors")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (np.zeros(8, np.uint16), np.zeros((2, 4), np.uint16)),
        (np.zeros((2, 4), np.float32), np.zeros((2, 4), np.uint16)),
        (np.zeros((2, 4), np.uint16), np.zeros((2, 5), np.uint16)),
        (np.zeros((2, 4), np.uint16), np.zeros((0, 4), np.uint16)),
    ],
)
def test_arrays_that_are_not_rows_are_an_error(tmp_path, train, held_out):
    TokenRows(train, (), 1, TokenRows(held_out, (), 1)).save(tmp_path / "rows.safetensors")
    with pytest.raises(RunError, match="damaged"):
        TokenRows.load(tmp_path / "rows.safetensors")


@pytest.mark.parametrize(
    ("text", "stretches"),
    [
        ("ab cd\nef gh ij\nk", ["ab cd\n", "ef gh", " ij\nk"]),
        ("abcdefghijklmnop", ["abcdefgh", "ijklmnop"]),
        (" bcdefghi klm", [" bcdefgh", "i klm"]),
        ("\n\n\n\n\n\n\n\n\n\n", ["\n" * 8, "\n" * 2]),
    ],
)
def test_a_long_document_is_tokenized_in_stretches_that_are_all_of_it(text, stretches, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "CHARACTERS_AT_ONCE", 8)
    assert list(tokenizing.stretches(text)) == stretches
    found = dict(
        tokenizing.tokenized(iter([Document("x"), Document(text), Document("y")]), tiny_tokenizer(), ReadingNotes())
    )
    assert [tiny_tokenizer().decode(ids) for ids in found.values()] == ["x", text, "y"]


def test_stretches_change_no_token_of_a_text_of_lines(monkeypatch):
    _, tokenizer = load_model("demo")
    text = Path(tokenizing.__file__).read_text()
    ((_, whole),) = tokenizing.tokenized(iter([Document(text)]), tokenizer, ReadingNotes())
    monkeypatch.setattr(tokenizing, "CHARACTERS_AT_ONCE", 500)
    ((_, stretched),) = tokenizing.tokenized(iter([Document(text)]), tokenizer, ReadingNotes())
    assert len(list(tokenizing.stretches(text))) > 10
    assert np.array_equal(whole, stretched)
