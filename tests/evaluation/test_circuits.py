import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from circuit_cases import bracket_model
from evaluation_cases import identity_suite, random_suite
from tiny import tiny_tokenizer

from groupsae.activations.harvest import Harvester
from groupsae.activations.positions import OutlierRule
from groupsae.config.circuits import CircuitsConfig
from groupsae.evaluation.circuits import evaluate_circuits
from groupsae.evaluation.circuits.spliced import KeptPositions
from groupsae.metrics import CIRCUITS
from groupsae.saes.topk import TopKSAE
from groupsae.text.tokens import TokenRows

HOOKPOINTS = ("layers.0", "layers.1")
BRACKET = 7
CONFIG = CircuitsConfig(
    tasks=("closing-bracket", "indirect-object"), num_pairs=32, set_sizes=(1, 8, 1000), resamples=50
)


@pytest.fixture(scope="module")
def source():
    rows = TokenRows(np.ones((2, 8), dtype=np.uint16), (256,))
    return Harvester(bracket_model(), rows, HOOKPOINTS)


@pytest.fixture(scope="module")
def evaluate(source):
    def run(suites, config=CONFIG, **options):
        return evaluate_circuits(suites, source, tiny_tokenizer(), config, **options)

    return run


@pytest.fixture(scope="module")
def found(evaluate):
    lossy = identity_suite(HOOKPOINTS)
    for sae in lossy.saes.values():
        sae.k = 6
    return evaluate({"lossy": lossy, "identity": identity_suite(HOOKPOINTS)})


def names_of_numbers(value, name=""):
    if isinstance(value, dict):
        inner = {"value", "low", "high"}
        return {
            found
            for key, item in value.items()
            if key != "dropped"
            for found in names_of_numbers(item, name if key in inner else key)
        }
    if isinstance(value, list | tuple):
        return {found for item in value for found in names_of_numbers(item, name)}
    return {name} if isinstance(value, int | float) else set()


def test_results_are_json_without_nan_and_every_number_has_a_unit(found):
    json.dumps(asdict(found), allow_nan=False)
    counts = {"given", "num_choose", "num_test"}
    assert names_of_numbers(asdict(found)) <= {*CIRCUITS, *counts}
    assert set(CIRCUITS) - names_of_numbers(asdict(found)) <= {"ceiling", "ratio", "median", "area", "area_linear"}


def test_a_task_is_scored_or_says_why_not(found):
    bracket, indirect = found.tasks["closing-bracket"], found.tasks["indirect-object"]
    assert bracket.skipped is None and list(bracket.suites) == ["lossy", "identity"] and bracket.full is not None
    assert "one token" in indirect.skipped and indirect.suites == {} and indirect.full is None
    assert 8 <= bracket.num_choose == bracket.num_test <= 16 and bracket.skill.accuracy > 0.9


def test_identity_saes_do_all_of_the_task_with_and_without_their_errors(found):
    circuits = found.tasks["closing-bracket"].suites["identity"]
    for spliced in (circuits.error_kept, circuits.error_removed):
        assert spliced.ceiling.value == pytest.approx(1, abs=1e-4)
        full = spliced.faithfulness.points[-1]
        assert full.size == 32 and full.ratio.value == pytest.approx(1, abs=0.3)


def test_errors_kept_hide_what_bad_saes_lose(found):
    circuits = found.tasks["closing-bracket"].suites["lossy"]
    assert circuits.error_kept.ceiling.value == pytest.approx(1, abs=1e-6)
    assert circuits.error_removed.ceiling.value != pytest.approx(1, abs=0.05)


def test_sets_grow_with_their_size_up_to_the_dictionary(found):
    sizes = found.tasks["closing-bracket"].suites["identity"].sizes
    assert [size.size for size in sizes] == [1, 8, 32]
    assert [size.nodes for size in sizes[:2]] == [2, 16] and sizes[2].nodes <= 64
    assert sizes[0].weakest_effect > sizes[1].weakest_effect > 0


def test_the_same_seed_gives_the_same_result(evaluate):
    config = CONFIG.model_copy(update={"tasks": ("closing-bracket",), "set_sizes": (4,)})
    suites = {"one": random_suite(HOOKPOINTS)}
    assert evaluate(suites, config) == evaluate(suites, config) != evaluate(suites, config, seed=1)


