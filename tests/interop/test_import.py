"""Other tools' files as a suite: formulas as their documentation says, told apart, refused with the reason."""

import json
import shutil

import numpy as np
import pytest
import torch
from interop_cases import CONFIGS, D_MODEL, D_SAE, OWN, PARTITION, random_batch, single
from safetensors.torch import load_file, save_file
from scope_cases import gemma_scope, gemma_scope_2, llama_scope, openmoss, qwen_scope, tensors
from tiny import save_model, tiny_model

from groupsae import (
    Scales,
    TrainConfig,
    WarmStart,
    export_dictionary_learning,
    export_saelens,
    export_sparsify,
    import_suite,
)
from groupsae.errors import ConfigError, HookpointError, RunError
from groupsae.interop.importing import FORMATS, find_saes

DEMO = "demo"
X_ND = random_batch().float()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- what we wrote comes back


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_was_exported_to_saelens_comes_back_as_it_was(architecture, own, tmp_path):
    suite = single(architecture, own)
    export_saelens(suite, tmp_path / "out")
    again = import_suite(tmp_path / "out")
    assert again.partition.hookpoints == PARTITION.hookpoints
    for hookpoint in PARTITION.hookpoints:
        assert again[hookpoint].sae.config.architecture == architecture
        close(again[hookpoint].encode(X_ND), suite[hookpoint].encode(X_ND))
        close(again[hookpoint](X_ND), suite[hookpoint](X_ND))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_was_exported_to_dictionary_learning_comes_back_as_it_was(architecture, tmp_path):
    suite = single(architecture, "all")
    export_dictionary_learning(suite, tmp_path / "out")
    again = import_suite(tmp_path / "out")
    for hookpoint in PARTITION.hookpoints:
        close(again[hookpoint].encode(X_ND), suite[hookpoint].encode(X_ND))
        close(again[hookpoint](X_ND), suite[hookpoint](X_ND))


def test_what_was_exported_to_sparsify_comes_back_as_it_was(tmp_path):
    suite = single("topk", "all")
    export_sparsify(suite, tmp_path / "out")
    again = import_suite(tmp_path / "out")
    for hookpoint in PARTITION.hookpoints:
        close(again[hookpoint](X_ND), suite[hookpoint](X_ND))


def test_rows_of_one_norm_become_unit_rows_and_others_stay_as_they_are(tmp_path):
    export_saelens(single("relu"), tmp_path / "out")
    for hookpoint in PARTITION.hookpoints:
        bound = import_suite(tmp_path / "out")[hookpoint]
        assert bound.scale != 1 and not bound.center_D.any()
        close(torch.linalg.vector_norm(bound.sae.W_dec, dim=1), torch.ones(D_SAE))
    weights = tmp_path / "out" / "layers.1" / "sae_weights.safetensors"
    changed = load_file(weights)
    changed["W_dec"][0] *= 3
    save_file(changed, weights)
    bound = import_suite(tmp_path / "out")["layers.1"]
    assert bound.scale == 1 and torch.equal(bound.sae.W_dec, changed["W_dec"])


# ---- published suites, by their formulas


def test_gemma_scope_does_not_subtract_b_dec(tmp_path):
    w = gemma_scope(tmp_path, l0=71)
    bound = import_suite(tmp_path)["layers.3"]
    pre_NS = X_ND @ w["W_enc"].T + w["b_enc"]
    latents_NS = pre_NS * (pre_NS > w["threshold"])
    close(bound.encode(X_ND), latents_NS)
    close(bound(X_ND), latents_NS @ w["W_dec"] + w["b_dec"])
    assert bound.sae.config.architecture == "jumprelu" and bound.sae.config.k == min(71, D_SAE)


def test_gemma_scope_2_is_read_where_its_config_says(tmp_path):
    w = gemma_scope_2(tmp_path)
    gemma_scope_2(tmp_path, layer=4, hf_hook_point_in="model.layers.4.post_feedforward_layernorm.output")
    suite = import_suite(tmp_path)
    assert suite.partition.hookpoints == ("layers.3", "layers.4.post_feedforward_layernorm")
    pre_NS = X_ND @ w["W_enc"].T + w["b_enc"]
    close(suite["layers.3"](X_ND), (pre_NS * (pre_NS > w["threshold"])) @ w["W_dec"] + w["b_dec"])
    assert suite["layers.3"].sae.config.k == 10


