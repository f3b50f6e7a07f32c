"""A suite on the hub and back: what is written, what is downloaded, what others read of it."""

import json
import os
import re
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from hub_server import Repository

from groupsae import Suite
from groupsae.errors import HubError, PartitionError, RunError
from groupsae.recipes.push import push

REPO = "someone/tiny"
OURS = {"suite.json", "scales.safetensors", "release.json", "README.md"}
GROUPS = {f"groups/{group}/{file}" for group in ("layers.0", "layers.1-2") for file in ("cfg.json", "sae.safetensors")}


@pytest.fixture
def pushed(done, hub, call):
    """What `push` printed; the hub holds the release of the finished run."""
    code, out, err = call("push", done, REPO, "--license", "mit", "--json")
    assert code == 0, err
    hub.requests.clear()
    return json.loads(out)


@pytest.fixture
def no_waiting(monkeypatch):
    """huggingface_hub does not wait between its attempts, and keeps what it has in small pieces."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)


def same(one, other):
    """Whether two suites give the same latents and reconstructions."""
    x_ND = torch.randn(20, 16, generator=torch.Generator().manual_seed(0)) * 3
    return all(
        torch.equal(one[layer].encode(x_ND), other[layer].encode(x_ND))
        and torch.equal(one[layer](x_ND), other[layer](x_ND))
        for layer in one.partition.hookpoints
    )


def test_a_release_has_our_files_and_those_of_saelens(done, hub, pushed):
    files = hub.repositories[REPO].files
    assert set(pushed["files"]) == set(files) - {".gitattributes"}
    assert set(files) >= OURS | GROUPS | {
        f"layers.{n}/{file}" for n in range(3) for file in ("cfg.json", "sae_weights.safetensors")
    }
    assert pushed["commit"].endswith(hub.repositories[REPO].commit)
    release = json.loads(files["release.json"])
    losses = json.loads((done / "eval/losses.json").read_text())["suites"]["groups"]
    assert {layer: facts["delta_ce"] for layer, facts in release["layers"].items()} == {
        layer: facts["delta_ce"] for layer, facts in losses.items()
    }
    assert release["saes"]["layers.1-2"]["layers"] == ["layers.1", "layers.2"] and release["license"] == "mit"
    assert set(release["files"]) == set(files) - {".gitattributes", "release.json"}


def test_nothing_of_this_machine_is_published(done, hub, pushed):
    place = json.dumps(str(done.parents[1])).strip('"')
    model = re.search(r'name = "(.*)/model"', (done / "config.toml").read_text())[1]
    for name, content in hub.repositories[REPO].files.items():
        assert place.encode() not in content and model.encode() not in content, name


def test_the_whole_suite_is_read_from_the_hub(done, hub, pushed):
    suite = Suite.load(REPO)
    assert suite.partition == Suite.load(done).partition and same(suite, Suite.load(done))
    assert {name for name in hub.fetched() if name.startswith("layers.")} == set()


def test_a_layer_is_read_with_nothing_but_its_group(done, hub, pushed):
    suite = Suite.load(REPO, layer="layers.2")
    assert suite.partition.groups == (("layers.1", "layers.2"),)
    assert set(hub.fetched()) == {"suite.json", "scales.safetensors"} | {name for name in GROUPS if "1-2" in name}
    local = Suite.load(done, layer=["layers.1"])
    assert local.partition == suite.partition and same(suite, local)
    assert Suite.load(done, layer=["layers.0", "layers.2"]).partition == Suite.load(done).partition
    for source in (done, REPO):
        with pytest.raises(PartitionError, match=r"'layers.7' is in no group; the partition has layers.0, layers.1"):
            Suite.load(source, layer="layers.7")


def test_what_layers_have_of_their_own_comes_along(hub, tmp_path):
    from suite_cases import random_suite

    suite = random_suite("topk", "all")
    for module in (*suite.saes.values(), *suite.layer_maps.values()):
        module.float()
    suite.save(tmp_path / "suite")
    files = [path for path in (tmp_path / "suite").rglob("*") if path.is_file()]
    contents = {path.relative_to(tmp_path / "suite").as_posix(): path.read_bytes() for path in files}
    hub.repositories["someone/own"] = Repository(contents)
    assert same(Suite.load("someone/own"), suite)


def test_a_suite_that_was_read_once_is_there_without_network(hub, pushed):
    first = Suite.load(REPO, layer="layers.0")
    hub.down = True
    assert same(Suite.load(REPO, layer="layers.0"), first)
    with pytest.raises(HubError, match="could not be reached for someone/tiny"):
        Suite.load(REPO, layer="layers.1")


def test_all_files_come_from_one_commit(hub, pushed, monkeypatch):
    repository = hub.repositories[REPO]
    commit = repository.commit
    first = Suite.load(REPO, layer="layers.0")
    assert Suite.load(REPO, layer="layers.0", revision=commit).partition == first.partition
    with pytest.raises(HubError, match="no such revision"):
        Suite.load(REPO, revision="v9")
    download, changed = huggingface_hub.hf_hub_download, []

    def then_change(*args, **kwargs):
        path = download(*args, **kwargs)
        repository.files["README.md"] += b"."
        changed.append(1)
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", then_change)
    with pytest.raises(HubError, match="no such revision"):  # this hub keeps the newest commit only
        Suite.load(REPO, layer="layers.1")


def python_of(card):
    """The snippets of a card, in order."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_the_card_is_true(done, hub, pushed):
    card = hub.repositories[REPO].files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: groupsae\nlicense: mit\ntags:\n")
    fvu = json.loads((done / "eval/reconstruction.json").read_text())["suites"]["groups"]["layers.1"]["fvu"]
    assert f"| layers.1 | layers.1-2 | {fvu:.4f} [" in card
    x = torch.randn(20, 16)
    ours, _, plain = ({"x": x} for _ in range(3))
    exec(compile(python_of(card)[0], "card", "exec"), ours)
    exec(compile(python_of(card)[2], "card", "exec"), plain)
    torch.testing.assert_close(plain["latents"], ours["latents"])
    torch.testing.assert_close(plain["reconstruction"], ours["suite"]["layers.1"](x), rtol=1e-4, atol=1e-4)


