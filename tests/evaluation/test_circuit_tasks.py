import json
import random

import pytest
from tiny import CONTEXT_LENGTH, tiny_model, tiny_tokenizer

from groupsae.config.circuits import CIRCUIT_TASKS, CircuitsConfig
from groupsae.errors import ConfigError, TextError
from groupsae.evaluation.circuits import tasks as tasks_module
from groupsae.evaluation.circuits.generators import GENERATORS, generate_pairs
from groupsae.evaluation.circuits.pairs import PromptPair, read_pairs
from groupsae.evaluation.circuits.prompts import (
    MIN_OF_A_LENGTH,
    RARE_LENGTH,
    SAME_ANSWER,
    SPLIT_ANSWER,
    TOO_LONG,
    TOO_MANY,
    UNEQUAL_LENGTH,
    TokenPair,
    divide,
    tokenize_pairs,
)
from groupsae.evaluation.circuits.tasks import prepare, task_pairs

ENTRY = {"clean_prefix": "a b", "patch_prefix": "a c", "clean_answer": " x", "patch_answer": " y"}


def written(tmp_path, text):
    path = tmp_path / "pairs.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text", [f"{json.dumps(ENTRY)}\n\n{json.dumps(ENTRY | {'case': 1})}\n", json.dumps([ENTRY] * 2)]
)
def test_pairs_are_read_from_lines_or_from_one_array(tmp_path, text):
    assert read_pairs(written(tmp_path, text)) == [PromptPair(**ENTRY)] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompt pair"),
        ("[]", "holds no prompt pair"),
        (json.dumps(ENTRY) + "\n{broken", "line 2 is not JSON"),
        ("[{broken", "is not JSON"),
        (json.dumps({"clean": "a"}), r"line 1 has no text under clean_prefix, .* \(it has: clean\)"),
        (json.dumps(ENTRY | {"patch_answer": 3}), "line 1 has no text under patch_answer"),
        (json.dumps([ENTRY, "text"]), r"entry 2 has no text under .* \(it has: a str\)"),
        (json.dumps(ENTRY | {"patch_answer": " x"}), "one answer, ' x', to both prompts"),
    ],
)
def test_a_faulty_file_is_named_with_the_line_and_what_is_needed(tmp_path, text, message):
    with pytest.raises(TextError, match=message) as error:
        read_pairs(written(tmp_path, text))
    assert "pairs.json" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TextError, match=r"no file of prompt pairs .*nowhere\.json.*clean_prefix"):
        read_pairs(tmp_path / "nowhere.json")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "pairs.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(TextError, match="cannot be read as text"):
        read_pairs(tmp_path / "pairs.json")


@pytest.mark.parametrize("task", GENERATORS)
def test_generated_pairs_are_distinct_and_decided_by_the_seed(task):
    pairs = generate_pairs(task, 50, seed=1)
    assert len(set(pairs)) == len(pairs) == 50
    assert pairs == generate_pairs(task, 50, seed=1) != generate_pairs(task, 50, seed=2)
    assert all(pair.clean_prefix != pair.patch_prefix and pair.clean_answer != pair.patch_answer for pair in pairs)


@pytest.mark.parametrize("task", ["subject-verb", "closing-bracket", "closing-quote"])
def test_both_answers_are_asked_for_alike(task):
    pairs = generate_pairs(task, 200)
    first = sum(pair.clean_answer == pairs[0].clean_answer for pair in pairs)
    assert 70 < first < 130


def test_the_indirect_object_is_the_name_that_stands_once():
    for pair in generate_pairs("indirect-object", 30):
        assert pair.clean_prefix.count(pair.clean_answer) == 1 and pair.clean_prefix.count(pair.patch_answer) == 2
        assert pair.patch_prefix.count(pair.clean_answer) == 2 and pair.patch_prefix.count(pair.patch_answer) == 1


def test_only_later_years_are_right():
    for pair in generate_pairs("greater-than", 30):
        begin = int(pair.clean_prefix.split("from the year ")[1][2:4])
        assert int(pair.patch_answer) < begin < int(pair.clean_answer)


def test_the_config_names_the_generators():
    assert tuple(GENERATORS) == CIRCUIT_TASKS


def one(clean="ab", patch="ac", clean_answer="x", patch_answer="y"):
    return PromptPair(clean, patch, clean_answer, patch_answer)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (one(clean_answer="xx"), SPLIT_ANSWER),
        (one(patch_answer=" y"), SPLIT_ANSWER),
        (one(patch="abc"), UNEQUAL_LENGTH),
        (one(), None),
    ],
)
def test_pairs_that_the_tokenizer_splits_are_counted_by_reason(pair, reason):
    kept, dropped = tokenize_pairs([pair], tiny_tokenizer())
    assert dict(dropped) == ({reason: 1} if reason else {})
    assert len(kept) == (reason is None)


def test_prompts_longer_than_the_model_reads_are_left_out():
    model, filler = tiny_model("gpt2"), "x" * (CONTEXT_LENGTH - 1)
    pairs = [one(clean=f"{filler}{name}", patch=f"{filler}b") for name in "aaccee"]
    longer = [PromptPair(f"x{p.clean_prefix}", f"x{p.patch_prefix}", p.clean_answer, p.patch_answer) for p in pairs]
    task = prepare([*pairs, *longer], model, tiny_tokenizer(), CircuitsConfig(), 0)
    assert task.dropped[TOO_LONG] == len(longer)


