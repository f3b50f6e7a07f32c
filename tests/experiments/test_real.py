"""The table of a real model, on the built-in one: text, tokens for a budget, learning rates, rows, and the table."""

import json

import pytest
import real
import real_rates
from real_rows import ROWS, Spending
from real_text import mix

from groupsae.config import PerLayer
from groupsae.errors import TextError
from groupsae.partition import Partition


def test_a_mix_has_documents_of_each_source_in_turn_and_is_made_once(tmp_path):
    for name in "ab":
        lines = [json.dumps({"text": f"{name}{number} " + "word " * 2000}) for number in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    path = mix([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], 2000, tmp_path / "mix.jsonl")
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert [text[0] for text in texts] == ["a", "b", "a", "b", "a"]  # 12,000 characters and a last document
    assert all(len(text) == 3000 for text in texts)
    path.write_text("mine")
    assert mix(["nowhere"], 2000, path).read_text() == "mine"


def test_a_mix_of_nothing_is_an_error(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(TextError):
        mix([str(tmp_path / "empty.txt")], 100, tmp_path / "mix.jsonl")


@pytest.mark.parametrize(
    ("fvus", "tried"),
    [
        ({5e-4: 0.3, 1e-3: 0.2, 2e-3: 0.3}, [5e-4, 1e-3, 2e-3]),
        ({5e-4: 0.3, 1e-3: 0.2, 2e-3: 0.1, 4e-3: 0.05, 8e-3: 0.2}, [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]),
        ({5e-4: 0.1, 1e-3: 0.2, 2e-3: 0.3, 2.5e-4: 0.2}, [5e-4, 1e-3, 2e-3, 2.5e-4]),
    ],
)
def test_the_grid_of_rates_grows_until_the_best_is_inside(fvus, tried):
    known: dict[str, float] = {}
    while (rate := real_rates._next_rate(known)) is not None:
        known[f"{rate:g}"] = fvus[rate]
    assert list(map(float, known)) == pytest.approx(tried)


class _Bed:
    """FLOPs that can be reckoned by head: 10 a step, 100 a token of text, 1,000 for distances."""

    step_flops, distance_flops = 10, 1000.0

    class config:
        class train:
            batch_tokens, scale_tokens = 1, 7

    class source:
        d_model = 4

    @staticmethod
    def harvest_flops(num_tokens):
        return 100 * num_tokens


def test_a_budget_buys_tokens_after_everything_is_charged():
    groups, layers = Partition((("a", "b"), ("c", "d"))), Partition.singletons(("a", "b", "c", "d"))
    bed, once, paid = _Bed(), Spending(14_000, paid=False), Spending(14_000, paid=True)
    none, rotation = PerLayer(), PerLayer(rotation=True)
    assert once.tokens(bed, layers, 1, none, grouped=False, share=1) == 100  # 4 steps and a token of text: 140
    assert once.tokens(bed, groups, 1, none, grouped=True, share=1) == int(13_000 / 120)
    assert once.tokens(bed, groups, "all", none, grouped=True, share=1) == int(13_000 / 70)  # half the text
    assert paid.tokens(bed, groups, "all", none, grouped=True, share=1) == 650
    fitted = 14_000 - 1000 - 2 * 4 * 4**2 * 7
    assert once.tokens(bed, groups, 1, rotation, grouped=True, share=1) == int(fitted / (2 * (10 + 2 * 4**2) + 100))


@pytest.mark.slow
def test_the_table_of_the_built_in_model_is_made_and_goes_on(tmp_path, monkeypatch, capsys):
    arguments = ["real.py", "--budget", "tiny", "--model", "demo", "--out", str(tmp_path / "real")]
    monkeypatch.setattr("sys.argv", arguments)
    real.main()
    table = (tmp_path / "real" / "table.md").read_text()
    assert all(f"| {name} |" in table for name in ROWS) and (tmp_path / "real" / "real.svg").exists()
    results = tmp_path / "real" / "results.json"
    before = json.loads(results.read_text())
    del before["rows"][next(iter(before["rows"]))]
    results.write_text(json.dumps(before))
    real.main()  # trains the one row that is missing
    rows = json.loads(results.read_text())["rows"]
    assert len(rows) == len(ROWS) and all(rows[key] == row for key, row in before["rows"].items())