def test_saelens_reads_the_release_from_the_hub(hub, pushed):
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    sae = sae_lens.SAE.from_pretrained(REPO, "layers.1", device="cpu")
    x_ND = torch.randn(20, 16)
    torch.testing.assert_close(sae.encode(x_ND), Suite.load(REPO)["layers.1"].encode(x_ND), rtol=1e-5, atol=1e-5)


def test_a_dry_run_sends_nothing(done, hub, call):
    code, out, _ = call("push", done, REPO, "--dry-run", "--suite", "baseline")
    assert code == 0 and "nothing was sent to someone/tiny (dry run)" in out
    assert not hub.requests
    assert "license:" not in (done / "exports/hub/baseline/README.md").read_text()
    assert same(Suite.load(done / "exports/hub/baseline"), Suite.load(done, "baseline"))


def test_a_private_release_needs_a_token(done, hub, call, monkeypatch):
    assert call("push", done, REPO, "--private")[0] == 0
    assert hub.repositories[REPO].private
    Suite.load(REPO, layer="layers.0")
    monkeypatch.delenv("HF_TOKEN")
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
    with pytest.raises(HubError, match=r"no repository someone/tiny, or it is private.*Log in with `hf auth login`"):
        Suite.load(REPO, layer="layers.0")


def test_a_release_is_replaced_only_when_asked(done, hub, call, pushed):
    files = hub.repositories[REPO].files
    before = dict(files)
    code, _, err = call("push", done, REPO)
    assert code == 2 and "holds a release already. Replace it with --overwrite" in err and files == before
    assert call("push", done, REPO, "--suite", "baseline", "--overwrite")[0] == 0
    assert "groups/layers.1-2/cfg.json" not in files and "groups/layers.1/cfg.json" in files
    assert ".gitattributes" in files
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE, ignore_errors=True)
    assert same(Suite.load(REPO), Suite.load(done, "baseline"))


