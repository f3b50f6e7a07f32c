"""How often the language model reads the text: statistics once in a run, norms once on a few rows."""

import pytest
from safetensors.torch import load_file

from groupsae.activations.positions import SAMPLE_ROWS
from groupsae.model_structure import find_blocks
from groupsae.recipes import context

ROWS_OF_DISTANCES = 20  # the 300 tokens of distances, in rows of 16 of which the first position is left out
ROWS_OF_TRAINING = 48  # 512 tokens, in blocks of 16 rows; special tokens are left out
ROWS_OF_EVALUATION = 4  # 64 tokens


@pytest.fixture
def rows_read(monkeypatch):
    """Counts the rows that pass through the model's first block, however much of the model is run."""
    counts, load = {"rows": 0}, context.load_model

    def counted(*arguments, **options):
        model, tokenizer = load(*arguments, **options)

        def note(module, given):
            counts["rows"] += given[0].shape[0] if given[0].shape[1] > 2 else 0  # two positions: only a width is asked

        find_blocks(model)[1][0].register_forward_pre_hook(note)
        return model, tokenizer

    monkeypatch.setattr(context, "load_model", counted)

    def since():
        found, counts["rows"] = counts["rows"], 0
        return found

    return since


def test_before_training_a_row_is_read_twice_at_most(here, call, rows_read):
    for verb in ("tokens", "distances", "group"):
        assert call(verb, "tiny.toml")[0] == 0
    batch_rows = 4
    most = 2 * (ROWS_OF_DISTANCES + batch_rows) + SAMPLE_ROWS
    assert 2 * ROWS_OF_DISTANCES + SAMPLE_ROWS <= rows_read() <= most
    assert call("train", "tiny.toml")[0] == 0
    assert rows_read() == ROWS_OF_TRAINING  # scales come from the statistics, and read nothing


def test_means_are_measured_once_for_all_parts_of_an_evaluation(done, call, rows_read):
    assert call("eval", done, "reconstruction", "--overwrite")[0] == 0
    alone = rows_read()
    assert call("eval", done, "losses", "--overwrite")[0] == 0
    other = rows_read()
    assert call("eval", done, "reconstruction", "losses", "--overwrite")[0] == 0
    assert rows_read() == alone + other - ROWS_OF_EVALUATION


def test_the_statistics_are_saved_with_the_run(done):
    tensors = load_file(done / "stats.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"200", "300"}
    assert tensors["300.count"] == 300
