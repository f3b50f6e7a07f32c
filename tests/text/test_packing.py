"""Rows of documents, which document is where in them, and clusters of rows for standard errors."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny import tiny_text, tiny_tokenizer

from groupsae.config import RunConfig
from groupsae.errors import ConfigError, RunError, TextError
from groupsae.text.packing import ROWS_OF_A_CLUSTER, documents_at, pack, pad, row_clusters
from groupsae.text.tokens import TokenRows

END, BEGIN = 256, 257
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def pieces_of(sizes):
    """Documents of these lengths, whose tokens are their own number."""
    return [np.full(size, number, dtype=np.int32) for number, size in enumerate(sizes)]


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(2, 12), st.booleans(), st.booleans())
def test_each_position_knows_its_document(sizes, length, begin, end):
    rows, starts = pack(pieces_of(sizes), length, BEGIN if begin else None, END if end else None)
    at = documents_at(starts, np.arange(rows.size)).reshape(rows.shape)
    text = (rows != BEGIN) & (rows != END)
    assert (at[text] == rows[text]).all()
    assert len(starts) == 0 or (np.diff(starts) > 0).all()


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(2, 12), st.booleans())
def test_clusters_are_runs_of_rows_with_little_in_common(sizes, length, begin):
    rows, starts = pack(pieces_of(sizes), length, BEGIN if begin else None, None)
    if not len(rows):
        return
    clusters = row_clusters(starts, len(rows), length)
    assert clusters[0] == 0 and set(np.diff(clusters)) <= {0, 1}
    mains = [np.bincount(row[row != BEGIN]).argmax() for row in rows]
    for row in np.flatnonzero(np.diff(clusters)):
        shared = set(rows[row]) & set(rows[row + 1]) - {BEGIN}
        if shared:  # cut within a chain: only where the cluster is large enough, and the document's smaller part
            assert (clusters == clusters[row]).sum() >= ROWS_OF_A_CLUSTER
            (document,) = shared
            parts = [(rows[r] == document).sum() for r in (row, row + 1)]
            assert min(parts) <= length / 2 or mains[row] != mains[row + 1]


def test_rows_of_one_long_document_are_one_cluster():
    _, starts = pack(pieces_of([100, 100, 60]), 10, None, None)
    assert row_clusters(starts, 26, 10).tolist() == [0] * 10 + [1] * 10 + [2] * 6


def test_a_row_of_several_whole_documents_is_a_cluster():
    _, starts = pack(pieces_of([5, 5, 3, 7, 10]), 10, None, None)
    assert row_clusters(starts, 3, 10).tolist() == [0, 1, 2]


def test_short_documents_that_cross_rows_do_not_make_one_cluster_of_all():
    _, starts = pack(pieces_of([7] * 200), 10, None, None)
    clusters = row_clusters(starts, 140, 10)
    assert 30 <= clusters.max() + 1 <= 45


@pytest.mark.parametrize("typical", [20, 64, 100, 700])
def test_intervals_by_clusters_hold_the_value_as_often_as_they_say(typical):
    """Tokens of a document have something in common; nominal 95 %."""
    length, random = 64, np.random.default_rng(typical)
    covered = {"rows": 0, "clusters": 0}
    trials = 400
    for _ in range(trials):
        sizes = random.integers(typical // 3, 2 * typical, 64 * 128 // typical)
        pieces = pieces_of(sizes)
        rows, starts = pack(pieces, length, None, None)
        values = random.normal(size=len(pieces))[documents_at(starts, np.arange(rows.size))]
        row_sums = (values + 0.5 * random.normal(size=rows.size)).reshape(rows.shape).mean(1)
        for name, unit in (
            ("rows", np.arange(len(rows))),
            ("clusters", row_clusters(starts, len(rows), length)),
        ):
            count = unit.max() + 1
            deviations = np.bincount(unit, row_sums - row_sums.mean())
            error = np.sqrt((deviations**2).sum() * count / (count - 1)) / len(rows)
            covered[name] += abs(row_sums.mean()) <= stats.t.ppf(0.975, count - 1) * error
    shares = {name: count / trials for name, count in covered.items()}
    assert shares["clusters"] >= 0.90, shares
    assert shares["clusters"] >= shares["rows"]


# ---- one document to a row


def test_a_document_has_a_row_to_itself():
    rows, starts = pad(pieces_of([2, 9, 4]), 5, BEGIN, END, END)
    assert rows.tolist() == [[BEGIN, 0, 0, END, END], [BEGIN, 1, 1, 1, 1], [BEGIN, 2, 2, 2, 2]]
    assert row_clusters(starts, 3, 5).tolist() == [0, 1, 2]


def test_padding_is_no_text(tmp_path):
    texts = [f"{number} " + "x" * number for number in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = TokenRows.from_files(tmp_path / "a.jsonl", tiny_tokenizer(), context_length=16, packing="none")
    assert len(rows) == rows.num_documents and len(rows.held_out) == rows.held_out.num_documents
    assert len(rows) + len(rows.held_out) == 40
    decode = tiny_tokenizer().decode
    for row in [*rows.ids_RT.tolist(), *rows.held_out.ids_RT.tolist()]:
        text = decode([i for i in row if i not in rows.special_ids])
        assert any(full[:16] == text for full in texts)
    assert rows.notes == ("26 documents longer than a row, cut to its length",)


def test_a_tokenizer_without_an_end_or_padding_cannot_pad(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 20)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TextError, match=r"no token for padding.*Set text\.packing = 'documents'"):
        TokenRows.from_files(tmp_path / "a.txt", tokenizer, context_length=4, packing="none")


def test_padding_that_would_be_trained_on_is_refused():
    values = {"text": {"packing": "none"}, "activations": {"skip_special": False}}
    with pytest.raises(ConfigError, match=r"text\.packing = 'none' pads rows"):
        RunConfig(**values)


# ---- rows with their documents


@pytest.fixture
def rows(tmp_path):
    texts = [f"{number}: {tiny_text(1 + number % 30, number)}" for number in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TokenRows.from_files(tmp_path / "a.jsonl", tiny_tokenizer(begin=True), context_length=16)


def test_rows_know_their_documents_after_being_saved(rows, tmp_path):
    rows.save(tmp_path / "rows.safetensors")
    loaded = TokenRows.load(tmp_path / "rows.safetensors")
    for one, other in ((rows, loaded), (rows.held_out, loaded.held_out)):
        assert np.array_equal(one.document_of_row(), other.document_of_row())
        assert one.document_of_row().shape == (len(one),)
        every = range(len(one))
        assert np.array_equal(one.documents_in(every), other.documents_in(every))
        assert one.documents_in(every).max() + 1 <= one.num_documents


def test_documents_change_where_the_end_of_a_text_is(rows):
    documents = rows.documents_in(range(len(rows))).ravel()
    ends = rows.ids_RT.ravel() == END
    changes = np.flatnonzero(np.diff(documents))
    before = [np.flatnonzero(ends[: change + 1])[-1] for change in changes]
    assert all(change - end in (0, 1) for change, end in zip(changes, before, strict=True))  # 1: a begin of row


def test_rows_of_which_no_documents_are_known_are_clusters_of_their_own():
    alone = TokenRows(np.zeros((3, 4), dtype=np.uint16))
    assert alone.document_of_row().tolist() == [0, 1, 2]
    assert alone.documents_in([2, 0]).tolist() == [[2] * 4, [0] * 4]


@pytest.mark.parametrize("starts", [[], [3, 1], [-1], [100], [[0]], [0.5]])
def test_damaged_documents_are_an_error(starts, tmp_path):
    ids = np.zeros((2, 4), dtype=np.uint16)
    TokenRows(ids, (), 1, TokenRows(ids), document_starts=np.array(starts)).save(tmp_path / "rows.safetensors")
    with pytest.raises(RunError, match="damaged"):
        TokenRows.load(tmp_path / "rows.safetensors")
