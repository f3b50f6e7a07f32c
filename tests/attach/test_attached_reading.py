"""What a suite attached to a model reads: the latents of each layer's output, whatever the model and the pass."""

from pathlib import Path

import pytest
import torch
from attach_cases import outputs_of, plain_suite, resumed, suite_for, texts
from families import FAMILIES, STATE_SPACE, WIDTH, family_model
from tiny import tiny_model
from torch import nn

from groupsae.config import BatchTopKConfig
from groupsae.model_structure import residual_stream
from groupsae.models import load_model

STORIES = Path(__file__).parents[2] / "../shared/models/stories260K"
QUIET = {"do_sample": False, "pad_token_id": 0}
POSITIONS_FROM_MASK: tuple[str, ...] = tuple(name for name in FAMILIES if name not in ("opt", "bloom", "mpt"))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_attaching_changes_nothing_and_reads_every_layer(family):
    model = family_model(family)
    suite, batch = suite_for(model, WIDTH), texts()
    plain, outputs = model(**batch).logits, outputs_of(model, suite.partition.hookpoints, batch)
    with suite.attach(model, skip_first=0) as latents:
        attached = model(**batch).logits
    assert torch.equal(attached, plain)
    for layer, x_BTD in outputs.items():
        torch.testing.assert_close(latents[layer].dense(), suite[layer].encode(x_BTD))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generation_gives_the_latents_of_all_tokens(family):
    model = family_model(family)
    suite, batch = suite_for(model, WIDTH), texts(padding=2)
    plain = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, **QUIET)
    with suite.attach(model) as latents:
        written = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, **QUIET)
    assert torch.equal(written, plain)
    layer = suite.partition.hookpoints[1]
    assert latents[layer].dense().shape == (2, 9, 4 * WIDTH)
    assert latents[layer].kept_BT.tolist() == [[False] * 3 + [True] * 6, [False] + [True] * 8]
    if family in STATE_SPACE:
        return  # their passes with and without a cache differ
    whole = {
        "input_ids": written[:, :-1],
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones(2, 3, dtype=torch.long)], 1),
    }
    if family in POSITIONS_FROM_MASK:
        whole["position_ids"] = (whole["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with suite.attach(model) as once:
        model(**whole)
    torch.testing.assert_close(latents[layer].dense(), once[layer].dense(), rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_a_pass_from_the_start_begins_anew_and_one_with_a_cache_goes_on():
    model = tiny_model("llama")
    suite, batch = suite_for(model, 16), texts()
    with suite.attach(model, skip_first=0) as latents:
        model(**texts(seed=1))
        first = model(**batch, use_cache=True)
        alone = latents["layers.1"].dense()
        model(batch["input_ids"][:, :2], **resumed(first))
        both = latents["layers.1"].dense()
    assert alone.shape[:2] == (2, 6) and both.shape[:2] == (2, 8)
    assert torch.equal(both[:, :6], alone)


@torch.no_grad()
def test_without_a_cache_the_last_pass_holds_the_whole_text():
    model = tiny_model("gpt_neox")
    suite = suite_for(model, 16)
    with suite.attach(model) as latents:
        model.generate(**texts(), max_new_tokens=3, min_new_tokens=3, use_cache=False, **QUIET)
    assert latents["layers.0"].kept_BT.shape == (2, 8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_is_known_with_a_cache_of_fixed_size(attention):
    model = tiny_model("llama")
    model.set_attn_implementation(attention)
    suite, batch = suite_for(model, 16), texts(padding=2)
    found = {}
    for cache in ("static", "dynamic"):
        with suite.attach(model) as latents:
            model.generate(**batch, max_new_tokens=3, min_new_tokens=3, cache_implementation=cache, **QUIET)
        found[cache] = latents["layers.1"]
    assert found["static"].kept_BT.tolist() == [[False] * 3 + [True] * 5, [False] + [True] * 7]
    assert torch.equal(found["static"].kept_BT, found["dynamic"].kept_BT)
    torch.testing.assert_close(found["static"].dense(), found["dynamic"].dense())


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_has_no_latents_and_changes_none(side):
    model = tiny_model("gpt2")
    suite, batch = suite_for(model, 16), texts(rows=1)
    pad = {"left": (2, 0), "right": (0, 2)}[side]
    padded = {name: torch.nn.functional.pad(tensor, pad) for name, tensor in batch.items()}
    padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with suite.attach(model) as latents:
        model(**padded)
        found = latents["h.1"]
        model(**batch)
    real = padded["attention_mask"].bool()
    assert not found.dense()[~real].any()
    torch.testing.assert_close(found.dense()[real], latents["h.1"].dense()[0])


@torch.no_grad()
def test_first_positions_and_ids_are_left_out_as_asked():
    model = tiny_model("llama")
    suite, batch = suite_for(model, 16), texts()
    batch["input_ids"][1, 4] = 7
    batch["input_ids"][0][batch["input_ids"][0] == 7] = 8
    with suite.attach(model, skip_first=2, skip_ids=[7]) as latents:
        model(**batch)
    kept_BT = torch.ones(2, 6, dtype=torch.bool)
    kept_BT[:, :2] = False
    kept_BT &= batch["input_ids"] != 7
    assert torch.equal(latents["layers.0"].kept_BT, kept_BT) and not kept_BT[1, 4]
    assert torch.equal(latents["layers.0"].dense().any(-1), kept_BT)


@torch.no_grad()
def test_half_precision_models_are_left_as_they_are():
    model = tiny_model("llama").bfloat16()
    suite, batch = suite_for(model, 16), texts()
    plain, outputs = model(**batch).logits, outputs_of(model, ["layers.1"], batch)
    with suite.attach(model, skip_first=0) as latents:
        assert torch.equal(model(**batch).logits, plain)
        assert latents["layers.1"].values_BTK.dtype == torch.float32
        torch.testing.assert_close(latents["layers.1"].dense(), suite["layers.1"].encode(outputs["layers.1"]))
        latents.steer("layers.1", 3, 5.0)
        steered = model(**batch).logits
    assert steered.dtype == torch.bfloat16 and not torch.equal(steered, plain)


@torch.no_grad()
def test_autocast_does_not_reach_the_saes():
    model = tiny_model("llama")
    suite, batch = suite_for(model, 16), texts()
    with torch.autocast("cpu", torch.bfloat16), suite.attach(model, skip_first=0) as latents:
        outputs = outputs_of(model, ["layers.1"], batch)
        model(**batch)
    torch.testing.assert_close(latents["layers.1"].dense(), suite["layers.1"].encode(outputs["layers.1"]))


@pytest.mark.parametrize("architecture", ["batchtopk", "gated", "jumprelu", "relu", "matryoshka"])
@torch.no_grad()
def test_tokens_may_have_any_number_of_latents(architecture):
    model = tiny_model("llama")
    suite, batch = plain_suite(architecture, "all"), texts()
    outputs = outputs_of(model, suite.partition.hookpoints, batch)
    with suite.attach(model, skip_first=0) as latents:
        first = model(**batch, use_cache=True)
        for layer, x_BTD in outputs.items():
            torch.testing.assert_close(latents[layer].dense(), suite[layer].encode(x_BTD))
        model(batch["input_ids"][:, :1], **resumed(first))
        assert latents["layers.2"].dense().shape[1] == 7


@torch.no_grad()
def test_a_latent_is_followed_through_the_layers_of_its_group():
    model = tiny_model("llama")
    suite, batch = suite_for(model, 16), texts()
    with suite.attach(model) as latents:
        model(**batch)
    for number in latents["layers.0"].indices_BTK[0, 2].tolist():
        values_MBT = latents.through_layers("layers.0-1", number)
        assert values_MBT.shape == (2, 2, 6) and values_MBT[0, 0, 2] > 0
        for place, layer in enumerate(("layers.0", "layers.1")):
            assert torch.equal(values_MBT[place], latents[layer].dense()[:, :, number])


@torch.no_grad()
def test_modules_inside_blocks_are_read_too_where_the_model_writes_into_their_output():
    model = family_model("falcon")
    names = ["h.0.mlp", "h.1.mlp", "h.2.mlp"]
    suite, batch = suite_for(model, WIDTH, layers=names), texts()
    plain, outputs = model(**batch).logits, outputs_of(model, names, batch)
    with suite.attach(model, skip_first=0) as latents:
        assert torch.equal(model(**batch).logits, plain)
        torch.testing.assert_close(latents["h.1.mlp"].dense(), suite["h.1.mlp"].encode(outputs["h.1.mlp"]))
        latents.steer("h.1.mlp", 3, 4.0)
        assert not torch.equal(model(**batch).logits, plain)


class Blocks(nn.Module):
    """Two blocks and no more: what is compiled in no time."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


@torch.no_grad()
def test_a_model_that_was_compiled_before_notices():
    model, layer = Blocks(), "layers.0"
    suite, batch = suite_for(model, 16), {"x": torch.randn(2, 6, 16)}
    with suite.attach(model) as latents:
        latents.steer(layer, 3, 3.0)
        steered, read = model(**batch), latents[layer].dense()
    compiled = torch.compile(model, backend="eager")
    plain = compiled(**batch)
    for attachable in (compiled, model):
        with suite.attach(attachable) as latents:
            torch.testing.assert_close(compiled(**batch), plain)
            torch.testing.assert_close(latents[layer].dense(), read)
            latents.steer(layer, 3, 3.0)
            torch.testing.assert_close(compiled(**batch), steered)
        assert torch.equal(compiled(**batch), plain) and not torch.equal(steered, plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_a_model_compiled_to_machine_code_notices(family):
    model = tiny_model(family, layers=2)
    suite, batch = suite_for(model, 16), texts()
    layer = suite.partition.hookpoints[0]
    with suite.attach(model) as latents:
        latents.steer(layer, 3, 3.0)
        steered = model(**batch).logits
    torch._dynamo.reset()
    compiled = torch.compile(model)
    plain = compiled(**batch).logits
    with suite.attach(compiled) as latents:
        latents.steer(layer, 3, 3.0)
        torch.testing.assert_close(compiled(**batch).logits, steered)
    torch.testing.assert_close(compiled(**batch).logits, plain)


@torch.no_grad()
def test_hidden_states_that_a_model_gives_are_those_of_the_edits():
    model = tiny_model("gpt_neox")
    suite, batch = suite_for(model, 16), texts()
    with suite.attach(model) as latents:
        latents.steer("layers.0", 3, 3.0)
        hidden = model(**batch, output_hidden_states=True).hidden_states
        outputs = outputs_of(model, ["layers.0"], batch)
    assert torch.equal(hidden[1], outputs["layers.0"])


@pytest.mark.skipif(not STORIES.exists(), reason="the model stories260K is not beside the repository")
@torch.no_grad()
def test_a_real_model_writes_the_same_story():
    model, tokenizer = load_model(str(STORIES), device="cpu")
    suite = suite_for(model, 64, BatchTopKConfig(expansion=4, k=8))
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    prompt = tokenizer(["Once upon a time", "Lily"], return_tensors="pt", padding=True, padding_side="left")
    prompt.pop("token_type_ids", None)
    plain = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    with suite.attach(model) as latents:
        assert torch.equal(model.generate(**prompt, max_new_tokens=20, do_sample=False), plain)
    for layer in residual_stream(model):
        assert latents[layer].kept_BT.shape == (2, plain.shape[1] - 1)
