"""A hub id as a source: what is downloaded, and what is said when it cannot be."""

import types

import huggingface_hub
import pytest
from huggingface_hub import errors
from scope_cases import gemma_scope

from groupsae import import_suite
from groupsae.errors import RunError, StorageError
from groupsae.interop import hub_source
from groupsae.interop.hub_source import is_hub_id, snapshot

FILES = {
    "layer_3/width_16k/average_l0_71/params.npz": 100,
    "layer_3/width_16k/average_l0_13/params.npz": 100,
    "README.md": 5,
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository, whose files lie below `tmp_path`; `asked` are the files that were downloaded."""
    asked = []

    class Api:
        def repo_info(self, name, files_metadata):
            siblings = [types.SimpleNamespace(rfilename=file, size=size) for file, size in FILES.items()]
            return types.SimpleNamespace(siblings=siblings)

    def download(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(tmp_path / name.split("/")[1])

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize(
    ("source", "is_one"),
    [("user/name", True), ("user/name/layer_3", True), ("name", False), ("/abs/name", False), ("../a/b", False)],
)
def test_a_hub_id_has_an_owner_and_a_name(source, is_one):
    assert is_hub_id(source) is is_one


def test_a_suite_is_imported_from_the_hub_with_only_what_is_asked_for(hub, tmp_path):
    gemma_scope(tmp_path)
    suite = import_suite("google/gemma-scope-2b-pt-res", only=("average_l0_71",))
    assert suite.partition.hookpoints == ("layers.3",)
    assert hub == ["layer_3/width_16k/average_l0_71/params.npz", "README.md"]


def test_a_folder_of_a_repository_is_downloaded_alone(hub, tmp_path):
    found = snapshot("google/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_13")
    assert hub == ["layer_3/width_16k/average_l0_13/params.npz"]
    assert found == tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_13"
    with pytest.raises(RunError, match="holds no files below layer_9"):
        snapshot("google/gemma-scope-2b-pt-res/layer_9")


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_downloaded(hub, monkeypatch):
    monkeypatch.setattr(hub_source.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=50))
    with pytest.raises(StorageError, match=r"has 0.0 GB to download, and .* GB free"):
        snapshot("google/gemma-scope-2b-pt-res")
    assert not hub


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.RepositoryNotFoundError, "there is no such repository, or it is private"),
        (errors.GatedRepoError, "it is gated: accept its terms"),
        (errors.LocalEntryNotFoundError, "the hub is out of reach"),
    ],
)
def test_a_repository_that_cannot_be_had_is_named_with_the_remedy(error, said, hub, monkeypatch):
    def refuse(*_, **__):
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(RunError, match=said):
        snapshot("google/gemma-scope-2b-pt-res")


def test_without_a_network_it_is_said_that_the_hub_is_out_of_reach():
    with pytest.raises(RunError, match=r"'user/name' cannot be downloaded: the hub is out of reach"):
        import_suite("user/name")
