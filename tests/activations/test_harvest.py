from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny import BLOCKS_NAME, CONTEXT_LENGTH, FAMILIES, tiny_model, tiny_rows
from torch import nn

from groupsae.activations import harvest
from groupsae.activations.positions import NO_OUTLIERS
from groupsae.activations.shuffle import BufferLayout, ShuffledStream
from groupsae.activations.source import stream
from groupsae.errors import FitError, HookpointError, ModelError, NumericalError, TextError
from groupsae.model_structure import (
    base_model,
    find_blocks,
    find_hookpoints,
    first_tensor,
    residual_stream,
    with_first_tensor,
)
from groupsae.text.tokens import TokenRows

Harvester = partial(harvest.Harvester, outliers=NO_OUTLIERS)
"""Outliers have tests of their own (test_positions.py)."""


def calls(modules):
    """A counter of the calls of each module, by its place in `modules`."""
    counter = Counter()
    for index, module in enumerate(modules):
        module.register_forward_hook(lambda *_, index=index: counter.update([index]))
    return counter


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_the_hidden_states_of_every_block_but_the_last(family):
    model, rows = tiny_model(family, layers=4), tiny_rows()
    x_LND = Harvester(model, rows, residual_stream(model)).read([2, 0, 5])
    hidden = model(rows[[2, 0, 5]], output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(x_LND[layer], hidden[layer + 1].flatten(0, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_is_read_before_the_final_norm(family):
    model, rows = tiny_model(family), tiny_rows()
    seen = []
    find_blocks(model)[1][-1].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output if torch.is_tensor(output) else output[0])
    )
    hidden = model(rows[[1, 3]], output_hidden_states=True).hidden_states
    x_LND = Harvester(model, rows, residual_stream(model)).read([1, 3])
    assert torch.equal(x_LND[-1], seen[0].flatten(0, 1))
    assert not torch.allclose(x_LND[-1], hidden[-1].flatten(0, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_places_inside_blocks_are_read(family):
    model, rows = tiny_model(family, layers=2), tiny_rows()
    hookpoint = f"{BLOCKS_NAME[family]}.1.mlp"
    seen = []
    find_blocks(model)[1][1].mlp.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(rows[[4]])
    x_LND = Harvester(model, rows, [hookpoint]).read([4])
    assert torch.equal(x_LND[0], seen[0].flatten(0, 1))


def test_hookpoints_are_in_natural_order_whatever_the_order_given():
    model, rows = tiny_model(), tiny_rows()
    sorted_ = Harvester(model, rows, ["layers.0", "layers.1"])
    mixed = Harvester(model, rows, ["layers.1", "layers.0"])
    assert mixed.hookpoints == sorted_.hookpoints == ("layers.0", "layers.1")
    assert torch.equal(mixed.read([0]), sorted_.read([0]))


def test_activations_of_a_row_do_not_depend_on_the_rows_beside_it():
    model, rows = tiny_model(), tiny_rows()
    source = Harvester(model, rows, residual_stream(model))
    together = source.read([3, 7]).unflatten(1, (2, -1))
    torch.testing.assert_close(together[:, 1], source.read([7]))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_forward_per_read_feeds_every_hookpoint_and_stops_at_the_deepest(family):
    model, rows = tiny_model(family, layers=4), tiny_rows()
    source = Harvester(model, rows, residual_stream(model)[:2])
    count = calls([*find_blocks(model)[1], model.get_output_embeddings()])
    for _ in range(3):
        source.read([0, 1])
    assert count == {0: 3, 1: 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_not_run_even_for_the_last_block(family):
    model, rows = tiny_model(family), tiny_rows()
    count = calls([model.get_output_embeddings(), base_model(model)])
    Harvester(model, rows, residual_stream(model)).read([0])
    assert count[0] == 0


def test_the_model_is_left_without_hooks():
    model, rows = tiny_model(), tiny_rows()
    Harvester(model, rows, residual_stream(model)).read([0])
    assert not any(module._forward_hooks for module in model.modules())


def test_special_positions_are_left_out():
    model = tiny_model()
    ids = np.array([[5, 256, 7, 256], [256, 256, 256, 9]])
    rows = TokenRows(ids, special_ids=(256,))
    everything = Harvester(model, rows, ["layers.0"], skip_special=False).read([0, 1])
    kept = Harvester(model, rows, ["layers.0"]).read([0, 1])
    assert everything.shape[1] == 8
    assert torch.equal(kept, everything[:, [0, 2, 7]])


def test_the_held_out_rows_are_read_by_the_same_rules():
    model = tiny_model()
    rows = tiny_rows(special_ids=(65,))
    source = Harvester(model, rows, ["layers.1"], batch_rows=3, skip_special=False)
    held_out = source.held_out()
    assert (held_out.hookpoints, held_out.batch_rows, held_out.skip_special) == (("layers.1",), 3, False)
    expected = Harvester(model, rows.held_out, ["layers.1"], skip_special=False).read([0])
    assert torch.equal(held_out.read([0]), expected)


def test_a_hookpoint_that_the_model_lacks_is_an_error():
    with pytest.raises(HookpointError, match=r"'layers\.9' is no module of GPTNeoXForCausalLM"):
        Harvester(tiny_model(), tiny_rows(), ["layers.0", "layers.9"])


def test_a_module_that_is_never_called_is_an_error_before_anything_is_read():
    with pytest.raises(HookpointError, match="does not reach layers;"):
        Harvester(tiny_model(), tiny_rows(), ["layers", "layers.0"])


def test_places_of_different_width_are_an_error_that_gives_the_widths():
    model = tiny_model()
    hookpoints = find_hookpoints(model, ["layers.0", "layers.0.mlp.dense_h_to_4h"])
    with pytest.raises(HookpointError, match=r"one width; found .*'layers\.0': 16.*dense_h_to_4h': 32"):
        Harvester(model, tiny_rows(), hookpoints)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_an_error_that_names_hookpoint_and_row(value):
    model, rows = tiny_model(), tiny_rows()
    source = Harvester(model, rows, residual_stream(model))

    def spoil(_module, _inputs, output):
        hidden = first_tensor(output).clone()
        hidden[1, 3, 5] = value
        return with_first_tensor(output, hidden)

    find_blocks(model)[1][1].register_forward_hook(spoil)
    with pytest.raises(NumericalError, match=r"Activations at layers\.1 hold NaN or infinity in row 2\."):
        source.read([4, 2, 9])


def test_rows_longer_than_the_model_reads_are_an_error():
    with pytest.raises(TextError, match=f"{CONTEXT_LENGTH + 1} tokens.*at most {CONTEXT_LENGTH}"):
        Harvester(tiny_model("gpt2"), tiny_rows(length=CONTEXT_LENGTH + 1), ["h.0"])


def test_token_ids_that_the_model_does_not_know_are_an_error():
    rows = tiny_rows()
    strange = replace(rows, ids_RT=np.where(rows.ids_RT == rows.ids_RT[0, 0], 300, rows.ids_RT))
    with pytest.raises(TextError, match=r"token 300.*300 tokens"):
        Harvester(tiny_model(), strange, ["layers.0"])


class Plain(nn.Module):
    """A model that is not Hugging Face's: no config, no base model, no cache."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(300, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_a_plain_module_can_be_read():
    model = Plain().eval()
    rows = tiny_rows()
    x_LND = Harvester(model, rows, residual_stream(model)).read([1])
    assert torch.equal(x_LND[1], model(rows[[1]])[0])


def test_out_of_memory_fewer_rows_are_read_at_once_and_give_the_same(monkeypatch):
    model, rows = tiny_model(), tiny_rows()
    expected = Harvester(model, rows, residual_stream(model)).read(list(range(7)))
    harvester, sizes = Harvester(model, rows, residual_stream(model)), []
    forward = harvester._forward

    def limited(ids_BT):
        sizes.append(len(ids_BT))
        if len(ids_BT) > 2:
            raise torch.OutOfMemoryError("not really")
        return forward(ids_BT)

    monkeypatch.setattr(harvester, "_forward", limited)
    torch.testing.assert_close(harvester.read(list(range(7))), expected)
    assert sizes == [7, 4, 2, 2, 2, 1]
    monkeypatch.setattr(harvester, "_forward", lambda ids_BT: limited(ids_BT.repeat(3, 1)))
    with pytest.raises(FitError, match="does not hold one row"):
        harvester.read([1, 2])


def test_positions_that_are_not_numbers_can_be_left_out_and_are_counted(monkeypatch):
    model, rows = tiny_model(), tiny_rows(special_ids=(int(tiny_rows().ids_RT[0, 1]),))
    harvester = Harvester(model, rows, residual_stream(model), on_nan="mask")
    whole, forward = harvester.read([0]), harvester._forward

    def broken(ids_BT):
        x_LBTD = forward(ids_BT)
        x_LBTD[1][0, 3, 2] = torch.nan
        x_LBTD[2][0, 3, 2] = torch.inf
        x_LBTD[0][0, 6, 0] = -torch.inf
        x_LBTD[0][0, 1, 0] = torch.nan  # a special token, left out anyway
        return x_LBTD

    monkeypatch.setattr(harvester, "_forward", broken)
    found = harvester.read([0])
    kept = [
        place
        for place, position in enumerate(torch.where(rows.keep(rows[[0]])[0])[0].tolist())
        if position not in (3, 6)
    ]
    assert torch.equal(found, whole[:, kept])
    assert harvester.num_masked == 2


def test_positions_are_counted_once_where_memory_runs_out_after_some_of_them_were_read(monkeypatch):
    model, rows = tiny_model(), tiny_rows()
    harvester, tokens = Harvester(model, rows, residual_stream(model), on_nan="mask"), []
    forward = harvester._forward

    def broken(ids_BT):
        tokens.append(len(ids_BT))
        if tokens == [4, 2, 2]:
            raise torch.OutOfMemoryError("not really")
        if len(ids_BT) > 2:
            raise torch.OutOfMemoryError("not really")
        x_LBTD = forward(ids_BT)
        x_LBTD[0][:, 3] = torch.nan
        return x_LBTD

    monkeypatch.setattr(harvester, "_forward", broken)
    assert harvester.read(range(4)).shape[1] == 4 * (rows.context_length - 1)
    assert tokens == [4, 2, 2, 1, 1, 1, 1] and harvester.num_masked == 4


def test_where_positions_are_masked_the_rest_stays_the_same_at_fewer_hookpoints(monkeypatch):
    """Otherwise the tokens of a run would change once a group is finished, and with a resume."""
    model, rows = tiny_model(), tiny_rows()
    harvester = Harvester(model, rows, residual_stream(model), on_nan="mask")
    forward = harvest.Harvester._forward

    def broken(self, ids_BT):
        x_LBTD = forward(self, ids_BT)
        x_LBTD[-1][0, 3] = torch.nan
        return x_LBTD

    monkeypatch.setattr(harvest.Harvester, "_forward", broken)
    assert torch.equal(harvester.narrowed(harvester.hookpoints[:1]).read([0])[0], harvester.read([0])[0])


def test_a_model_in_training_mode_is_refused():
    model = tiny_model().train()
    with pytest.raises(ModelError, match=r"training mode; call model\.eval\(\)"):
        Harvester(model, tiny_rows(), residual_stream(model))


def test_no_rows_give_no_activations_and_a_source_without_rows_is_an_error():
    model = tiny_model()
    assert Harvester(model, tiny_rows(), residual_stream(model)).read([]).shape == (3, 0, 16)
    empty = Harvester(model, tiny_rows(rows=0), residual_stream(model))
    for read in (
        lambda: next(stream(empty, 10, 0)),
        lambda: next(ShuffledStream(empty, 9, BufferLayout(empty.hookpoints), 3, 9, 0).batches()),
    ):
        with pytest.raises(TextError, match="no rows"):
            read()
