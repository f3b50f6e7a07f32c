"""A suite on the hub and back: what is written, what is downloaded, what others read of it."""

import json

import pytest

from groupsae import Suite


@pytest.fixture
def pushed(done, hub, call):
    """A hub with the release of the finished run."""
    code, out, err = call("push", done, "someone/tiny", "--license", "mit", "--json")
    assert code == 0, err
    return json.loads(out)


def test_first(done, hub, call, pushed):
    print(hub.repositories["someone/tiny"].files["README.md"].decode())
    print(pushed)
    s = Suite.load("someone/tiny")
    print(hub.fetched())
