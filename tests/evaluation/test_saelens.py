"""Our metrics beside SAELens' own evaluation functions, on the same tensors. Needs `pip install sae-lens`."""

import types

import pytest
import torch
from evaluation_cases import all_activations, fluent_rows, make_model, make_source, random_suite
from torch.nn import functional as F

from groupsae.evaluation.density import DENSE
from groupsae.evaluation.losses import evaluate_losses
from groupsae.evaluation.reconstruction import evaluate_reconstruction
from groupsae.model_structure import base_model

pytest.importorskip("sae_lens", reason="SAELens is not installed (pip install sae-lens)")

HOOKPOINT, LENS_NAME, ROWS = "layers.1", "blocks.1.hook_resid_post", 10


class Hooked:
    """A Hugging Face model with as much of TransformerLens' interface as SAELens' functions use."""

    def __init__(self, model):
        self.model, self.block = model, base_model(model).get_submodule(HOOKPOINT)

    def __call__(self, tokens, return_type, loss_per_token):
        assert (return_type, loss_per_token) == ("both", True)
        logits = self.model(tokens, use_cache=False).logits
        return logits, F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")

    def run_with_hooks(self, tokens, *, fwd_hooks, **options):
        ((name, change),) = fwd_hooks
        assert name == LENS_NAME
        handle = self.block.register_forward_hook(lambda module, inputs, output: change(output, hook=None))
        try:
            return self(tokens, **options)
        finally:
            handle.remove()

    def run_with_cache(self, tokens, **options):
        cache = {}
        handle = self.block.register_forward_hook(lambda module, inputs, output: cache.update({LENS_NAME: output}))
        try:
            return self.model(tokens, use_cache=False).logits, cache
        finally:
            handle.remove()


def as_saelens(suite):
    """One SAE of a suite with as much of SAELens' interface as its functions use."""
    bound = suite[HOOKPOINT]
    metadata = types.SimpleNamespace(hook_name=LENS_NAME, hook_head_index=None)
    cfg = types.SimpleNamespace(metadata=metadata, d_sae=bound.sae.d_sae)
    return types.SimpleNamespace(cfg=cfg, device=torch.device("cpu"), encode=bound.encode, decode=bound.decode)


@pytest.fixture(scope="module")
def case():
    model = make_model()
    rows = fluent_rows(model, ROWS)
    return model, rows, random_suite((HOOKPOINT,), d_sae=64)


def store_of(rows):
    return types.SimpleNamespace(get_batch_tokens=lambda count: rows[list(range(count))])


@pytest.mark.parametrize("skip_special", [True, False])
def test_reconstruction_and_sparsity_equal_those_of_saelens(case, skip_special):
    from sae_lens.evals import get_sparsity_and_variance_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    model, rows, suite = case
    theirs, latents = get_sparsity_and_variance_metrics(
        as_saelens(suite), Hooked(model), store_of(rows), ActivationScaler(), n_batches=1, compute_l2_norms=True,
        compute_sparsity_metrics=True, compute_variance_metrics=True, compute_featurewise_density_statistics=True,
        eval_batch_size_prompts=ROWS, model_kwargs={}, ignore_tokens=[0] if skip_special else None,
    )  # fmt: skip
    source = make_source(model, (HOOKPOINT,), rows=rows, skip_special=skip_special)
    ours = evaluate_reconstruction(suite, source, 10**6)[HOOKPOINT]
    names = ("l0", "l1", "l2_ratio", "relative_reconstruction_bias")
    assert {name: getattr(ours, name) for name in names} == pytest.approx({name: theirs[name] for name in names}, 1e-5)
    assert 1 - ours.fvu == pytest.approx(theirs["explained_variance"], rel=1e-5)
    assert ours.explained_variance_per_token == pytest.approx(theirs["explained_variance_legacy"], rel=1e-5)
    assert ours.cosine == pytest.approx(theirs["cossim"], rel=1e-5)
    x_ND = all_activations(source)[0]
    assert ours.fvu * (x_ND - x_ND.mean(0)).square().sum().item() / len(x_ND) == pytest.approx(theirs["mse"], rel=1e-5)
    density_S = torch.tensor(latents["feature_density"])
    assert ours.silent_share == (density_S == 0).double().mean().item()
    assert ours.dense_share == (density_S > DENSE).double().mean().item()
    assert sum(ours.density) == (density_S > 0).sum().item()


@pytest.mark.parametrize("skip_special", [True, False])
def test_losses_equal_those_of_saelens(case, skip_special):
    from sae_lens.evals import get_downstream_reconstruction_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    model, rows, suite = case
    theirs = get_downstream_reconstruction_metrics(
        as_saelens(suite), Hooked(model), store_of(rows), ActivationScaler(), compute_kl=True, compute_ce_loss=True,
        n_batches=1, eval_batch_size_prompts=ROWS, ignore_tokens=[0] if skip_special else None,
    )  # fmt: skip
    source = make_source(model, (HOOKPOINT,), rows=rows, skip_special=skip_special)
    found = evaluate_losses({"a": suite}, source, 10**6)
    ours, ablated = found.suites["a"][HOOKPOINT], found.ablated[HOOKPOINT]
    assert {
        "ce_loss_without_sae": found.ce_clean,
        "ce_loss_with_sae": ours.ce,
        "ce_loss_with_ablation": ablated.ce_zero,
        "ce_loss_score": ours.ce_score,
        "kl_div_with_sae": ours.kl,
        "kl_div_with_ablation": ablated.kl_zero,
        "kl_div_score": ours.kl_score,
    } == pytest.approx(theirs, rel=1e-5)
