"""dictionary_learning reads what was written for it, and what it trained is imported."""

import inspect
import json

import pytest
import torch
from interop_cases import CONFIGS, D_MODEL, D_SAE, PARTITION, random_batch, single
from peer_cases import STEPS, batches, compare_imported, largest

from groupsae import export_dictionary_learning, import_suite

pytest.importorskip("dictionary_learning", reason="dictionary_learning is not installed", exc_type=ImportError)
from dictionary_learning import dictionary, trainers
from dictionary_learning.utils import load_dictionary

TOOL = "dictionary-learning"
TRAINED = {
    "AutoEncoderTopK": ("TopKTrainer", {"k": 5}),
    "BatchTopKSAE": ("BatchTopKTrainer", {"k": 5}),
    "MatryoshkaBatchTopKSAE": ("MatryoshkaBatchTopKTrainer", {"k": 5, "group_fractions": [0.25, 0.75]}),
    "AutoEncoder": ("StandardTrainer", {"dict_class": dictionary.AutoEncoder, "l1_penalty": 0.01}),
    "AutoEncoderNew": ("StandardTrainerAprilUpdate", {"dict_class": dictionary.AutoEncoderNew, "l1_penalty": 0.01}),
    "GatedAutoEncoder": ("GatedSAETrainer", {"dict_class": dictionary.GatedAutoEncoder, "l1_penalty": 0.01}),
    "JumpReluAutoEncoder": ("JumpReluTrainer", {"dict_class": dictionary.JumpReluAutoEncoder, "target_l0": 5}),
}


@pytest.mark.parametrize("own", ["nothing", "all"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_dictionary_learning_loads_and_computes_the_same(architecture, own, tmp_path, measured):
    suite, x_ND = single(architecture, own), random_batch().float()
    export_dictionary_learning(suite, tmp_path / "out")
    for hookpoint in PARTITION.hookpoints:
        theirs, config = load_dictionary(str(tmp_path / "out" / hookpoint), "cpu")
        ours = suite[hookpoint]
        with torch.no_grad():
            measured(TOOL, architecture, "ours, exported: latents", largest(theirs.encode(x_ND), ours.encode(x_ND)))
            measured(TOOL, architecture, "ours, exported: outputs", largest(theirs(x_ND), ours(x_ND)))
        assert config["trainer"]["submodule_name"] == hookpoint


@pytest.mark.parametrize("name", TRAINED)
def test_what_dictionary_learning_trained_is_imported(name, tmp_path, measured):
    save(trained(name), name, tmp_path / "trainer_0")
    theirs, _ = load_dictionary(str(tmp_path / "trainer_0"), "cpu")
    compare_imported(tmp_path, "layers.3", theirs.encode, theirs, measured, TOOL, name)


@pytest.mark.parametrize("name", TRAINED)
def test_from_them_to_us_and_back_it_computes_the_same(name, tmp_path, measured):
    save(trained(name), name, tmp_path / "trainer_0")
    theirs, _ = load_dictionary(str(tmp_path / "trainer_0"), "cpu")
    export_dictionary_learning(import_suite(tmp_path), tmp_path / "out")
    again, _ = load_dictionary(str(tmp_path / "out" / "layers.3"), "cpu")
    x_ND = random_batch().float()
    with torch.no_grad():
        measured(TOOL, name, "theirs, round trip: outputs", largest(again(x_ND), theirs(x_ND)))


def trained(name):
    """A trainer after a few steps."""
    trainer_name, options = TRAINED[name]
    kind = getattr(trainers, trainer_name, None) or next(
        getattr(module, trainer_name) for module in vars(trainers).values() if hasattr(module, trainer_name)
    )
    common = {"steps": STEPS, "activation_dim": D_MODEL, "dict_size": D_SAE, "layer": 3, "lm_name": "", "seed": 0}
    common |= {"lr": 3e-3, "warmup_steps": 2, "decay_start": None, "sparsity_warmup_steps": 2, "device": "cpu"}
    common |= {"threshold_start_step": 5, "submodule_name": "resid_post_layer_3", "wandb_name": "none"}
    known = inspect.signature(kind.__init__).parameters
    torch.manual_seed(0)
    trainer = kind(**{key: value for key, value in (common | options).items() if key in known})
    for step, x_ND in enumerate(batches()):
        trainer.update(step, x_ND)
    return trainer


def save(trainer, name, folder):
    """The files as its training loop writes them."""
    folder.mkdir(parents=True)
    state = {key: value.detach().cpu() for key, value in trainer.ae.state_dict().items()}
    torch.save(state, folder / "ae.pt")
    config = {"trainer": trainer.config, "buffer": {"ctx_len": 128, "d_submodule": D_MODEL}}
    config["trainer"]["submodule_name"] = "resid_post_layer_3"
    if name == "AutoEncoderNew":  # whose trainer calls it AutoEncoder, which load_dictionary then cannot load
        config["trainer"]["dict_class"] = name
    assert config["trainer"]["dict_class"] == name
    (folder / "config.json").write_text(json.dumps(config, default=str))
