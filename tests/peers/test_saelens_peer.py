"""SAELens reads what was written for it, and what it trained is imported: latents, outputs, files."""

import json

import pytest
import torch
from interop_cases import CONFIGS, D_MODEL, D_SAE, PARTITION, random_batch, single
from peer_cases import STEPS, batches, compare_imported, largest
from safetensors.torch import load_file

from groupsae import export_saelens, import_suite

lens = pytest.importorskip("sae_lens", reason="SAELens is not installed", exc_type=ImportError)
TOOL = "sae-lens"
HOOK = {"hook_name": "blocks.3.hook_resid_post", "model_name": None}
WIDE = {"d_in": D_MODEL, "d_sae": D_SAE}
TRAINED = {
    "standard": ("StandardTrainingSAE", WIDE | {"l1_coefficient": 0.01}),
    "gated": ("GatedTrainingSAE", WIDE | {"l1_coefficient": 0.01}),
    "jumprelu": ("JumpReLUTrainingSAE", WIDE | {"l0_coefficient": 0.01}),
    "topk": ("TopKTrainingSAE", WIDE | {"k": 5, "rescale_acts_by_decoder_norm": False}),
    "topk, rescaled": ("TopKTrainingSAE", WIDE | {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "batchtopk": ("BatchTopKTrainingSAE", WIDE | {"k": 5}),
    "matryoshka_batchtopk": ("MatryoshkaBatchTopKTrainingSAE", WIDE | {"k": 5, "matryoshka_widths": [8, 16, D_SAE]}),
}


@pytest.mark.parametrize("own", ["nothing", "bias", "rotation", "all"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_saelens_loads_and_computes_the_same(architecture, own, tmp_path, measured):
    suite, x_ND = single(architecture, own), random_batch().float()
    export_saelens(suite, tmp_path / "out", model_name="demo")
    for hookpoint in PARTITION.hookpoints:
        theirs, ours = lens.SAE.load_from_disk(str(tmp_path / "out" / hookpoint)), suite[hookpoint]
        latents_NS = theirs.encode(x_ND)
        measured(TOOL, architecture, "ours, exported: latents", largest(latents_NS, ours.encode(x_ND)))
        measured(TOOL, architecture, "ours, exported: outputs", largest(theirs(x_ND), ours(x_ND)))
        assert theirs.cfg.metadata.hf_hook_name == f"gpt_neox.{hookpoint}"


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("name", TRAINED)
def test_what_saelens_trained_is_imported(name, subtracts, tmp_path, measured):
    sae = trained(name, apply_b_dec_to_input=subtracts)
    sae.save_inference_model(str(tmp_path / "sae"))
    theirs = lens.SAE.load_from_disk(str(tmp_path / "sae"))
    ours = compare_imported(tmp_path, "layers.3", theirs.encode, theirs, measured, TOOL, name)
    assert ours.sae.lineage.origin.hookpoint == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk", "topk", "gated"])
def test_a_checkpoint_of_a_training_is_imported_as_what_it_would_be_saved_as(name, tmp_path, measured):
    sae = trained(name)
    sae.save_model(str(tmp_path / "checkpoint"))
    sae.save_inference_model(str(tmp_path / "inference"))
    theirs = lens.SAE.load_from_disk(str(tmp_path / "inference"))
    compare_imported(tmp_path / "checkpoint", "layers.3", theirs.encode, theirs, measured, TOOL, name)


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "topk, rescaled"])
def test_from_them_to_us_and_back_files_are_the_same(name, tmp_path, measured):
    trained(name).save_inference_model(str(tmp_path / "sae"))
    export_saelens(import_suite(tmp_path / "sae"), tmp_path / "out")
    before = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    after = load_file(tmp_path / "out" / "layers.3" / "sae_weights.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        measured(TOOL, name, "theirs, round trip: weights", largest(after[key], tensor), limit=1e-6)
    written = json.loads((tmp_path / "out" / "layers.3" / "cfg.json").read_text())
    assert written["metadata"]["groupsae"]["lineage"]["origin"]["direction"] == "import"


def trained(name, **options):
    """An SAE of SAELens after a few steps."""
    class_name, values = TRAINED[name]
    kind = getattr(lens, class_name)
    config = getattr(lens, f"{class_name}Config")(**values, **options, metadata=lens.saes.sae.SAEMetadata(**HOOK))
    torch.manual_seed(0)
    sae = kind(config)
    with torch.no_grad():
        sae.b_dec += 0.1
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    coefficients = {key: value.value for key, value in sae.get_coefficients().items()}
    for step, x_ND in enumerate(batches()):
        out = sae.training_forward_pass(lens.saes.sae.TrainStepInput(x_ND, coefficients, None, step, False))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert step == STEPS - 1
    return sae
