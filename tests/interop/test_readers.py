"""The tools themselves read what was written for them. Skipped where they are not installed."""

import pytest
import torch
from interop_cases import CONFIGS, D_SAE, PARTITION, random_batch, single

from groupsae import export_saelens, export_sparsify


@pytest.mark.parametrize("own", ["nothing", "bias", "rotation", "all"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_saelens_loads_and_computes_the_same(architecture, own, tmp_path):
    lens = pytest.importorskip("sae_lens", reason="SAELens is not installed", exc_type=ImportError)
    suite, x_ND = single(architecture, own), random_batch().float()
    export_saelens(suite, tmp_path / "out", model_name="demo")
    for hookpoint in PARTITION.hookpoints:
        theirs, ours = lens.SAE.load_from_disk(str(tmp_path / "out" / hookpoint)), suite[hookpoint]
        latents_NS = theirs.encode(x_ND)
        close(latents_NS, ours.encode(x_ND))
        close(theirs.decode(latents_NS), ours.decode(ours.encode(x_ND)))
        close(theirs(x_ND), ours(x_ND))
        assert theirs.cfg.metadata.hf_hook_name == hookpoint


@pytest.mark.parametrize("own", ["nothing", "bias", "rotation", "all"])
def test_sparsify_loads_and_computes_the_same(own, tmp_path):
    sparsify = pytest.importorskip("sparsify", reason="sparsify is not installed", exc_type=ImportError)
    suite, x_ND = single("topk", own), random_batch().float()
    export_sparsify(suite, tmp_path / "out")
    coders = sparsify.SparseCoder.load_many(str(tmp_path / "out"), local=True)
    assert list(coders) == list(PARTITION.hookpoints)
    for hookpoint, theirs in coders.items():
        top = theirs.encode(x_ND)
        latents_NS = torch.zeros(len(x_ND), D_SAE).scatter(1, top.top_indices, top.top_acts)
        close(latents_NS, suite[hookpoint].encode(x_ND))
        close(theirs(x_ND).sae_out, suite[hookpoint](x_ND))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
