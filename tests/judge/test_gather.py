"""The windows of a run's latents are what the SAEs say: values, halves, order, silence."""

import numpy as np
import pytest
import torch

from groupsae.errors import ConfigError
from groupsae.interpretability.judge import gather
from groupsae.interpretability.judge.grid import TokenTexts
from groupsae.interpretability.judge.settings import Sampling
from groupsae.recipes.context import RunContext
from groupsae.recipes.eval_inputs import eval_inputs
from groupsae.records import RunDirectory


class Ids:
    """A tokenizer whose texts are the tokens' numbers."""

    def convert_ids_to_tokens(self, token):
        return str(token)

    def decode(self, ids):
        return str(ids[0])


@pytest.fixture(scope="module")
def inputs(trained):
    return eval_inputs(RunContext(RunDirectory.open(trained)))


@pytest.fixture(scope="module")
def found(inputs):
    """The latents of all layers in windows of 8 tokens, two to a row."""
    rows = inputs.ctx.rows.held_out
    sampling = Sampling(latents=4, window_tokens=8, explained=6, scored=5)
    return gather.gather_windows(inputs.suites, inputs.source, rows.ids_RT, Ids(), sampling).latents


def places_of(ids_RT, window):
    """The rows and starts at which a window's tokens stand."""
    wanted = [int(token) for token in window.tokens]
    return [
        (row, start)
        for start in range(0, ids_RT.shape[1], len(wanted))
        for row in np.flatnonzero((ids_RT[:, start : start + len(wanted)] == wanted).all(1))
    ]


def values_at(inputs, latent, row, start, width):
    """The latent's values in a window, computed from the model; 0 at positions that are left out."""
    source = inputs.source
    x_LBTD, out_BT = source.read_positions([int(row)])
    bound = inputs.suites[latent.suite][latent.hookpoint]
    values_T = bound.encode(x_LBTD[source.hookpoints.index(latent.hookpoint), 0].float())[:, latent.latent]
    return torch.where(out_BT[0], 0.0, values_T)[start : start + width].tolist()


def test_values_are_those_of_the_sae_where_the_window_stands(inputs, found):
    ids_RT = inputs.ctx.rows.held_out.ids_RT
    for one in found[::5]:
        for window in (*one.explained[:2], *one.active[:2]):
            at = [values_at(inputs, one, *place, 8) for place in places_of(ids_RT, window)]
            assert any(values == pytest.approx(window.values, abs=1e-5) for values in at)


def test_silent_windows_are_silent(inputs, found):
    ids_RT = inputs.ctx.rows.held_out.ids_RT
    for one in found[::5]:
        for window in one.inactive[:3]:
            assert any(not any(values_at(inputs, one, *place, 8)) for place in places_of(ids_RT, window))


def test_an_explanation_is_scored_on_other_documents(inputs, found):
    rows = inputs.ctx.rows.held_out
    documents = rows.document_of_row()
    halves = {True: set(), False: set()}
    for one in found:
        for explaining, windows in ((True, one.explained + one.unrelated), (False, one.active + one.inactive)):
            for window in windows:
                at = {documents[row] for row, _ in places_of(rows.ids_RT, window)}
                if len(at) == 1:  # elsewhere the same tokens stand in several documents
                    halves[explaining] |= at
    assert halves[True] and halves[False] and not halves[True] & halves[False]


def test_each_latent_has_its_windows_in_order(found):
    assert len(found) == 2 * 3 * 4
    for one in found:
        assert all(window.fires for window in (*one.explained, *one.active))
        strongest = [window.peak for window in one.explained]
        assert strongest == sorted(strongest, reverse=True) and 5 <= len(strongest) <= 6
        weakest = [window.peak for window in one.active]
        assert weakest == sorted(weakest) and len(weakest) == len(one.inactive) == 5
        assert [w.values for w in one.inactive] == [w.values for w in one.active]
        assert [w.values for w in one.unrelated] == [w.values for w in one.explained]
        assert len({w.tokens for w in one.explained + one.active}) == len(one.explained + one.active)


def test_a_group_has_other_windows_at_each_of_its_layers(inputs, found):
    group = max(inputs.suites["groups"].partition.groups, key=len)
    assert len(group) > 1
    shown = {layer: {w for one in found if (one.suite, one.hookpoint) == ("groups", layer) for w in one.active}
             for layer in group}  # fmt: skip
    assert all(shown.values()) and not set.intersection(*shown.values())


def test_the_seed_decides_all_choices(inputs, found):
    rows = inputs.ctx.rows.held_out
    again, other = (
        gather.gather_windows(
            inputs.suites,
            inputs.source,
            rows.ids_RT,
            Ids(),
            Sampling(4, window_tokens=8, explained=6, scored=5, seed=s),
        ).latents
        for s in (0, 1)
    )
    assert again == found and {one.latent for one in other} != {one.latent for one in found}


def test_a_piece_that_starts_a_word_keeps_its_space():
    class Pieces(Ids):
        def convert_ids_to_tokens(self, token):
            return "▁the" if token else "ing"

        def decode(self, ids):
            return "the" if ids[0] else "ing"

    assert TokenTexts(Pieces()).of([1, 0, 1]) == (" the", "ing", " the")


def test_nothing_can_be_sampled_without_windows():
    with pytest.raises(ConfigError, match="window_tokens"):
        Sampling(window_tokens=0)
