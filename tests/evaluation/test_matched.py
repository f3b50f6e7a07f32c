"""Two SAEs at one L0: the denser one loses its cutoff latents, the sparser one nothing."""

import pytest
import torch

from groupsae.activations.source import SyntheticSource
from groupsae.config import TopKConfig
from groupsae.evaluation.matched import fvu_at_equal_l0, thin
from groupsae.evaluation.reconstruction import evaluate_reconstruction
from groupsae.partition import Partition
from groupsae.saes.base import Latents
from groupsae.saes.suite import Suite
from groupsae.saes.topk import TopKSAE
from groupsae.training.fit import measure_scales

SOURCE = SyntheticSource(num_layers=2, d_model=8, num_rows=8, row_tokens=16)
LAYER = "layers.1"


def suite_of(k):
    sae = TopKSAE(8, TopKConfig(d_sae=32, k=k))
    sae.initialize(0)
    return Suite(Partition(((LAYER,),)), {LAYER: sae.requires_grad_(False)}, measure_scales(SOURCE, 128))


def test_thinning_keeps_the_strongest_latents_of_all_tokens_together():
    values = torch.tensor([[9.0, 1.0], [8.0, 7.0], [2.0, 3.0]])
    thinned = thin(Latents(values, torch.zeros(3, 2, dtype=torch.long)), 1.0)
    assert thinned.values_NK.tolist() == [[9.0, 0.0], [8.0, 7.0], [0.0, 0.0]]


@pytest.mark.parametrize(("l0", "left"), [(0.0, 0), (0.4, 1), (2.0, 6), (5.0, 6)])
def test_thinning_leaves_as_many_as_asked(l0, left):
    values = torch.tensor([[9.0, 1.0], [8.0, 7.0], [2.0, 3.0]])
    assert (thin(Latents(values, torch.zeros(3, 2, dtype=torch.long)), l0).values_NK > 0).sum() == left


def test_saes_of_equal_l0_keep_their_fvu():
    suite = suite_of(4)
    fvu = evaluate_reconstruction(suite, SOURCE, 128)[LAYER].fvu
    pair = fvu_at_equal_l0(suite[LAYER], suite[LAYER], SOURCE, 128)
    assert pair.first == pair.second == pytest.approx(fvu, rel=1e-6)


def test_the_denser_sae_is_thinned_to_the_l0_of_the_other():
    dense, sparse = suite_of(6), suite_of(3)
    scores = {name: evaluate_reconstruction(suite, SOURCE, 128)[LAYER] for name, suite in (("d", dense), ("s", sparse))}
    pair = fvu_at_equal_l0(dense[LAYER], sparse[LAYER], SOURCE, 128)
    mirrored = fvu_at_equal_l0(sparse[LAYER], dense[LAYER], SOURCE, 128)
    assert pair.l0 == pytest.approx(scores["s"].l0)
    assert pair.second == pytest.approx(scores["s"].fvu, rel=1e-6)
    assert pair.first != pytest.approx(scores["d"].fvu, rel=1e-3)
    assert (mirrored.second, mirrored.first) == (pair.first, pair.second)
