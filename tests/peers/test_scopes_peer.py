"""Published suites' files: what SAELens' readers make of them is what the import makes of them."""

import pytest
import torch
from interop_cases import random_batch
from peer_cases import compare_imported, largest
from scope_cases import gemma_scope, gemma_scope_2, llama_scope, qwen_scope

from groupsae import import_suite

lens = pytest.importorskip("sae_lens", reason="SAELens is not installed", exc_type=ImportError)
loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders", reason="another SAELens")
TOOL = "sae-lens"


@pytest.fixture
def local(monkeypatch):
    """SAELens' downloads, and headers that it would ask the hub for, from a folder on this machine."""

    def serve(folder):
        def download(repo_id, filename, subfolder=None, **options):
            return str(folder / (f"{subfolder}/{filename}" if subfolder else filename))

        monkeypatch.setattr(loaders, "hf_hub_download", download)
        monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda repo, name: shapes_of(folder / name))

    return serve


def test_gemma_scope(tmp_path, local, measured):
    gemma_scope(tmp_path)
    local(tmp_path / "gemma-scope-2b-pt-res")
    read = loaders.gemma_2_sae_huggingface_loader
    theirs = built(*read("google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_71"))
    compare_imported(tmp_path, "layers.3", theirs.encode, theirs, measured, TOOL, "Gemma Scope")


def test_gemma_scope_2(tmp_path, local, measured):
    gemma_scope_2(tmp_path)
    local(tmp_path)
    read = loaders.gemma_3_sae_huggingface_loader
    theirs = built(*read("google/gemma-scope-2-270m-pt", "resid_post/layer_3_width_16k_l0_small"))
    compare_imported(tmp_path, "layers.3", theirs.encode, theirs, measured, TOOL, "Gemma Scope 2")


def test_qwen_scope(tmp_path, local, measured):
    qwen_scope(tmp_path)
    name = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_5"
    local(tmp_path / name)
    theirs = built(*loaders.qwen_scope_sae_huggingface_loader(f"Qwen/{name}", "layer3.sae.pt"))
    compare_imported(tmp_path, "layers.3", theirs.encode, theirs, measured, TOOL, "Qwen-Scope")


def test_llama_scope(tmp_path, local, measured):
    """Their reader leaves the factor of the activations to a list of releases; it folds it in afterwards."""
    _, config = llama_scope(tmp_path)
    local(tmp_path)
    cfg, state, _ = loaders.llama_scope_sae_huggingface_loader("fnlp/x", "Llama3_1-8B-Base-L3R-8x", cfg_overrides=FLOAT)
    theirs = built(cfg, state, None)
    theirs.fold_activation_norm_scaling_factor(config["d_model"] ** 0.5 / 2.5)
    ours = import_suite(tmp_path)["layers.3"]
    x_ND = random_batch().float()
    measured(TOOL, "Llama Scope", "theirs, imported: latents", largest(ours.encode(x_ND), theirs.encode(x_ND)))
    measured(TOOL, "Llama Scope", "theirs, imported: outputs", largest(ours(x_ND), theirs(x_ND)))


FLOAT = {"dtype": "float32"}


def built(config, state, _):
    """The SAE of a reader's config and weights, as SAELens builds it."""
    known = loaders.handle_config_defaulting(config)
    known |= {"d_in": state["W_enc"].shape[0], "d_sae": state["W_enc"].shape[1], "dtype": "float32"}
    sae = lens.SAE.from_dict(known)
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict({key: value.float() for key, value in state.items()})
    return sae.requires_grad_(False)


def shapes_of(path):
    """The shapes in the header of a file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def test_none_of_the_comparisons_is_of_zeros(tmp_path):
    gemma_scope(tmp_path)
    assert (import_suite(tmp_path)["layers.3"].encode(torch.randn(8, random_batch().shape[1])) > 0).any()