def test_a_repository_with_something_else_is_left_alone(done, hub, call):
    hub.repositories[REPO] = Repository({"model.safetensors": b"weights"})
    code, _, err = call("push", done, REPO, "--overwrite")
    assert code == 2 and "holds something else than a release of groupsae (model.safetensors)" in err
    assert hub.repositories[REPO].files == {"model.safetensors": b"weights"}


def test_results_that_are_stale_are_not_published(done, hub, call):
    (done / "eval/losses.json").write_text("{}")
    code, _, err = call("push", done, REPO, "--dry-run")
    assert code == 0 and "eval/losses.json is stale: the card is written without it" in err
    release = json.loads((done / "exports/hub/groups/release.json").read_text())
    assert release["layers"]["layers.1"]["delta_ce"] is None and release["layers"]["layers.1"]["fvu"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs a repository: USER/NAME"),
        (("tiny",), "'tiny' is no id of a repository"),
        (("someone/tiny", "--suite", "nothing"), "has no suite 'nothing'; it has baseline, groups"),
    ],
)
def test_what_cannot_be_pushed_is_refused(done, hub, call, arguments, message):
    code, _, err = call("push", done, *arguments)
    assert code == 2 and message in err
    assert not hub.requests


def test_a_token_that_may_not_write_is_told_so(done, hub, call, monkeypatch, no_waiting):
    hub.writable = False
    code, _, err = call("push", done, REPO)
    assert code == 2 and "does not let you write to someone/tiny" in err and "needs write access" in err
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = call("push", done, REPO)
    assert code == 2 and "Log in with `hf auth login`, or set HF_TOKEN." in err
    hub.down = True
    code, _, err = call("push", done, REPO)
    assert code == 2 and "could not be reached" in err


# ---- pull


