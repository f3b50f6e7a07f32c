"""SAEBench's core evaluation takes `suite.to_saebench(...)` as it is, on a tiny model.

SAEBench 0.6.0 pins numpy below 2 and datasets below 4, which SAELens' other pins and torch 2.13 do not go with: it is
installed without its dependencies beside SAELens. Its `multiple_evals` downloads a model by name; what it calls is run.
"""

import pytest
import torch
from interop_cases import CONFIGS, D_MODEL, single
from tiny import tiny_text, tiny_tokenizer

core = pytest.importorskip("sae_bench.evals.core.main", reason="SAEBench is not installed", exc_type=ImportError)
datasets = pytest.importorskip("datasets")
from sae_bench.sae_bench_utils import general_utils  # noqa: E402
from transformer_lens import HookedTransformer, HookedTransformerConfig  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model of TransformerLens, as wide as the SAEs."""
    sizes = {"n_layers": 3, "d_model": D_MODEL, "n_ctx": 32, "d_head": 8, "n_heads": 2, "d_mlp": 32, "d_vocab": 300}
    config = HookedTransformerConfig(**sizes, act_fn="gelu", seed=0, device="cpu", default_prepend_bos=True)
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    tiny_tokenizer(begin=True).save_pretrained(folder)
    return HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_core_evaluation_accepts_the_object(architecture, model, measured):
    bench = single(architecture, "all").to_saebench("layers.1", model_name="tiny", context_length=16)
    _, sae, _ = general_utils.load_and_format_sae("groupsae", bench, "cpu")
    texts = [tiny_text(40, seed) for seed in range(40)]
    store = core.ActivationsStore.from_sae(
        model,
        sae.to(device="cpu", dtype=torch.float32),
        context_size=16,
        dataset=datasets.Dataset.from_dict({"text": texts}),
        streaming=False,
        store_batch_size_prompts=4,
        n_batches_in_buffer=4,
        train_batch_size_tokens=64,
    )
    config = core.CoreEvalConfig(
        model_name="tiny",
        batch_size_prompts=4,
        n_eval_reconstruction_batches=2,
        n_eval_sparsity_variance_batches=2,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        llm_dtype="float32",
    )
    found, features = core.run_evals(sae, store, model, config)
    assert found["sparsity"]["l0"] > 0 and len(features["encoder_bias"]) == bench.cfg.d_sae
    with torch.no_grad():
        _, cache = model.run_with_cache(store.get_batch_tokens(4), names_filter=[bench.cfg.hook_name])
        x = cache[bench.cfg.hook_name]
        measured(
            "sae-bench",
            architecture,
            "our object: outputs",
            (bench(x) - single(architecture, "all")["layers.1"](x)).abs().max(),
        )
