"""Steering, ablating and clamping: only the difference that an edit makes is added, at every layer asked for."""

import pytest
import torch
from attach_cases import OWN, PARTITION, outputs_of, plain_suite, resumed, suite_for, texts
from families import FAMILIES, WIDTH, family_model
from tiny import tiny_model
from torch import nn

from groupsae.activations.harvest import Harvester
from groupsae.errors import ConfigError, HookpointError, ModelError, PartitionError
from groupsae.evaluation.splice import edited_logits
from groupsae.text.tokens import TokenRows

ARCHITECTURES = ["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"]


def active_latent(suite, layer, x_BTD, position=2):
    """A latent that is active at a position of the first row, and one that is not."""
    values_S = suite[layer].encode(x_BTD)[0, position]
    return values_S.argmax().item(), values_S.argmin().item()


def edited_by_hand(suite, layer, x_BTD, latent, change):
    """x + decode(f') - decode(f): the definition, with dense latents."""
    f_BTS = suite[layer].encode(x_BTD)
    g_BTS = f_BTS.clone()
    g_BTS[..., latent] = change(g_BTS[..., latent])
    return x_BTD + suite[layer].decode(g_BTS) - suite[layer].decode(f_BTS)


EDITS = {
    "steer": (lambda latents, layer, latent: latents.steer(layer, latent, 3.0), lambda f: f + 3.0),
    "steer back": (lambda latents, layer, latent: latents.steer(layer, latent, -3.0), lambda f: f - 3.0),
    "ablate": (lambda latents, layer, latent: latents.ablate(layer, latent), torch.zeros_like),
    "clamp": (lambda latents, layer, latent: latents.clamp(layer, latent, 2.5), lambda f: torch.full_like(f, 2.5)),
}


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_an_edit_adds_the_difference_of_two_decodings(architecture, own):
    model, batch, layer = tiny_model("llama"), texts(), "layers.2"
    suite = plain_suite(architecture, own)
    x_BTD = outputs_of(model, [layer], batch)[layer]
    for edit, change in EDITS.values():
        for latent in active_latent(suite, layer, x_BTD):
            with suite.attach(model, skip_first=0) as latents:
                edit(latents, layer, latent)
                edited = outputs_of(model, [layer], batch)[layer]
            by_hand = edited_by_hand(suite, layer, x_BTD, latent, change)
            torch.testing.assert_close(edited, by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_computes_on_with_what_was_edited(family):
    model, batch = family_model(family), texts()
    suite = suite_for(model, WIDTH)
    first, last = suite.partition.hookpoints[0], suite.partition.hookpoints[-1]
    latent, _ = active_latent(suite, first, outputs_of(model, [first], batch)[first])
    with suite.attach(model, skip_first=0) as latents:
        latents.ablate(first, latent)
        latents.steer(last, 1, 2.0)
        edited = model(batch["input_ids"]).logits
    by_hand = edited_logits(
        model,
        batch["input_ids"],
        {
            first: lambda x_BTD: edited_by_hand(suite, first, x_BTD, latent, torch.zeros_like),
            last: lambda x_BTD: edited_by_hand(suite, last, x_BTD, 1, lambda f: f + 2.0),
        },
    )
    torch.testing.assert_close(edited, by_hand, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_ablating_a_latent_that_is_nowhere_active_changes_nothing():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk")
    plain, outputs = model(**batch).logits, outputs_of(model, ["layers.0"], batch)
    silent = (suite["layers.0"].encode(outputs["layers.0"]).amax((0, 1)) == 0).nonzero()[0].item()
    with suite.attach(model) as latents:
        latents.ablate("layers.0", silent)
        assert torch.equal(model(**batch).logits, plain)


@torch.no_grad()
def test_a_group_is_edited_at_all_its_layers_at_once():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk", "all")
    (group,) = (name for name, layers in zip(PARTITION.names, PARTITION.groups, strict=True) if len(layers) > 1)
    for edit in ("steer", "ablate", "clamp"):
        values = {} if edit == "ablate" else {"steer": {"strength": 2.0}, "clamp": {"value": 2.0}}[edit]
        with suite.attach(model) as latents:
            getattr(latents, edit)(group=group, latent=4, **values)
            at_once = model(**batch).logits
        with suite.attach(model) as latents:
            for layer in ("layers.2", "layers.0"):
                getattr(latents, edit)(layer, 4, **values)
            one_by_one = model(**batch).logits
        with suite.attach(model) as latents:
            latents.steer("layers.0", 4, 2.0)
            at_one = model(**batch).logits
        assert torch.equal(at_once, one_by_one) and not torch.equal(at_once, at_one)


@torch.no_grad()
def test_a_clamped_latent_has_its_value_at_every_layer_of_the_group():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("relu")
    with suite.attach(model, skip_first=0) as latents:
        latents.clamp(group="layers.0+2", latent=4, value=3.0)
        outputs = outputs_of(model, ["layers.0", "layers.2"], batch)
        before = latents.through_layers("layers.0+2", 4)
    for place, layer in enumerate(outputs):
        bound = suite[layer]
        direction_D = bound.decode(torch.eye(bound.sae.d_sae)[4]) - bound.decode(torch.zeros(bound.sae.d_sae))
        unedited_BTD = outputs[layer] - (3.0 - before[place])[..., None] * direction_D
        torch.testing.assert_close(bound.encode(unedited_BTD)[..., 4], before[place], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_edits_are_made_one_after_the_other_and_can_be_taken_back():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk")
    plain = model(**batch).logits

    def logits(*edits):
        with suite.attach(model) as latents:
            for name, *arguments in edits:
                getattr(latents, name)("layers.0", *arguments)
            return model(**batch).logits

    assert torch.equal(logits(("ablate", 4), ("steer", 4, 2.0)), logits(("clamp", 4, 2.0)))
    assert torch.equal(logits(("steer", 4, 2.0), ("ablate", 4)), logits(("ablate", 4)))
    assert torch.equal(logits(("steer", 4, 1.5), ("steer", 4, 0.5)), logits(("steer", 4, 2.0)))
    torch.testing.assert_close(logits(("steer", [4, 5], 2.0)), logits(("steer", 5, 2.0), ("steer", 4, 2.0)))
    with suite.attach(model) as latents:
        latents.steer("layers.0", 4, 2.0)
        latents.reset()
        assert torch.equal(model(**batch).logits, plain)


@torch.no_grad()
def test_layers_above_read_what_edits_below_have_made():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk")
    with suite.attach(model) as latents:
        model(**batch)
        plain = {layer: latents[layer].dense() for layer in latents.layers}
        latents.steer("layers.1", 4, 5.0)
        model(**batch)
        assert torch.equal(latents["layers.1"].dense(), plain["layers.1"])
        assert not torch.allclose(latents["layers.2"].dense(), plain["layers.2"])


@torch.no_grad()
def test_positions_that_are_left_out_are_not_edited():
    model, batch = tiny_model("llama"), texts(padding=1)
    suite = plain_suite("topk")
    plain = outputs_of(model, ["layers.0"], batch)["layers.0"]
    with suite.attach(model, skip_first=1) as latents:
        latents.steer("layers.0", 4, 5.0)
        edited = outputs_of(model, ["layers.0"], batch)["layers.0"]
    changed_BT = (edited != plain).any(-1)
    assert changed_BT.tolist() == [[False, False, True, True, True, True], [False, True, True, True, True, True]]


@torch.no_grad()
def test_generation_with_a_cache_is_steered_at_every_step():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk")
    with suite.attach(model, skip_first=0) as latents:
        latents.steer("layers.1", 4, 5.0)
        whole = model(**batch).logits
        first = model(batch["input_ids"][:, :4], use_cache=True)
        rest = model(batch["input_ids"][:, 4:], **resumed(first)).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole)


@torch.no_grad()
def test_without_the_error_reconstructions_replace_activations():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk", "all")
    with suite.attach(model, keep_error=False, skip_first=0):
        replaced = model(**batch).logits
    by_hand = edited_logits(model, batch["input_ids"], {layer: suite[layer] for layer in PARTITION.hookpoints})
    torch.testing.assert_close(replaced, by_hand, rtol=1e-4, atol=1e-4)
    with suite.attach(model, keep_error=False, skip_first=0, layers=["layers.1"]) as latents:
        latents.steer("layers.1", 4, 2.0)
        steered = model(**batch).logits

    def steer(x_BTD):
        f_BTS = suite["layers.1"].encode(x_BTD)
        f_BTS[..., 4] += 2.0
        return suite["layers.1"].decode(f_BTS)

    by_hand = edited_logits(model, batch["input_ids"], {"layers.1": steer})
    torch.testing.assert_close(steered, by_hand, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_steering_without_keeping_latents_encodes_nothing(monkeypatch):
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk")
    with suite.attach(model) as latents:
        latents.steer("layers.1", 4, 5.0)
        steered = model(**batch).logits
    attached = suite.attach(model, record=False)
    for sae in suite.saes.values():
        monkeypatch.setattr(sae, "encode_sparse", None)
    attached.steer("layers.1", 4, 5.0)
    with attached:
        assert torch.equal(model(**batch).logits, steered)
    with pytest.raises(ModelError, match="record=False"):
        attached["layers.1"]


def test_gradients_pass_an_edit():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk")
    inputs = model.get_input_embeddings()(batch["input_ids"]).requires_grad_()
    with suite.attach(model) as latents:
        latents.steer("layers.1", 4, 5.0)
        model(inputs_embeds=inputs).logits.sum().backward()
    assert inputs.grad.abs().sum() > 0
    assert not latents["layers.1"].values_BTK.requires_grad


@torch.no_grad()
def test_a_harvester_reads_what_was_edited():
    model = tiny_model("llama")
    suite = plain_suite("topk")
    rows = TokenRows(texts(rows=2, length=8)["input_ids"].numpy().astype("uint16"))
    plain = Harvester(model, rows, ["layers.1"]).read([0, 1])
    with suite.attach(model) as latents:
        latents.steer("layers.1", 4, 5.0)
        edited = Harvester(model, rows, ["layers.1"]).read([0, 1])
    assert not torch.allclose(edited, plain)


def own_forwards(model):
    """The modules whose forward pass is wrapped."""
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_after_an_error_nothing_of_it_is_left():
    model, batch = tiny_model("llama"), texts()
    suite = plain_suite("topk")
    plain = model(**batch).logits
    with pytest.raises(ZeroDivisionError), suite.attach(model) as latents:
        latents.steer("layers.1", 4, 5.0)
        assert own_forwards(model)
        raise ZeroDivisionError
    assert not own_forwards(model) and torch.equal(model(**batch).logits, plain)

    def fail(*_):
        raise ZeroDivisionError

    handle = model.model.layers[1].register_forward_pre_hook(fail)
    with suite.attach(model) as latents:
        with pytest.raises(ZeroDivisionError):
            model(**batch)
        latents["layers.0"]
        with pytest.raises(HookpointError, match=r"did not reach layers\.2"):
            latents["layers.2"]
        handle.remove()
        model(**batch)
        assert latents["layers.2"].dense().shape == (2, 6, 40)
    assert not own_forwards(model)


def test_a_forward_of_the_module_itself_comes_back():
    model, batch = tiny_model("llama"), texts()
    suite, block, calls = plain_suite("topk"), model.model.layers[1], []
    inner = block.forward
    block.forward = lambda *args, **kwargs: (calls.append(1), inner(*args, **kwargs))[1]
    own = block.forward
    with suite.attach(model):
        model(**batch)
    assert block.forward is own and len(calls) == 1


def test_an_attachment_can_be_entered_again_with_its_edits():
    model, batch = tiny_model("llama"), texts()
    attached = plain_suite("topk").attach(model)
    attached.steer("layers.1", 4, 5.0)
    with attached:
        first = model(**batch).logits
    with attached:
        assert torch.equal(model(**batch).logits, first)


def test_one_suite_at_a_time():
    model = tiny_model("llama")
    suite = plain_suite("topk")
    with suite.attach(model) as latents:
        with pytest.raises(ModelError, match="attached to this LlamaModel already"), suite.attach(model):
            pass
        with pytest.raises(ModelError, match="already"), latents:
            pass
        assert own_forwards(model)
        with suite.attach(tiny_model("llama")):
            pass
    with suite.attach(model):
        pass


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda x: x.steer("layers.9", 1, 1.0), HookpointError, "It has layers.0, layers.1, layers.2"),
        (lambda x: x["layer.1"], HookpointError, "Did you mean 'layers.1'"),
        (
            lambda x: x.steer("layers.1", 40, 1.0),
            ConfigError,
            "latent 40; the SAE of layers.1 has the latents 0 to 39",
        ),
        (lambda x: x.steer("layers.1", -1, 1.0), ConfigError, "no latent -1"),
        (lambda x: x.ablate("layers.1", 1.0), ConfigError, "no latent 1.0"),
        (lambda x: x.ablate("layers.1", True), ConfigError, "no latent True"),
        (lambda x: x.ablate("layers.1"), ConfigError, "no latent None"),
        (lambda x: x.ablate("layers.1", []), ConfigError, "No latent is named"),
        (lambda x: x.steer("layers.1", 1), ConfigError, "strength = None is no finite number"),
        (lambda x: x.steer("layers.1", 1, float("nan")), ConfigError, "strength = nan"),
        (lambda x: x.clamp("layers.1", 1, "2"), ConfigError, "value = '2'"),
        (lambda x: x.steer(latent=1, strength=1.0), ConfigError, "either a layer or a group"),
        (lambda x: x.steer("layers.1", 1, 1.0, group="layers.1"), ConfigError, "either a layer or a group"),
        (lambda x: x.steer(group="layers.7", latent=1, strength=1.0), PartitionError, "Known are layers.0"),
        (lambda x: x.steer(group="layers.2", latent=1, strength=1.0), PartitionError, "a layer of group 'layers.0.2'"),
        (lambda x: x.ablate(group="layers.0+2", latent=40), ConfigError, "layers.0, layers.2 has the latents 0 to 39"),
        (lambda x: x["layers.1"], ModelError, "No forward pass"),
        (lambda x: x.through_layers("layers.0+2", 99), ConfigError, "no latent 99"),
    ],
)
def test_what_cannot_be_edited_is_refused(edit, error, message):
    model, batch = tiny_model("llama"), texts()
    plain = model(**batch).logits
    with plain_suite("topk").attach(model) as latents:
        with pytest.raises(error, match=message):
            edit(latents)
        assert torch.equal(model(**batch).logits, plain)