@pytest.mark.parametrize(
    "change", [{"attribution": "integrated", "integration_steps": 2}, {"choose": "overall"}, {"ablation": "patch"}]
)
def test_every_option_gives_finite_numbers(evaluate, change):
    config = CONFIG.model_copy(update={"tasks": ("closing-bracket",), "set_sizes": (4,), **change})
    found = evaluate({"one": random_suite(HOOKPOINTS)}, config)
    json.dumps(asdict(found), allow_nan=False)
    assert found.tasks["closing-bracket"].suites["one"].sizes[0].nodes <= 8


def test_saes_that_never_fire_have_no_circuit_and_no_nan(evaluate):
    suite = random_suite(HOOKPOINTS)
    for sae in suite.saes.values():
        sae.b_enc.fill_(-1e6)
    found = evaluate({"dead": suite}, CONFIG.model_copy(update={"tasks": ("closing-bracket",)}))
    json.dumps(asdict(found), allow_nan=False)
    circuits = found.tasks["closing-bracket"].suites["dead"]
    assert [(size.nodes, size.weakest_effect) for size in circuits.sizes] == [(0, None)] * 3
    assert circuits.error_kept.ceiling is None, "ablating no latent changes nothing: no ratio"


def test_progress_counts_tasks(evaluate):
    seen = []
    evaluate({"one": random_suite(HOOKPOINTS)}, progress=seen.append)
    assert seen == [1, 1]


def test_only_the_bound_encoder_and_decoder_are_asked_for(evaluate, monkeypatch):
    """Other architectures need not be sparse: dense latents in, dense latents out."""

    def refuse(*_):
        raise AssertionError("circuits must go through encode and decode")

    suite = random_suite(HOOKPOINTS)
    encode = TopKSAE.encode_sparse
    monkeypatch.setattr(TopKSAE, "encode", lambda self, z_ND: encode(self, z_ND).dense(self.d_sae))
    monkeypatch.setattr(TopKSAE, "encode_sparse", refuse)
    monkeypatch.setattr(TopKSAE, "decode_sparse", refuse)
    evaluate({"one": suite}, CONFIG.model_copy(update={"tasks": ("closing-bracket",), "set_sizes": (4,)}))


# ---- positions of huge norm


@pytest.fixture(scope="module")
def sinking():
    """The bracket model, in which an opening bracket has a hundred times longer embedding, and ordinary rows."""
    model = bracket_model()
    model.get_input_embeddings().weight.data[BRACKET] *= 100
    ids = np.random.default_rng(0).integers(64, 90, (16, 16)).astype(np.uint16)
    return model, TokenRows(ids, (256,))


def test_saes_do_not_stand_where_the_untouched_model_has_a_huge_norm(sinking):
    model, rows = sinking
    ids_PT = torch.tensor([[70, 71, BRACKET, 72, 73], [256, 70, 71, 72, 73]])
    by_norm = KeptPositions(Harvester(model, rows, HOOKPOINTS))(ids_PT)
    assert by_norm.tolist() == [[False, True, False, True, True], [False, True, True, True, True]]
    without = Harvester(model, rows, HOOKPOINTS, outliers=OutlierRule(max_norm=0))
    assert KeptPositions(without)(ids_PT)[0].tolist() == [False, True, True, True, True]
    assert KeptPositions(Harvester(model, rows, HOOKPOINTS, skip_special=False))(ids_PT).all()


def test_each_prompt_is_read_once_to_find_its_positions(sinking, monkeypatch):
    source = Harvester(*sinking, HOOKPOINTS)
    keep, ids_PT = KeptPositions(source), torch.full((2, 5), 70)
    before = keep(ids_PT)
    monkeypatch.setattr(source, "left_out_of", None)
    assert torch.equal(keep(ids_PT.clone()), before)


def test_circuits_leave_huge_norms_as_they_are(sinking):
    config = CircuitsConfig(tasks=("closing-bracket",), num_pairs=32, set_sizes=(1,), resamples=50, min_accuracy=0)
    zero = identity_suite(HOOKPOINTS)
    for sae in zero.saes.values():
        sae.W_dec.data.zero_()

    def full_and_without(max_norm):
        source = Harvester(*sinking, HOOKPOINTS, outliers=OutlierRule(first=0, max_norm=max_norm))
        task = evaluate_circuits({"zero": zero}, source, tiny_tokenizer(), config).tasks["closing-bracket"]
        return task.full, task.suites["zero"].error_removed.empty

    (full, kept), (_, removed) = full_and_without(10.0), full_and_without(0.0)
    assert full != kept != removed
