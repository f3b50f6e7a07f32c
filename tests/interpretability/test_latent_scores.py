"""Scores that need no judge say what they promise on latents whose meaning is known."""

import numpy as np
import torch
from latent_cases import firings_of
from torch import nn

from groupsae.interpretability.auroc import auroc_rows, sample_rows
from groupsae.interpretability.directions import Unembedding
from groupsae.interpretability.following import following_scores
from groupsae.interpretability.intruders import intruder_scores, window_vectors
from groupsae.interpretability.selection import WindowRule, choose_windows
from groupsae.interpretability.surface import Surface, surface_scores

ROWS, LENGTH, VOCABULARY = 40, 64, 30


def text(seed=0):
    """Rows of random tokens, all of whose positions count."""
    ids_RT = np.random.default_rng(seed).integers(0, VOCABULARY, (ROWS, LENGTH))
    return ids_RT, np.ones((ROWS, LENGTH), dtype=bool)


def known_latents(ids_RT):
    """Latents that fire: on token 3, after token 5, early in a row, at random, and hardly ever."""
    before_RT = np.roll(ids_RT, 1, 1)
    before_RT[:, 0] = -1
    fires = [ids_RT == 3, before_RT == 5, np.arange(LENGTH)[None] < np.full((ROWS, 1), 4)]
    fires += [np.random.default_rng(5).random(ids_RT.shape) < 0.05, (ids_RT == 3) & (np.arange(ROWS)[:, None] == 1)]
    return np.stack(fires).reshape(len(fires), -1).astype(float)


def test_the_surface_tells_where_latents_fire():
    ids_RT, kept_RT = text()
    surface = Surface.of(ids_RT, kept_RT, np.arange(ROWS))
    token, everything = surface_scores(firings_of(known_latents(ids_RT)), surface, np.random.default_rng(0))
    assert token[0] == 1 and everything[0] > 0.99
    assert 0.3 < token[1] < 0.7 and everything[1] > 0.99  # only the context tells
    assert everything[2] > 0.95
    assert 0.3 < token[3] < 0.7 and 0.3 < everything[3] < 0.7
    assert np.isnan(token[4]) and np.isnan(everything[4])


def test_documents_are_on_one_side_only():
    ids_RT, kept_RT = text()
    kept_RT[0] = False
    surface = Surface.of(ids_RT, kept_RT, np.arange(ROWS) // 4)
    fits, tries = (part.reshape(ROWS, LENGTH) for part in (surface.fits_N, surface.tries_N))
    assert ((fits | tries) == kept_RT).all() and not (fits & tries).any()
    assert fits.any(1)[1:].reshape(-1).tolist() == [(row // 4) % 2 == 0 for row in range(1, ROWS)]
    alone = Surface.of(ids_RT, kept_RT, np.zeros(ROWS, dtype=int))
    assert alone.fits_N.any() and alone.tries_N.any()


def test_auroc_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(3)
    score_E, positives = random.integers(0, 6, 40).astype(float), 15
    pairs = [(a > b) + 0.5 * (a == b) for a in score_E[:positives] for b in score_E[positives:]]
    high_SP = np.stack([np.append(score_E[:positives], np.nan), np.full(positives + 1, np.nan)])
    low_SX = np.stack([np.append(score_E[positives:], np.nan)] * 2)
    found = auroc_rows(high_SP, low_SX)
    assert np.isclose(found[0], np.mean(pairs)) and np.isnan(found[1])


def test_samples_are_of_usable_firings_of_the_latent():
    latent_M, usable_M = np.repeat([0, 1, 3], [5, 3, 9]), np.ones(17, dtype=bool)
    usable_M[[0, 1, 16]] = False
    place_SP = sample_rows(latent_M, usable_M, 4, 4, np.random.default_rng(0))
    assert (place_SP >= 0).sum(1).tolist() == [3, 3, 0, 4]
    for latent, places in enumerate(place_SP):
        known = places[places >= 0]
        assert (latent_M[known] == latent).all() and usable_M[known].all() and len(set(known)) == len(known)


def test_an_intruder_stands_out_where_windows_have_something_in_common():
    ids_RT, kept_RT = text()
    one_token = np.stack([ids_RT == token for token in range(8)]).reshape(8, -1)
    anywhere = np.random.default_rng(4).random((8, ids_RT.size)) < 0.05
    embedding_VD = torch.eye(VOCABULARY)
    scores = []
    for value_SN in (one_token, anywhere):
        windows = choose_windows(
            firings_of(value_SN.astype(float)), kept_RT, WindowRule(8, 6, 4, 2, 0), np.random.default_rng(0)
        )
        vectors = window_vectors(windows, ids_RT, embedding_VD, torch.zeros(VOCABULARY))
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)))
        scores.append(intruder_scores(windows, vectors, 8, np.random.default_rng(1)))
    assert (scores[0] == 1).all()
    assert 0.05 < scores[1].mean() < 0.45


def test_too_few_windows_give_no_score():
    ids_RT, kept_RT = text()
    value_SN = np.zeros((3, ids_RT.size))
    value_SN[0, :3], value_SN[1] = 1, 1
    windows = choose_windows(firings_of(value_SN), kept_RT, WindowRule(8, 6, 4, 2, 0), np.random.default_rng(0))
    vectors = window_vectors(windows, ids_RT, torch.eye(VOCABULARY), torch.zeros(VOCABULARY))
    assert np.isnan(intruder_scores(windows, vectors, 3, np.random.default_rng(1))).all()


def test_promoted_tokens_are_compared_with_what_follows():
    ids_RT, kept_RT = text()
    value_SN = np.stack([np.roll(ids_RT, -1, 1) == 7, ids_RT == 2, ids_RT == 2]).reshape(3, -1).astype(float)
    value_SN[2, 40:] = 0  # fires too rarely
    unembedding = Unembedding(torch.eye(VOCABULARY), None, None)
    direction_SD = torch.eye(VOCABULARY)[[7, 11, 7]]
    found = following_scores(firings_of(value_SN), direction_SD, unembedding, ids_RT, kept_RT, np.random.default_rng(0))
    assert found[0] > 0.95 and 0.4 < found[1] < 0.6 and np.isnan(found[2])


def test_no_token_follows_where_none_counts():
    ids_RT, kept_RT = text()
    unembedding = Unembedding(torch.eye(VOCABULARY), nn.LayerNorm(VOCABULARY), "norm")
    value_SN = np.ones((1, ids_RT.size))
    found = following_scores(
        firings_of(value_SN), torch.eye(VOCABULARY)[:1], unembedding, ids_RT, kept_RT & False, np.random.default_rng(0)
    )
    assert np.isnan(found).all()
