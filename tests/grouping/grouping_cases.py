"""Small matrices and sources with known activations, for the tests of grouping."""

import numpy as np
import torch

from groupsae.grouping.distances import Distances


def as_distances(matrix):
    """Distances between layers.0, layers.1, ... with this matrix."""
    names = tuple(f"layers.{layer}" for layer in range(len(matrix)))
    return Distances(names, np.asarray(matrix), "angular", 1000)


class FixedSource:
    """Activations that are given: x_LND, each row of tokens one row of the source."""

    def __init__(self, x_LND, row_tokens=10, batch_rows=4):
        self._x_LND = x_LND
        self.hookpoints = tuple(f"layers.{layer}" for layer in range(len(x_LND)))
        self.d_model, self.row_tokens, self.batch_rows = x_LND.shape[2], row_tokens, batch_rows
        self.num_rows = x_LND.shape[1] // row_tokens
        self.device, self.num_masked = x_LND.device, 0

    def read(self, rows):
        picked = [self._x_LND[:, row * self.row_tokens : (row + 1) * self.row_tokens] for row in rows]
        return torch.cat(picked, dim=1)
