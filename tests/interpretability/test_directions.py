"""Promoted tokens are those of the model's own head; neighbors are the nearest rows."""

import pytest
import torch
from latent_cases import small_suite
from tiny import FAMILIES, tiny_model, tiny_tokenizer

from groupsae.interpretability.directions import Unembedding, directions, nearest
from groupsae.interpretability.vocabulary import token_texts
from groupsae.model_structure import base_model

NORMS = {"gpt_neox": "final_layer_norm", "gpt2": "ln_f", "llama": "norm", "gptj": "ln_f"}


@pytest.mark.parametrize("family", FAMILIES)
def test_promoted_tokens_go_through_the_final_norm_and_the_head(family):
    model = tiny_model(family)
    unembedding = Unembedding.of(model)
    assert unembedding.norm_name == NORMS[family]
    direction_SD = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    norm, head = base_model(model).get_submodule(NORMS[family]), model.get_output_embeddings()
    scaled_SD = torch.nn.functional.normalize(direction_SD) * 4
    wanted_SV = (norm(scaled_SD) - norm(torch.zeros(1, 16))) @ head.weight.T
    high_id, high, low_id, low = unembedding.strongest(direction_SD, 3)
    assert torch.equal(high_id, wanted_SV.topk(3).indices) and torch.equal(low_id, (-wanted_SV).topk(3).indices)
    assert torch.allclose(high, wanted_SV.topk(3).values, atol=1e-5) and (low < high).all()
    longer = unembedding.strongest(7 * direction_SD, 3)[1]
    assert torch.allclose(longer, high, atol=1e-4), "the length of a direction does not matter"


def test_a_model_without_a_head_promotes_nothing():
    assert Unembedding.of(torch.nn.Linear(2, 2)) is None


@pytest.mark.parametrize("same", [False, True])
def test_neighbors_are_the_nearest_rows_that_fire(same):
    random = torch.Generator().manual_seed(1)
    one_SD = torch.randn(300, 8, generator=random)
    other_SD = one_SD if same else torch.randn(7, 8, generator=random)
    among_S = torch.ones(len(other_SD), dtype=torch.bool)
    among_S[2] = False
    index, cosine = nearest(one_SD, other_SD, 3, among_S=among_S, same=same)
    wanted = torch.nn.functional.cosine_similarity(one_SD[:, None], other_SD[None], dim=-1)
    wanted[:, 2] = -2
    if same:
        wanted.fill_diagonal_(-2)
    assert torch.allclose(cosine, wanted.topk(3).values, atol=1e-5) and torch.equal(index, wanted.topk(3).indices)


def test_fewer_rows_than_asked_for():
    index, cosine = nearest(torch.eye(2), torch.eye(2), 4, among_S=torch.tensor([True, False]), same=True)
    assert index.tolist() == [[-1] * 4, [0, -1, -1, -1]] and cosine.tolist() == [[0] * 4, [0] * 4]


def test_directions_are_decoder_rows():
    suite = small_suite((("layers.0", "layers.1"),))
    assert torch.equal(directions(suite["layers.1"]), suite["layers.1"].sae.W_dec)


def test_every_token_has_a_text():
    tokens = token_texts(tiny_tokenizer(begin=True), 300)
    assert len(tokens) == 300 and tokens[299] == ""
    assert tokens[tiny_tokenizer().convert_tokens_to_ids("Ġ")] == " "
    assert tokens[tiny_tokenizer().convert_tokens_to_ids("a")] == "a"
    assert tokens[256] == "<|endoftext|>"
    assert any(token.startswith("\\x") for token in tokens), "half of a character is written by its bytes"
    assert not any("\ufffd" in token for token in tokens)
