"""What is read of a module is what the module returned, in every family and at every kind of hookpoint."""

import numpy as np
import pytest
import torch
from families import BLOCKS, FAMILIES, VOCAB, copies_of_outputs, family_model
from torch import nn

from groupsae.activations.harvest import Harvester
from groupsae.activations.outputs import OutputReader
from groupsae.errors import HookpointError
from groupsae.evaluation.splice import CleanPass, edited_logits
from groupsae.model_structure import base_model, find_blocks
from groupsae.text.tokens import TokenRows

ROWS = TokenRows(np.random.default_rng(0).integers(3, VOCAB, (4, 8)).astype(np.uint16))
IDS_BT = ROWS[[0, 1, 2, 3]]


def hookpoints_of(model):
    """Every module directly inside a block, by its name inside the block, and the blocks themselves."""
    name, blocks = find_blocks(model)
    kinds = {f".{child}" for child, _ in blocks[0].named_children()}
    kinds |= {f".{child}" for child, module in blocks[0].named_modules() if "ttention" in type(module).__name__}
    return {kind or "block": [f"{name}.{i}{kind}" for i in range(BLOCKS)] for kind in ("", *sorted(kinds))}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_equals_a_copy_taken_while_the_module_returns(family):
    model = family_model(family)
    for names in hookpoints_of(model).values():
        true = copies_of_outputs(model, base_model(model), names, IDS_BT)
        if len(true) < len(names) or any(x.ndim != 3 for x in true.values()):
            continue  # a module that this forward pass does not use, or that gives something else
        if any(name.endswith("resid_dropout") for name in names) and family == "phi":
            with pytest.raises(HookpointError, match=r"resid_dropout.*runs more than once"):
                Harvester(model, ROWS, names)
            continue
        read = Harvester(model, ROWS, names, skip_special=False).read([0, 1, 2, 3])
        clean = CleanPass(model, IDS_BT, names)
        for index, name in enumerate(names):
            torch.testing.assert_close(read[index], true[name].flatten(0, 1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(clean.hidden[name], true[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_splices_give_what_a_whole_forward_pass_with_a_hook_gives(family):
    model = family_model(family)
    kinds = hookpoints_of(model)
    for kind in {"block", ".mlp"} & kinds.keys():
        clean = CleanPass(model, IDS_BT, kinds[kind])
        for _ in range(2):  # the first splice must leave what the second needs
            for name in reversed(kinds[kind]):
                x_BTD = clean.hidden[name]
                same = clean.spliced(name, x_BTD)
                torch.testing.assert_close(same, clean.logits_BTV, rtol=1e-4, atol=1e-4)
                constant = clean.spliced_together({name: lambda x: x.mean((0, 1)).expand_as(x)})
                whole = edited_logits(model, IDS_BT, {name: lambda x, kept=x_BTD: kept.mean((0, 1)).expand_as(x)})
                torch.testing.assert_close(constant, whole, rtol=1e-4, atol=1e-4)


class InPlace(nn.Module):
    """A model whose blocks add to the stream in place, and return it."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, x):
            x += self.linear(x)
            return x

    def __init__(self, width=8):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(self.Block(width) for _ in range(3))
        self.head = nn.Linear(width, VOCAB)

    def forward(self, ids_BT):
        x = self.embed(ids_BT)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def in_place():
    torch.manual_seed(0)
    return InPlace().eval().requires_grad_(False)


def streams(model):
    x, found = model.embed(IDS_BT), []
    for block in model.blocks:
        x = x + block.linear(x)
        found.append(x)
    return found


NAMES = ["blocks.0", "blocks.1", "blocks.2"]


def test_blocks_that_write_into_their_input_are_read_one_by_one(in_place):
    source = Harvester(in_place, ROWS, NAMES, skip_special=False)
    for reader in (source, source.narrowed(("blocks.0", "blocks.1"))):
        for read, true in zip(reader.read([0, 1, 2, 3]), streams(in_place), strict=False):
            torch.testing.assert_close(read, true.flatten(0, 1))


def test_they_are_read_in_inference_mode_too(in_place):
    with torch.inference_mode():
        read = Harvester(in_place, ROWS, NAMES, skip_special=False).read([0, 1, 2, 3])
    for one, true in zip(read, streams(in_place), strict=True):
        torch.testing.assert_close(one, true.flatten(0, 1))


def test_splices_between_them_leave_the_clean_pass_as_it_was(in_place):
    clean = CleanPass(in_place, IDS_BT, NAMES)
    for _ in range(2):
        for index, name in enumerate(NAMES):
            torch.testing.assert_close(clean.hidden[name], streams(in_place)[index])
            torch.testing.assert_close(clean.spliced(name, clean.hidden[name]), clean.logits_BTV)
            zero = clean.spliced_together({name: torch.zeros_like})
            torch.testing.assert_close(zero, edited_logits(in_place, IDS_BT, {name: torch.zeros_like}))
            mean = {name: lambda x: x[0, 0].clone().expand_as(x)}
            torch.testing.assert_close(clean.spliced_together(mean), edited_logits(in_place, IDS_BT, mean))


def test_nothing_is_copied_where_nothing_is_written():
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    returned = []
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: returned.append(output))
    held, result = OutputReader(dict(enumerate(layers))).run(lambda: layers[1](layers[0](torch.ones(1, 4))))
    assert all(one is other for one, other in zip(held.values(), returned, strict=True))
    assert result is returned[-1]


def test_the_pass_is_repeated_once_and_then_copies_are_made_at_once(in_place):
    calls = []
    in_place.embed.register_forward_hook(lambda *_: calls.append(1))
    reader = OutputReader(dict(enumerate(in_place.blocks)))
    reader.run(lambda: in_place(IDS_BT))
    assert len(calls) == 2 and reader.written == {0, 1}
    reader.run(lambda: in_place(IDS_BT))
    assert len(calls) == 3
