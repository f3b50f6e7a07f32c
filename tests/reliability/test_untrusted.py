"""Files from someone else: what they promise is checked before it is believed."""

from __future__ import annotations

import json
import os
import struct
import time

import pytest
import torch
from safetensors.torch import save_file
from torture import note

from groupsae.config import TopKConfig
from groupsae.errors import RunError
from groupsae.records import RunDirectory
from groupsae.saes.registry import build_sae
from groupsae.saes.suite import Suite, load_sae, read_suite_index, save_sae
from groupsae.storage import within
from groupsae.text.tokens import TokenRows


@pytest.fixture
def folder(tmp_path):
    """A folder that holds one sound SAE."""
    save_sae(build_sae(8, TopKConfig(d_sae=24, k=3)), tmp_path)
    return tmp_path


def change_config(folder, d_model=8, **sae):
    file = folder / "cfg.json"
    cfg = json.loads(file.read_text())
    file.write_text(json.dumps({"d_model": d_model, "sae": cfg["sae"] | sae}))


def refused(folder, words):
    """That loading is refused at once, without the memory that was promised; the process would not survive that."""
    began = time.monotonic()
    with pytest.raises(RunError, match=words):
        load_sae(folder)
    assert time.monotonic() - began < 5


def test_a_config_that_promises_more_than_any_memory_is_refused_before_it_is_allocated(folder):
    change_config(folder, d_sae=10**12)
    refused(folder, r"b_enc is F32 \(24,\) where F32 \(1000000000000,\) is needed|W_enc is F32 \(24, 8\) where")


@pytest.mark.parametrize("d_model", [10**30, 10**12, 0, -8, 8.0, True, "8", None, [8]])
def test_a_width_that_is_none_is_refused(folder, d_model):
    change_config(folder, d_model=d_model)
    refused(folder, "damaged")


