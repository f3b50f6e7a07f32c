"""Published distances and groups, for the tests of grouping."""

import json
from pathlib import Path

import numpy as np
import pytest
from grouping_cases import as_distances

REFERENCE = Path(__file__).parents[1] / "reference"


def read_reference(name):
    return json.loads((REFERENCE / name).read_text())


@pytest.fixture
def groupings():
    return read_reference("groupings.json")


@pytest.fixture
def published():
    """A function from a model's name to its published distances, the last layer left out."""
    files = {
        "pythia-160m": "dist_pythia-160m_angular_SURROGATE.json",
        "pythia-1b": "dist_pythia-1b_angular_10M_reconstructed.json",
    }

    def load(model):
        rows = read_reference(files[model])["lower_triangle_rows"][:-1]
        matrix = np.zeros((len(rows), len(rows)))
        for p, row in enumerate(rows):
            matrix[p, : len(row)] = row
        return as_distances(matrix + matrix.T)

    return load