def test_layers_that_are_not_attached_are_refused():
    model = tiny_model("llama")
    suite = plain_suite("topk")
    latents = suite.attach(model, layers="layers.1")
    assert latents.layers == ("layers.1",)
    with pytest.raises(HookpointError, match=r"'layers.0' is not attached; attached are layers.1"):
        latents.steer("layers.0", 1, 1.0)
    with pytest.raises(HookpointError, match="not attached"):
        latents.steer(group="layers.0+2", latent=1, strength=1.0)
    for wanted in (["layers.8"], []):
        with pytest.raises(HookpointError, match=r"the suite has the layers layers\.0, layers\.1"):
            suite.attach(model, layers=wanted)


class Pooling(nn.Module):
    """A module that gives one vector per row, as no block does."""

    def forward(self, x):
        return x.mean(1)


def test_models_that_do_not_fit_are_refused():
    suite = plain_suite("topk")
    with pytest.raises(ModelError, match="got str"):
        suite.attach("gpt2")
    with pytest.raises(ModelError, match=r"width 16; the model's are 32 wide"):
        suite.attach(tiny_model("llama", d_model=32))
    with pytest.raises(HookpointError, match=r"GPT2LMHeadModel has no layers.0, layers.1, layers.2.*h.0 to h.2"):
        suite.attach(tiny_model("gpt2"))
    with pytest.raises(HookpointError, match=r"has no layers.2.*layers.0 to layers.1"):
        suite.attach(tiny_model("llama", layers=2))
    with pytest.raises(ConfigError, match="skip_first = -1"):
        suite.attach(tiny_model("llama"), skip_first=-1)
    plain = nn.ModuleDict({"layers": nn.ModuleList([Pooling(), nn.Identity(), nn.Identity()])})
    plain.forward = lambda x: plain["layers"][0](x)
    with suite.attach(plain, layers=["layers.0"]), pytest.raises(ModelError, match=r"gives \(2, 16\)"):
        plain(torch.zeros(2, 3, 16))
    plain["layers"][0] = nn.Identity()
    with suite.attach(plain, layers=["layers.0"]), pytest.raises(ModelError, match="are 8 wide"):
        plain(torch.zeros(2, 3, 8))
    with suite.attach(plain, layers=["layers.0"], skip_ids=[3]), pytest.raises(ModelError, match="token ids"):
        plain(torch.zeros(2, 3, 16))


def test_saes_go_to_where_their_layer_is():
    suite = plain_suite("topk", "all")
    latents = suite.attach(tiny_model("llama"))
    site = latents._sites["layers.2"]
    there = site.on(torch.device("meta"))
    assert {part.device.type for part in (there.sae.W_dec, there.maps.rotation_MDD, there.center_D)} == {"meta"}
    assert site.on(torch.device("meta")) is there
    assert suite["layers.2"].sae.W_dec.device.type == "cpu"
