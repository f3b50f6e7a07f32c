"""Every family of causal LMs on the command line: a whole run, from tokens to the report."""

import json

import pytest
from families import BLOCKS, FAMILIES, LENGTH, VOCAB, family_model
from tiny import save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from groupsae.models import load_model


def small_tokenizer():
    """A word for each id of the families' vocabulary; the first three are special, as in their configs."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def write_text(path):
    lines = [
        json.dumps(
            {"text": " ".join(f"w{3 + (number * number + place * (number + 1)) % (VOCAB - 3)}" for place in range(60))}
        )
        for number in range(40)
    ]
    path.write_text("\n".join(lines))


def test_a_tokenizer_is_as_its_files_say_whatever_the_family(tmp_path):
    """transformers takes Qwen2's own kind of tokenizer for every Qwen2 model, and finds no tokens in other files."""
    save_model(tmp_path, family_model("qwen2"), small_tokenizer())
    _, tokenizer = load_model(str(tmp_path))
    assert tokenizer("w5 w9 w60")["input_ids"] == [5, 9, 60]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_on_the_command_line(family, here, call):
    save_model(here / "model", family_model(family), small_tokenizer())
    write_text(here / "words.jsonl")
    settings = (here / "tiny.toml").read_text().splitlines()
    changed = {"name = ": f'name = "{here}/model"', "source = ": f'source = ["{here}/words.jsonl"]'}
    changed |= {"context_length = ": f"context_length = {LENGTH}", "calibrate = ": "calibrate = true"}
    lines = [next((new for old, new in changed.items() if line.startswith(old)), line) for line in settings]
    (here / "family.toml").write_text("\n".join(lines))
    code, out, err = call("run", "family.toml", "--out", "runs/family", "--group.groups", 1)
    assert code == 0, err
    code, out, _ = call("show", "runs/family", "--json")
    found = json.loads(out)
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    assert {one["num_layers"] for one in found["suites"]} == {BLOCKS - 1}
    assert all(one["mean_fvu"] > 0 and one["mean_kl"] is not None for one in found["suites"])