def test_qwen_scope_takes_k_from_its_name(tmp_path):
    w = qwen_scope(tmp_path, k=5)
    bound = import_suite(tmp_path)["layers.3"]
    pre_NS = X_ND @ w["W_enc"].T + w["b_enc"]
    values_NK, indices_NK = pre_NS.topk(5)
    latents_NS = torch.zeros_like(pre_NS).scatter(1, indices_NK, values_NK.relu())
    close(bound.encode(X_ND), latents_NS)
    close(bound(X_ND), latents_NS @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_llama_scope_scales_its_input_and_its_thresholds_by_decoder_norms(norm, tmp_path):
    w, _ = llama_scope(tmp_path, norm=norm)
    scale = D_MODEL**0.5 / 2.5
    pre_NS = scale * X_ND @ w["W_enc"].T + w["b_enc"]
    latents_NS = pre_NS * (pre_NS * norm > 0.3 * scale)
    bound = import_suite(tmp_path)["layers.3"]
    close(bound.encode(X_ND), latents_NS)
    close(bound(X_ND), (latents_NS @ w["W_dec"] + w["b_dec"]) / scale)


@pytest.mark.parametrize("act_fn", ["jumprelu", "topk", "relu"])
@pytest.mark.parametrize("before", [True, False])
def test_openmoss_later_files(act_fn, before, tmp_path):
    w, _ = openmoss(tmp_path, norm=2.0, act_fn=act_fn, top_k=5, apply_decoder_bias_to_pre_encoder=before)
    scale = D_MODEL**0.5 / 2.5
    pre_NS = (scale * X_ND - before * w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
    ranked_NS = pre_NS * 2
    values_NK, indices_NK = ranked_NS.topk(5)
    active_NS = {
        "jumprelu": ranked_NS * (ranked_NS > w["threshold"]),
        "topk": torch.zeros_like(pre_NS).scatter(1, indices_NK, values_NK.relu()),
        "relu": ranked_NS.relu(),
    }[act_fn]
    bound = import_suite(tmp_path)["layers.3"]
    close(bound(X_ND), (active_NS / 2 @ w["W_dec"] + w["b_dec"]) / scale)


def test_releases_of_group_saes_keep_each_layers_own_factor(tmp_path):
    factors = {"layers.0": 0.5, "layers.1": 4.0, "layers.5": 1.5}
    w = release(tmp_path, factors, {"k2-c1": [0, 1], "k2-c0": [5]})
    suite = import_suite(tmp_path / "cluster")
    assert suite.partition.groups == (("layers.0", "layers.1"), ("layers.5",))
    for hookpoint, factor in factors.items():
        pre_NS = (factor * X_ND - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
        values_NK, indices_NK = pre_NS.topk(5)
        latents_NS = torch.zeros_like(pre_NS).scatter(1, indices_NK, values_NK.relu())
        close(suite[hookpoint].encode(X_ND), latents_NS)
        close(suite[hookpoint](X_ND), (latents_NS @ w["W_dec"] + w["b_dec"]) / factor)


def release(folder, factors, clusters):
    """A release with clusters, all of the same weights."""
    w = tensors()
    for name in clusters:
        sparsify_files(folder / "cluster" / name, w)
    torch.save({name: torch.tensor(factor) for name, factor in factors.items()}, folder / "cluster/scaling_factors.pt")
    (folder / "cluster" / "config.json").write_text(json.dumps({"clusters": clusters}))
    return w


def sparsify_files(folder, w, **config):
    folder.mkdir(parents=True)
    weights = {"encoder.weight": w["W_enc"], "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    save_file(weights, folder / "sae.safetensors")
    known = {"activation": "topk", "expansion_factor": 1, "num_latents": D_SAE, "k": 5, "d_in": D_MODEL}
    (folder / "cfg.json").write_text(json.dumps(known | config))


# ---- formats are told apart, and places found in the model


def test_each_format_is_told_by_its_files(tmp_path):
    export_saelens(single("relu"), tmp_path / "saelens")
    export_sparsify(single("topk"), tmp_path / "sparsify")
    export_dictionary_learning(single("gated"), tmp_path / "dictionary_learning")
    release(tmp_path / "group-sae", {"layers.0": 1.0}, {"k1-c0": [0]})
    for name, make in {
        "gemma-scope": gemma_scope,
        "gemma-scope-2": gemma_scope_2,
        "qwen-scope": qwen_scope,
        "llama-scope": llama_scope,
    }.items():
        make(tmp_path / name)
    for name in FORMATS:
        assert find_saes(tmp_path / name).format == name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model of this width, with eight blocks."""
    tiny = tiny_model("gpt2", layers=8, d_model=D_MODEL)
    return str(save_model(tmp_path_factory.mktemp("model"), tiny))


def place_at(folder, **metadata):
    """Say in the files of one SAE that it reads another place."""
    cfg = folder / "layers.1" / "cfg.json"
    cfg.write_text(json.dumps(json.loads(cfg.read_text()) | {"metadata": metadata}))


def test_places_are_those_of_the_model(model, tmp_path):
    export_saelens(single("relu"), tmp_path / "out")
    for name in ("layers.0", "layers.2"):
        shutil.rmtree(tmp_path / "out" / name)
    for metadata, hookpoint in [
        ({"hook_name": "blocks.1.hook_resid_post"}, "h.1"),
        ({"hook_name": "blocks.1.hook_resid_pre"}, "h.0"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, "h.1.mlp"),
        ({"hook_name": "blocks.1.hook_resid_post", "hf_hook_name": "transformer.h.4"}, "h.4"),
    ]:
        place_at(tmp_path / "out", **metadata)
        assert import_suite(tmp_path / "out", model=model).partition.hookpoints == (hookpoint,)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("blocks.12.hook_resid_post", r"no module 'h.12'.*it has 8 blocks, h.0 ... h.7.*--hookpoint"),
        ("blocks.1.attn.hook_z", "is the output of no module of a 'gpt2' model"),
        ("blocks.0.hook_resid_pre", "is the output of no module"),
        ("hook_embed", "no module 'hook_embed'"),
    ],
)
def test_places_that_the_model_has_not_are_refused(name, fault, model, tmp_path):
    export_saelens(single("relu"), tmp_path / "out")
    place_at(tmp_path / "out", hook_name=name)
    with pytest.raises(HookpointError, match=fault):
        import_suite(tmp_path / "out", model=model, only=("layers.1",))


def test_another_width_than_the_models_is_refused(tmp_path):
    export_saelens(single("relu"), tmp_path / "out")
    with pytest.raises(ConfigError, match=rf"activations of width {D_MODEL}, but those of model .* have width 128"):
        import_suite(tmp_path / "out", model=DEMO)


def test_two_saes_of_one_place_must_be_told_apart(tmp_path):
    gemma_scope(tmp_path, l0=13)
    gemma_scope(tmp_path, l0=71, seed=1)
    with pytest.raises(RunError, match=r"more than one SAE of layers.3, such as .*average_l0_13 and .*_71.*--only"):
        import_suite(tmp_path)
    assert import_suite(tmp_path, only=("average_l0_13",))["layers.3"].sae.config.k == 13
    with pytest.raises(RunError, match="holds no SAEs whose path fits average_l0_99"):
        import_suite(tmp_path, only=("average_l0_99",))


def test_half_precision_is_read_and_said(tmp_path):
    w = qwen_scope(tmp_path)
    path = next(tmp_path.rglob("*.pt"))
    torch.save({name: tensor.bfloat16() for name, tensor in torch.load(path, weights_only=True).items()}, path)
    (imported,) = find_saes(tmp_path)
    assert any("stored as bfloat16" in note for note in imported.found.notes)
    assert torch.equal(imported.sae.W_enc, w["W_enc"].bfloat16().float())


# ---- bad input


def test_an_unknown_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(RunError, match=r"no SAEs of a known format. Looked for saelens: cfg.json.*Found weights.bin"):
        import_suite(tmp_path)
    with pytest.raises(ConfigError, match=r"no format 'sealens'.*Did you mean 'saelens'"):
        import_suite(tmp_path, "sealens")
    with pytest.raises(RunError, match="There is no folder"):
        import_suite(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda w: w.pop("b_enc"), "lacks b_enc; it holds W_dec, W_enc, b_dec"),
        (lambda w: w.update(more=torch.zeros(2)), "holds more, which is not known"),
        (lambda w: w.update(W_enc=w["W_enc"].T.contiguous()), r"W_enc has the shape .* where .* is needed"),
        (
            lambda w: w.update(b_dec=torch.zeros(D_MODEL + 1)),
            r"b_dec has the shape \(\d+,\) where \(D = \d+\) is needed",
        ),
        (lambda w: w.update(b_enc=w["b_enc"] * torch.nan), "b_enc holds NaN or infinity"),
        (lambda w: w.update(b_enc=torch.zeros(D_SAE, dtype=torch.int32)), "b_enc does not hold floating-point numbers"),
    ],
)
def test_weights_of_another_form_are_refused(change, fault, tmp_path):
    export_saelens(single("relu"), tmp_path / "out")
    path = tmp_path / "out" / "layers.1" / "sae_weights.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(RunError, match=fault):
        import_suite(tmp_path / "out")


def test_a_cut_off_file_is_damaged(tmp_path):
    export_saelens(single("relu"), tmp_path / "saelens")
    qwen_scope(tmp_path / "qwen")
    gemma_scope(tmp_path / "gemma")
    for path in (*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.pt"), *tmp_path.rglob("*.npz")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name in ("saelens", "qwen", "gemma"):
        with pytest.raises(RunError, match=r"is missing or damaged|or is damaged"):
            import_suite(tmp_path / name)


@pytest.mark.parametrize("text", ["", "[1]", '{"d_in": "12"}', "{" * 100_000])
def test_a_damaged_config_is_named(text, tmp_path):
    export_sparsify(single("topk"), tmp_path / "out")
    (tmp_path / "out" / "layers.1" / "cfg.json").write_text(text)
    with pytest.raises(RunError, match=r"layers.1/cfg.json"):
        import_suite(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"architecture": "transcoder"}, "reconstructs another place"),
        ({"architecture": "temporal"}, "'temporal' has no equal here"),
        ({"normalize_activations": "layer_norm"}, "standardized by its own mean"),
        ({"normalize_activations": "expected_average_only_in"}, "not in these files"),
        ({"reshape_activations": "hook_z"}, "attention heads"),
        ({"activation_fn": "tanh-relu"}, "'tanh-relu' has no equal"),
        (
            {"metadata": {"hook_name": "layers.1", "model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "mean",
        ),
        ({"metadata": {}}, "does not say which place"),
        ({"d_sae": 0}, "d_sae = 0, where a number from 1 on"),
    ],
)
def test_what_saelens_can_and_we_cannot_is_refused_with_the_reason(config, fault, tmp_path):
    export_saelens(single("relu"), tmp_path / "out")
    path = tmp_path / "out" / "layers.1" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises((ConfigError, RunError), match=fault):
        import_suite(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"activation": "groupmax"}, "'groupmax' has no equal here"),
        ({"skip_connection": True}, "a linear map of its input"),
        ({"transcode": True}, "another place than it reads"),
        ({"k": 0}, "k = 0"),
        ({"num_latents": D_SAE + 1}, rf"encoder.weight has the shape .* where \(S = {D_SAE + 1}, D = {D_MODEL}\)"),
    ],
)
def test_what_sparsify_can_and_we_cannot_is_refused_with_the_reason(config, fault, tmp_path):
    sparsify_files(tmp_path / "layers.0", tensors(), **config)
    with pytest.raises((ConfigError, RunError), match=fault):
        import_suite(tmp_path)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, "a transcoder"),
        ({"use_glu_encoder": True}, "a second encoder"),
        ({"norm_activation": "token-wise"}, "divided by its own norm"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu' has no equal"),
        ({"dataset_average_activation_norm": {"in": 0}}, "lacks dataset_average_activation_norm.in"),
    ],
)
def test_what_openmoss_can_and_we_cannot_is_refused_with_the_reason(config, fault, tmp_path):
    llama_scope(tmp_path, **config)
    with pytest.raises((ConfigError, RunError), match=fault):
        import_suite(tmp_path)


def test_a_scaling_factor_must_be_there_and_positive(tmp_path):
    release(tmp_path, {"layers.0": 1.0}, {"k1-c0": [0, 1]})
    with pytest.raises(RunError, match=r"no scaling factor of 'layers.1'"):
        import_suite(tmp_path / "cluster")
    torch.save({"layers.0": 1.0, "layers.1": -1.0}, tmp_path / "cluster" / "scaling_factors.pt")
    with pytest.raises(RunError, match=r"'layers.1' is -1.0, where a number above 0"):
        import_suite(tmp_path / "cluster")


class Harmful:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_more_than_tensors_is_refused_unread(zipped, tmp_path):
    qwen_scope(tmp_path)
    path = next(tmp_path.rglob("*.pt"))
    written = tmp_path / "written"
    torch.save({"W_enc": Harmful(written)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RunError, match="is refused: it holds more than tensors"):
        import_suite(tmp_path)
    assert not written.exists()


def test_a_pickled_checkpoint_with_other_things_beside_the_tensors_is_named(tmp_path):
    export_dictionary_learning(single("topk"), tmp_path / "out")
    path = tmp_path / "out" / "layers.1" / "ae.pt"
    torch.save({"step": 3, "ae": torch.load(path, weights_only=True), "config": {}}, path)
    with pytest.raises(RunError, match="holds more than tensors: ae, config"):
        import_suite(tmp_path / "out")


def test_tensors_that_promise_more_than_the_file_holds_are_refused(tmp_path):
    qwen_scope(tmp_path)
    path = next(tmp_path.rglob("*.pt"))
    weights = torch.load(path, weights_only=True)
    weights["W_enc"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(weights, path)
    with pytest.raises(RunError, match="promises more numbers than the file's"):
        import_suite(tmp_path)


def test_an_npz_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    gemma_scope(tmp_path)
    path = next(tmp_path.rglob("*.npz"))
    np.savez_compressed(path, W_enc=np.zeros((4000, 4000), dtype=np.float32))
    with pytest.raises(RunError, match="unpacks to more than 100 times its size"):
        import_suite(tmp_path)


def test_an_npz_with_pickled_objects_is_refused(tmp_path):
    gemma_scope(tmp_path)
    path = next(tmp_path.rglob("*.npz"))
    np.savez(path, W_enc=np.array([{}], dtype=object))
    with pytest.raises(RunError, match="holds Python objects"):
        import_suite(tmp_path)


@pytest.mark.parametrize("kind", ["att", "transcoders"])
def test_gemma_scope_of_places_that_are_not_read_is_refused(kind, tmp_path):
    gemma_scope(tmp_path)
    (tmp_path / "gemma-scope-2b-pt-res").rename(tmp_path / f"gemma-scope-2b-pt-{kind}")
    with pytest.raises(ConfigError, match=r"hook_z|a transcoder"):
        import_suite(tmp_path)


def test_a_folder_that_does_not_say_its_place_needs_the_flag(tmp_path):
    w = gemma_scope(tmp_path)
    (tmp_path / "gemma-scope-2b-pt-res").rename(tmp_path / "copied")
    with pytest.raises(RunError, match=r"does not say which place it reads.*--hookpoint"):
        import_suite(tmp_path)
    suite = import_suite(tmp_path, hookpoint="layers.{layer}")
    close(suite["layers.3"].sae.W_dec, w["W_dec"])


# ---- training that starts from them


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_rows_of_several_norms_become_unit_rows_when_a_training_starts_from_them(architecture, tmp_path):
    suite = with_other_norms(architecture, tmp_path)
    scales = Scales(("layers.1",), torch.tensor([2.0]), torch.randn(1, D_MODEL))
    sae = WarmStart(suite, "group").starts(["layers.1"], scales)["layers.1"].sae
    close(torch.linalg.vector_norm(sae.W_dec, dim=1), torch.ones(D_SAE))
    x_hat_ND = sae((X_ND - scales.center_LD[0]) * 2) / 2 + scales.center_LD[0]
    torch.testing.assert_close(x_hat_ND, suite["layers.1"](X_ND), rtol=1e-4, atol=1e-4)


def test_topk_with_rows_of_several_norms_cannot_be_started_from(tmp_path):
    suite = with_other_norms("topk", tmp_path)
    config = suite["layers.1"].sae.config
    with pytest.raises(ConfigError, match="decoder rows: of several norms"):
        WarmStart(suite, "group").require_possible([("layers.1",)], D_MODEL, config, TrainConfig())


def with_other_norms(architecture, folder):
    """An imported suite of one SAE whose rows have norms between 1 and 2."""
    export_saelens(single(architecture), folder / "out")
    path = folder / "out" / "layers.1" / "sae_weights.safetensors"
    weights = load_file(path)
    save_file(weights | {"W_dec": weights["W_dec"] * torch.linspace(1, 2, D_SAE)[:, None]}, path)
    return import_suite(folder / "out")