def header(entries, data=b"", length=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


WEIGHTS = {"W_enc": [24, 8], "b_enc": [24], "W_dec": [24, 8], "b_dec": [8]}
HEADERS = {
    "10^12 numbers": header({"W_enc": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
    "numbers without data": header(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in WEIGHTS.items()}
    ),
    "all weights in the same place": header(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 768]} for name, shape in WEIGHTS.items()},
        bytes(768),
    ),
    "a header longer than the file": header({}, length=10**15),
    "a header of 2^64 - 1 bytes": header({}, length=2**64 - 1),
    "shapes that overflow": header({"W_enc": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}),
    "negative shapes": header({"W_enc": {"dtype": "F32", "shape": [-1, 8], "data_offsets": [0, 4]}}, bytes(4)),
    "an unknown type": header({"W_enc": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "no JSON": struct.pack("<Q", 5) + b"{{{{{",
    "nothing": b"",
    "a pickle": b"\x80\x04\x95" + b"cposix\nsystem\n",
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(folder, content):
    (folder / "sae.safetensors").write_bytes(content)
    refused(folder, r"sae\.safetensors is (missing or )?damaged.*Train again")


def test_rows_with_negative_ids_are_refused(tmp_path):
    ids = torch.tensor([[1, -5]], dtype=torch.int32)
    save_file(
        {"train": ids, "held_out": ids.clone(), "special": torch.zeros(0), "documents": torch.ones(2)}, tmp_path / "r"
    )
    with pytest.raises(RunError, match="damaged"):
        TokenRows.load(tmp_path / "r")


OUTSIDE = ["../x", "/etc/x", "a/../../x", "..", "", "a\0b", "groups/../../x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_a_folder(tmp_path, name):
    with pytest.raises(RunError, match="is no place within"):
        within(tmp_path, name)


@pytest.mark.parametrize("name", ["../../secret", "/etc", "..", "a/b", "a/../b"])
def test_groups_are_folders_right_below_the_run(done, name):
    (done / "suite.json").write_text(json.dumps({"groups": [[name]]}))
    with pytest.raises(RunError, match=r"suite\.json is damaged"):
        read_suite_index(done)
    with pytest.raises(RunError, match=r"suite\.json is damaged"):
        Suite.load(done)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", ""])
def test_a_manifest_cannot_name_files_outside_the_run(done, call, name):
    manifest = json.loads((done / "manifest.json").read_text())
    manifest["stages"]["eval"]["files"][name] = {"bytes": 1, "sha256": ""}
    (done / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = call("show", done)
    assert code == 2 and "is no place within" in err


def test_a_checkpoint_cannot_name_files_outside_the_run(done, call):
    for file in done.glob("checkpoints/*"):
        manifest = json.loads(file.read_text())
        manifest["files"] = {"../../secret": manifest["files"].popitem()[1]}
        file.write_text(json.dumps(manifest))
    (done / "suite.json").unlink()
    code, _, err = call("train", done)
    assert code == 2 and "has no state in this checkpoint" in err


def test_a_link_in_place_of_a_group_is_not_followed_when_groups_are_removed(done, call, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "work.txt").write_text("years of it")
    (done / "groups" / "layers.9").symlink_to(mine, target_is_directory=True)
    assert call("train", done, "--sae.k", "3", "--overwrite")[0] == 0
    assert (mine / "work.txt").read_text() == "years of it"


def test_no_file_can_ask_for_code_of_a_model_to_be_run(here, call, monkeypatch):
    file = here / "tiny.toml"
    file.write_text(file.read_text().replace("[model]", "[model]\ntrust_remote_code = true"))
    code, _, err = call("tokens", "tiny.toml")
    assert code == 2 and "--trust-remote-code" in err and not (here / "runs").exists()
    code, _, err = call("tokens", "tiny.toml", "--trust-remote-code")
    assert code == 0 and "WARNING: code that comes with model" in err
    assert RunDirectory.open(here / "runs/tiny").config.model.trust_remote_code
    assert call("distances", "runs/tiny")[0] == 2
    assert call("distances", "runs/tiny", "--trust-remote-code")[0] == 0


def test_nor_by_a_verb_that_starts_from_another_run(done, here, call):
    for file in (here / "tiny.toml", done / "config.toml"):
        text = file.read_text().replace("trust_remote_code = false\n", "")
        file.write_text(text.replace("[model]", "[model]\ntrust_remote_code = true"))
    code, out, err = call("transfer", "tiny.toml", "--from", done)
    assert code == 2 and "--trust-remote-code" in err and out == ""
    assert not (here / "runs" / "tiny-backward").exists()


# ---- changes since


def test_show_verify_names_every_file_that_is_not_as_it_was_written(done, call):
    assert call("show", done, "--verify")[0] == 0
    file = done / "distances.json"
    file.write_text(file.read_text().replace("0", "1", 1))
    assert call("show", done)[0] == 0
    code, _, err = call("show", done, "--verify")
    assert code == 2 and "distances.json has another SHA-256" in err


def test_a_text_that_changed_under_its_name_is_noticed(here, place, call):
    text = here / "text.jsonl"
    text.write_bytes((place / "text.jsonl").read_bytes())
    arguments = ("tokens", "tiny.toml", "--source", str(text))
    assert call(*arguments)[0] == 0
    os.utime(text)  # a new date is no change
    code, _, err = call(*arguments)
    assert code == 0 and "done already" in err
    text.write_text(text.read_text().replace("layer", "Layer", 1))
    code, _, err = call(*arguments)
    assert code == 2 and f"{text} is not as it was read" in err and "--overwrite" in err
    text.unlink()  # out of reach: nothing to tell by
    code, _, err = call("show", "runs/tiny", "--json")
    assert code == 0


def test_a_partition_file_that_changed_under_its_name_is_noticed(done, call):
    mine = done.parent / "mine.toml"
    mine.write_text('groups = [["layers.0", "layers.1"], ["layers.2"]]')
    arguments = ("group", done, "--method", str(mine))
    assert call(*arguments, "--overwrite")[0] == 0
    mine.write_text('groups = [["layers.0", "layers.2"], ["layers.1"]]')
    code, _, err = call(*arguments)
    assert code == 2 and "mine.toml is not as it was read" in err
    assert call(*arguments, "--overwrite")[0] == 0


def test_an_unfinished_training_is_not_lost_to_other_settings(done, call):
    (done / "suite.json").unlink()
    code, _, err = call("train", done, "--sae.k", "3")
    assert code == 2 and "unfinished training (512 tokens)" in err and "sae.k: 4 -> 3" in err
    assert "model.device" in err and "train.save_every_tokens" in err and "eval.num_tokens" not in err
    code, _, err = call("run", done, "--train.batch-tokens", "32")
    assert code == 2 and "train.batch_tokens: 64 -> 32" in err and "Give --overwrite" not in err
    assert "unfinished training (512 tokens)" in err and "--overwrite would discard it" in err
    assert f"Continue it with its own settings by `groupsae run {done}`" in err and "--out" in err
    code, _, err = call("run", "tiny.toml", "--train.batch-tokens", "32")
    assert code == 2 and "Continue that run with `groupsae run runs/tiny`" in err and "--out" in err
    assert "--overwrite; an unfinished training lies there as well, and would be discarded" in err
    assert call("train", done)[0] == 0
    note("kinds of lying headers refused: " + str(len(HEADERS)))
