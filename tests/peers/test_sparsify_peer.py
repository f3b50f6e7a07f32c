"""sparsify reads what was written for it, and what it trained is imported, from releases with scaling factors too."""

import json

import pytest
import torch
from interop_cases import D_MODEL, D_SAE, PARTITION, random_batch, single
from peer_cases import batches, compare_imported, largest
from safetensors.torch import load_file

from groupsae import export_sparsify, import_suite

sparsify = pytest.importorskip("sparsify", reason="sparsify is not installed", exc_type=ImportError)
TOOL = "eai-sparsify"


@pytest.mark.parametrize("own", ["nothing", "bias", "rotation", "all"])
def test_sparsify_loads_and_computes_the_same(own, tmp_path, measured):
    suite, x_ND = single("topk", own), random_batch().float()
    export_sparsify(suite, tmp_path / "out")
    coders = sparsify.SparseCoder.load_many(str(tmp_path / "out"), local=True)
    assert list(coders) == list(PARTITION.hookpoints)
    for hookpoint, theirs in coders.items():
        measured(TOOL, "topk", "ours, exported: latents", largest(dense(theirs)(x_ND), suite[hookpoint].encode(x_ND)))
        measured(TOOL, "topk", "ours, exported: outputs", largest(theirs(x_ND).sae_out, suite[hookpoint](x_ND)))


@pytest.mark.parametrize("num_latents", [0, D_SAE])
def test_what_sparsify_trained_is_imported(num_latents, tmp_path, measured):
    theirs = trained(num_latents)
    theirs.save_to_disk(tmp_path / "layers.3")
    compare_imported(tmp_path, "layers.3", dense(theirs), lambda x: theirs(x).sae_out, measured, TOOL, "topk")


def test_from_them_to_us_and_back_files_are_the_same(tmp_path, measured):
    trained(0).save_to_disk(tmp_path / "layers.3")
    export_sparsify(import_suite(tmp_path), tmp_path / "out")
    before, after = (load_file(folder / "layers.3" / "sae.safetensors") for folder in (tmp_path, tmp_path / "out"))
    for key, tensor in before.items():
        measured(TOOL, "topk", "theirs, round trip: weights", largest(after[key], tensor), limit=1e-6)


def test_a_release_of_group_saes_is_imported_with_each_layer_s_factor(tmp_path, measured):
    theirs, factors = trained(0), {"layers.0": 0.7, "layers.1": 0.2, "layers.2": 3.0}
    theirs.save_to_disk(tmp_path / "k1-c0")
    torch.save({name: torch.tensor(factor) for name, factor in factors.items()}, tmp_path / "scaling_factors.pt")
    (tmp_path / "config.json").write_text(json.dumps({"clusters": {"k1-c0": [0, 1, 2]}}))
    suite = import_suite(tmp_path)
    assert suite.partition.groups == (tuple(factors),)
    for hookpoint, factor in factors.items():
        out = lambda x, factor=factor: theirs(x * factor).sae_out / factor  # noqa: E731
        encode = lambda x, factor=factor: dense(theirs)(x * factor)  # noqa: E731
        compare_imported(tmp_path, hookpoint, encode, out, measured, TOOL, "group-sae release", suite)


def dense(coder):
    """Its latents as one tensor."""

    def encode(x_ND):
        with torch.no_grad():
            top = coder.encode(x_ND)
        return torch.zeros(len(x_ND), coder.num_latents).scatter(1, top.top_indices, top.top_acts)

    return encode


def trained(num_latents):
    """A coder after a few steps."""
    torch.manual_seed(0)
    coder = sparsify.SparseCoder(D_MODEL, sparsify.SaeConfig(expansion_factor=3, num_latents=num_latents, k=5))
    optimizer = torch.optim.Adam(coder.parameters(), lr=3e-3)
    for x_ND in batches():
        coder.set_decoder_norm_to_unit_norm()
        optimizer.zero_grad()
        coder(x_ND).fvu.backward()
        optimizer.step()
    return coder
