"""The object for SAEBench has what it reads, and computes what the suite does."""

import dataclasses

import pytest
import torch
from architecture_cases import CONFIGS
from sae_cases import D_MODEL, D_SAE, random_batch
from suite_cases import PARTITION, random_suite

from groupsae.errors import HookpointError
from groupsae.saes.bench_object import bench_sae
from groupsae.saes.folded import Folded

ATTRIBUTES = ("W_enc", "W_dec", "b_enc", "b_dec", "device", "dtype", "encode", "decode", "forward", "to", "cfg")
CONFIG = (
    *("model_name", "d_in", "d_sae", "hook_layer", "hook_name", "context_size", "hook_head_index", "architecture"),
    *("apply_b_dec_to_input", "finetuning_scaling_factor", "activation_fn_str", "activation_fn_kwargs", "prepend_bos"),
    *("normalize_activations", "dtype", "device", "model_from_pretrained_kwargs", "dataset_path"),
    *("dataset_trust_remote_code", "seqpos_slice", "training_tokens", "sae_lens_training_version", "neuronpedia_id"),
)


def single(architecture, own="all"):
    suite = random_suite(architecture, own)
    for module in (*suite.saes.values(), *suite.layer_maps.values()):
        module.float()
    return suite


@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_does_what_the_suite_does_in_any_shape(architecture):
    suite, x_NTD = single(architecture), random_batch().float().reshape(2, -1, D_MODEL)
    for hookpoint in PARTITION.hookpoints:
        bench, ours = suite.to_saebench(hookpoint, model_name="pythia-70m"), suite[hookpoint]
        torch.testing.assert_close(bench.encode(x_NTD), ours.encode(x_NTD) / ours.scale, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bench.W_dec.norm(dim=1), torch.ones(D_SAE))
        torch.testing.assert_close(bench(x_NTD), ours(x_NTD), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bench.decode(bench.encode(x_NTD)), bench(x_NTD))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_has_every_attribute_that_saebench_documents(architecture):
    bench = single(architecture).to_saebench("layers.2", model_name="pythia-70m", context_length=64)
    assert all(hasattr(bench, name) for name in ATTRIBUTES)
    assert bench.W_enc.shape == (D_MODEL, D_SAE) and bench.W_dec.shape == (D_SAE, D_MODEL)
    assert dataclasses.is_dataclass(bench.cfg) and set(CONFIG) <= set(bench.cfg.to_dict())
    assert (bench.cfg.hook_name, bench.cfg.hook_layer) == ("blocks.2.hook_resid_post", 2)
    assert (bench.cfg.model_name, bench.cfg.context_size, bench.cfg.d_sae) == ("pythia-70m", 64, D_SAE)
    assert bench.cfg.architecture_str == bench.cfg.architecture
    half = bench.to(dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half(random_batch().bfloat16()).dtype == torch.bfloat16


def test_a_place_that_transformer_lens_does_not_name_is_refused():
    folded = Folded.of(single("topk")["layers.0"])
    with pytest.raises(HookpointError, match="has no TransformerLens name"):
        bench_sae(folded, "layers.0.mlp", model_name="gemma-2-2b", model_type="gemma2")
