"""Small files in the layouts of published suites, with random weights."""

import json

import numpy as np
import torch
from interop_cases import D_MODEL, D_SAE
from safetensors.torch import save_file


def tensors(seed=0, *, norm=1.0):
    """W_enc (S, D), b_enc, W_dec (S, D), b_dec and thresholds; decoder rows of norms around `norm`."""
    random = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=random), dim=1) * norm
    return {
        "W_enc": torch.randn(D_SAE, D_MODEL, generator=random),
        "b_enc": torch.randn(D_SAE, generator=random) / 2,
        "W_dec": W_dec,
        "b_dec": torch.randn(D_MODEL, generator=random),
        "threshold": torch.rand(D_SAE, generator=random) + 0.1,
    }


def gemma_scope(folder, layer=3, l0=71, seed=0, **changed):
    """google/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71/params.npz."""
    w = tensors(seed) | changed
    place = folder / "gemma-scope-2b-pt-res" / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}"
    place.mkdir(parents=True)
    np.savez(
        place / "params.npz",
        W_enc=w["W_enc"].T.numpy(),
        W_dec=w["W_dec"].numpy(),
        **{name: w[name].numpy() for name in ("b_enc", "b_dec", "threshold")},
    )
    return w


def gemma_scope_2(folder, layer=3, seed=0, **config):
    """resid_post/layer_3_width_16k_l0_small with params.safetensors and config.json."""
    w = tensors(seed)
    place = folder / "resid_post" / f"layer_{layer}_width_16k_l0_small"
    place.mkdir(parents=True)
    weights = {"w_enc": w["W_enc"].T.contiguous(), "w_dec": w["W_dec"]}
    save_file(weights | {name: w[name] for name in ("b_enc", "b_dec", "threshold")}, place / "params.safetensors")
    known = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-270m-pt",
        "hf_hook_point_in": f"model.layers.{layer}.output",
        "l0": 10.4,
    }
    (place / "config.json").write_text(json.dumps(known | config))
    return w


def qwen_scope(folder, layer=3, k=5, seed=0):
    """Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5/layer3.sae.pt."""
    w = tensors(seed)
    place = folder / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{k}"
    place.mkdir(parents=True, exist_ok=True)
    saved = {"W_enc": w["W_enc"], "W_dec": w["W_dec"].T.contiguous(), "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    torch.save(saved, place / f"layer{layer}.sae.pt")
    return w


def llama_scope(folder, layer=3, seed=0, norm=1.0, **config):
    """Llama3_1-8B-Base-L3R-8x with hyperparams.json and checkpoints/final.safetensors."""
    w = tensors(seed, norm=norm)
    place = folder / f"Llama3_1-8B-Base-L{layer}R-8x"
    (place / "checkpoints").mkdir(parents=True)
    weights = {"encoder.weight": w["W_enc"], "encoder.bias": w["b_enc"]}
    weights |= {"decoder.weight": w["W_dec"].T.contiguous(), "decoder.bias": w["b_dec"]}
    save_file(weights, place / "checkpoints" / "final.safetensors")
    known = {
        "hook_point_in": f"blocks.{layer}.hook_resid_post",
        "hook_point_out": f"blocks.{layer}.hook_resid_post",
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.3,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 2.5, "out": 2.5},
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "top_k": 5,
    }
    (place / "hyperparams.json").write_text(json.dumps(known | config))
    return w, known | config


def openmoss(folder, layer=3, seed=0, norm=2.0, **config):
    """The later files of the same library: config.json and sae_weights.safetensors, a threshold per latent."""
    w = tensors(seed, norm=norm)
    place = folder / f"L{layer}R"
    place.mkdir(parents=True)
    hook = f"blocks.{layer}.hook_resid_post"
    weights = {"W_E": w["W_enc"].T.contiguous(), "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]}
    weights["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
    weights[f"dataset_average_activation_norm.{hook}"] = torch.tensor(2.5)
    save_file(weights, place / "sae_weights.safetensors")
    known = {
        "hook_point_in": hook,
        "hook_point_out": hook,
        "d_model": D_MODEL,
        "expansion_factor": D_SAE / D_MODEL,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
    }
    (place / "config.json").write_text(json.dumps(known | config))
    return w, known | config
