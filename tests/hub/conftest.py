"""A hub on this machine in place of the real one, and an empty cache."""

import huggingface_hub
import pytest
from hub_server import TOKEN, running


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub that this process talks to, with a token that may write."""
    constants = huggingface_hub.constants
    with running() as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served