def test_answers_of_one_token_are_no_two_answers():
    class Blind:
        bos_token_id = None
        all_special_ids = ()

        def __call__(self, text, **_):
            return {"input_ids": [ord(char) % 2 for char in text]}

    _, dropped = tokenize_pairs([one(clean_answer="a", patch_answer="c")], Blind())
    assert dict(dropped) == {SAME_ANSWER: 1}


def test_prompts_begin_as_the_tokenizer_begins_every_text():
    (kept,), _ = tokenize_pairs([one()], tiny_tokenizer(begin=True))
    assert kept.clean[0] == kept.patch[0] == 257 and len(kept.clean) == 3


def crossed(names=12, length=3):
    """Every name against every other: most ways to divide the prompts have pairs across."""
    prompts = [(name,) * length for name in range(names)]
    return [TokenPair(a, b, 100, 101) for a in prompts for b in prompts if a != b]


def prompts_of(pairs):
    return {prompt for pair in pairs for prompt in (pair.clean, pair.patch)}


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_stands_on_both_sides(seed):
    choose, test, dropped = divide(crossed() + crossed(20, length=4), 60, seed)
    assert choose and test and not prompts_of(choose) & prompts_of(test)
    assert len(choose) == len(test) <= 30
    assert len(choose) + len(test) + sum(dropped.values()) == 12 * 11 + 20 * 19


def test_pairs_without_a_common_prompt_are_all_used():
    pairs = [TokenPair((2 * n, 0), (2 * n + 1, 0), 1, 2) for n in range(20)]
    choose, test, dropped = divide(pairs, 100, 0)
    assert len(choose) == len(test) == 10 and not dropped


def test_what_is_more_than_asked_for_is_left_out():
    pairs = [TokenPair((2 * n, 0), (2 * n + 1, 0), 1, 2) for n in range(20)]
    choose, test, dropped = divide(pairs, 12, 0)
    assert len(choose) == len(test) == 6 and dropped == {TOO_MANY: 8}


def test_lengths_of_too_few_prompts_are_left_out():
    pairs = [TokenPair((2 * n,), (2 * n + 1,), 1, 2) for n in range(2 * MIN_OF_A_LENGTH - 1)]
    assert divide(pairs, 100, 0) == ([], [], {RARE_LENGTH: len(pairs)})


def test_the_division_is_decided_by_the_seed():
    assert divide(crossed(), 40, 3) == divide(crossed(), 40, 3) != divide(crossed(), 40, 4)


def bracket_task(config=None, **options):
    config = config or CircuitsConfig(tasks=("closing-bracket",), num_pairs=24, **options)
    pairs = task_pairs(config, 0)["closing-bracket"]
    return prepare(pairs, tiny_model(), tiny_tokenizer(), config, 0)


def test_a_task_that_the_model_cannot_do_is_skipped_with_its_accuracy():
    task = bracket_task(min_accuracy=0.99)
    assert task.skill.accuracy < 0.99
    assert f"{task.skill.accuracy:.1%}" in task.skipped and "99.0%" in task.skipped


def test_a_task_that_the_model_can_do_is_not():
    task = bracket_task(min_accuracy=0)
    assert task.skipped is None and task.num_choose == task.num_test > 0


def test_a_task_whose_answers_the_tokenizer_splits_is_skipped_with_the_reason():
    config = CircuitsConfig(tasks=("indirect-object",), num_pairs=8, min_pairs=8)
    task = prepare(task_pairs(config, 0)["indirect-object"], tiny_model(), tiny_tokenizer(), config, 0)
    assert task.skill is None and "only 0 of 32 pairs can be used, 8 are needed" in task.skipped
    assert f"{SPLIT_ANSWER}: 32" in task.skipped


def test_accuracy_is_the_share_of_clean_prompts_whose_answer_is_preferred(monkeypatch):
    values = {False: [1.0, -1.0, 2.0, 3.0], True: [-1.0, -2.0, -3.0, 0.0]}
    import torch

    monkeypatch.setattr(
        tasks_module, "differences", lambda *_, patched=False: torch.tensor(values[patched], dtype=torch.float64)
    )
    skill = tasks_module.measure_skill(None, [])
    assert (skill.accuracy, skill.logit_difference, skill.patch_logit_difference) == (0.75, 1.25, -1.5)


def test_files_are_read_before_anything_is_computed(tmp_path):
    config = CircuitsConfig(tasks=("closing-quote", str(tmp_path / "nowhere.json")))
    with pytest.raises(TextError, match="nowhere"):
        task_pairs(config, 0)


def test_two_tasks_of_one_name_are_refused(tmp_path):
    (tmp_path / "closing-quote.json").write_text(json.dumps(ENTRY))
    with pytest.raises(ConfigError, match="rename the file"):
        task_pairs(CircuitsConfig(tasks=("closing-quote", str(tmp_path / "closing-quote.json"))), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "closing-brackets"}, "Did you mean 'closing-bracket'"),
        ({"tasks": ()}, "at least one task"),
        ({"tasks": ("greater-than", "greater-than")}, "each once"),
        ({"num_pairs": 1}, "num_pairs"),
        ({"set_sizes": ()}, "set_sizes"),
        ({"set_sizes": (0, 3)}, "set_sizes"),
        ({"attribution": "guess"}, "attribution"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CircuitsConfig(**options)


def test_set_sizes_are_kept_rising_and_once():
    assert CircuitsConfig(set_sizes=[8, 2, 8]).set_sizes == (2, 8)


def test_a_generator_draws_from_what_it_is_given_only():
    state = random.getstate()
    generate_pairs("repeated-name", 5)
    assert random.getstate() == state