def files_in(folder):
    """The paths of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_release_is_pulled_into_a_folder(done, here, hub, pushed, call):
    code, out, err = call("pull", REPO)
    assert code == 0, err
    assert 'gs.Suite.load("releases/tiny")' in out
    assert files_in(here / "releases/tiny") == OURS | GROUPS
    assert same(Suite.load("releases/tiny"), Suite.load(done))
    code, _, err = call("pull", REPO)
    assert code == 2 and "releases/tiny exists" in err
    assert call("pull", REPO, "--out", "all", "--everything")[0] == 0
    assert files_in(here / "all") == set(hub.repositories[REPO].files)
    assert not list(here.rglob("*.pulling"))


def test_a_part_of_a_release_is_pulled(here, hub, pushed, call):
    code, out, _ = call("pull", REPO, "--layer", "layers.2", "--json")
    assert code == 0
    assert set(json.loads(out)["files"]) == files_in(here / "releases/tiny") == OURS | {n for n in GROUPS if "1-2" in n}
    assert Suite.load("releases/tiny", layer="layers.1").partition.names == ("layers.1-2",)
    code, _, err = call("pull", REPO, "--layer", "layers.9", "--out", "other")
    assert code == 2 and "'layers.9' is in no group" in err
    code, _, err = call("pull", REPO, "--layer", "layers.1", "--everything", "--out", "other")
    assert code == 2 and "either --layer or --everything" in err


def test_a_connection_that_breaks_is_taken_up_again(here, hub, pushed, call, no_waiting):
    hub.break_after, hub.breaks = 1000, 3
    assert call("pull", REPO)[0] == 0
    assert hub.breaks == 0
    assert same(Suite.load("releases/tiny"), Suite.load(here / "runs/tiny"))
    sizes = {name: len(hub.repositories[REPO].files[name]) for name in hub.fetched()}
    assert hub.fetched() == sizes  # no byte was sent twice


def test_a_download_that_was_given_up_goes_on_with_the_file_that_it_was_at(here, hub, pushed, call, no_waiting):
    hub.break_after, hub.breaks, hub.down_after_break = 4000, 1, True  # in the first of the two large files
    code, _, err = call("pull", REPO)
    assert code == 2 and "could not be reached for someone/tiny" in err and "what has arrived is kept" in err
    assert not (here / "releases/tiny").exists()
    hub.down = False
    assert call("pull", REPO)[0] == 0
    again = {name: sent - len(hub.repositories[REPO].files[name]) for name, sent in hub.fetched().items()}
    assert {name: sent for name, sent in again.items() if sent} == {"groups/layers.0/sae.safetensors": 4000}
    assert not (here / "releases/.tiny.pulling").exists()
    assert same(Suite.load("releases/tiny"), Suite.load(here / "runs/tiny"))


def test_a_file_that_is_not_as_released_is_fetched_again(here, hub, pushed, call):
    files = hub.repositories[REPO].files
    right = files["groups/layers.0/sae.safetensors"]
    files["groups/layers.0/sae.safetensors"] = right[:-1] + bytes([right[-1] ^ 1])
    code, _, err = call("pull", REPO)
    assert code == 2 and "groups/layers.0/sae.safetensors is not as the release describes it" in err
    assert not (here / "releases/tiny").exists()
    files["groups/layers.0/sae.safetensors"] = right
    assert call("pull", REPO)[0] == 0


def test_a_repository_whose_files_lead_elsewhere_is_refused(here, hub, pushed, call):
    hub.repositories[REPO].files["groups/layers.0/../../../../evil"] = b"evil"
    code, _, err = call("pull", REPO)
    assert code == 2 and "is no place within" in err
    assert not list(here.rglob("evil")) and not (here / "releases/tiny").exists()


def test_no_space_is_said_before_anything_large_is_downloaded(here, hub, pushed, call, monkeypatch):
    usage = shutil.disk_usage(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5000))
    code, _, err = call("pull", REPO)
    assert code == 2 and "are to be downloaded" in err and "--layer" in err
    assert not any("sae.safetensors" in name for name in hub.fetched())


def test_a_disk_that_fills_up_is_named(here, hub, pushed, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    with pytest.raises(RunError, match="The disk is full; someone/tiny cannot be stored"):
        Suite.load(REPO)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda hub: hub.repositories.clear(), "no repository someone/tiny"),
        (lambda hub: setattr(hub.repositories[REPO], "gated", True), "is gated"),
        (lambda hub: hub.repositories[REPO].files.pop("suite.json"), "no release of groupsae: it has no suite.json"),
        (lambda hub: setattr(hub, "down", True), "could not be reached"),
    ],
)
def test_why_a_release_cannot_be_had(here, hub, pushed, call, prepare, message):
    prepare(hub)
    code, _, err = call("pull", REPO)
    assert code == 2 and message in err
    with pytest.raises(HubError, match=f"There is no folder 'someone/tiny' here. .*{message}"):
        Suite.load(REPO)


def test_names_that_are_no_repositories_are_folders(here, hub, call):
    with pytest.raises(RunError, match=r"nowhere holds no trained SAEs"):
        Suite.load("nowhere")
    with pytest.raises(RunError, match="holds no trained SAEs"):
        Suite.load(here / "some" / "where")
    code, _, err = call("pull", "tiny")
    assert code == 2 and "Give USER/NAME" in err
    code, _, err = call("pull")
    assert code == 2 and "needs a repository" in err
    assert not hub.requests


def test_a_folder_comes_before_a_repository_of_its_name(done, here, hub):
    assert Suite.load("runs/tiny").partition == Suite.load(done).partition
    assert not hub.requests


def test_a_process_of_its_own_asks_the_hub_that_its_environment_names(here, hub, pushed):
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(here / "home")}
    command = [sys.executable, "-m", "groupsae", "pull", REPO, "--layer", "layers.0"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=here)
    assert found.returncode == 0, found.stderr
    assert set(Suite.load(here / "releases/tiny", layer="layers.0").partition.names) == {"layers.0"}


def test_the_run_is_held_while_its_release_is_written(done, hub):
    from groupsae.lock import hold
    from groupsae.records import RunDirectory

    with hold(done), pytest.raises(RunError):
        push(RunDirectory.open(done), REPO)
