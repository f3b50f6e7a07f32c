"""Tasks that real models do: the built-in one, and a small one that may lie beside this repository."""

from dataclasses import replace
from pathlib import Path

import pytest

from groupsae.config.circuits import CircuitsConfig
from groupsae.evaluation.circuits.pairs import read_pairs
from groupsae.evaluation.circuits.prompts import UNEQUAL_LENGTH, by_length, tokenize_pairs
from groupsae.evaluation.circuits.tasks import measure_skill, prepare, task_pairs
from groupsae.models import load_model

SHARED = Path(__file__).parents[2] / "../shared"


@pytest.fixture(scope="module")
def demo():
    return load_model("demo", device="cpu")


@pytest.mark.parametrize("name", ["closing-bracket", "closing-quote", "repeated-name"])
def test_the_built_in_model_does_the_tasks_of_code(demo, name):
    config = CircuitsConfig(tasks=(name,))
    task = prepare(task_pairs(config, 0)[name], *demo, config, 0)
    assert task.skipped is None and task.skill.accuracy > 0.95
    assert task.skill.logit_difference > 3 and task.skill.patch_logit_difference < -3
    assert task.num_choose == task.num_test == config.num_pairs // 2


@pytest.mark.parametrize("name", ["indirect-object", "greater-than", "subject-verb"])
def test_the_built_in_model_does_not_do_english(demo, name):
    config = CircuitsConfig(tasks=(name,))
    assert prepare(task_pairs(config, 0)[name], *demo, config, 0).skipped


def stories():
    if not (SHARED / "models/stories260K").is_dir() or not (SHARED / "text/pronoun_pairs.json").is_file():
        pytest.skip("the small story model and its prompt pairs are not beside this repository")
    model, tokenizer = load_model(str(SHARED / "models/stories260K"), device="cpu")
    return model, tokenizer, read_pairs(SHARED / "text/pronoun_pairs.json")


def test_a_real_model_solves_the_pronouns_of_a_file():
    model, tokenizer, pairs = stories()
    alone, refused = tokenize_pairs([replace(pair, patch_prefix=pair.clean_prefix) for pair in pairs], tokenizer)
    assert len(alone) == 140 and not refused, "a sentencepiece answer is one token after its prompt, two alone"
    assert measure_skill(model, by_length(alone, "cpu")).accuracy == pytest.approx(138 / 140)


def test_pairs_of_a_file_are_kept_where_their_prompts_are_equally_long():
    model, tokenizer, pairs = stories()
    task = prepare(pairs, model, tokenizer, CircuitsConfig(num_pairs=128), 0)
    assert task.given == 1400 and task.dropped[UNEQUAL_LENGTH] == 1162
    assert task.num_choose == task.num_test == 64 and task.skipped is None
    assert task.skill.accuracy > 0.95 and task.skill.patch_logit_difference < 0
