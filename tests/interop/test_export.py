"""Suites in the files of other tools: read back by the tools' formulas, they do what the suite does."""

import json
from pathlib import Path

import pytest
import torch
from interop_cases import CONFIGS, D_MODEL, D_SAE, OTHERS, OWN, PARTITION, random_batch, single
from safetensors.torch import load_file

from groupsae import export_saelens, export_sparsify
from groupsae.errors import ConfigError, RunError
from groupsae.interop.model_facts import ModelFacts
from groupsae.text.tokens import TokenRows


def read(folder, weights):
    """The config and the weights of one hookpoint's folder."""
    return json.loads((folder / "cfg.json").read_text()), load_file(folder / weights)


def as_saelens(folder, x_ND):
    """Latents and reconstruction as SAELens' documentation says."""
    cfg, w = read(folder, "sae_weights.safetensors")
    assert cfg["normalize_activations"] == "none" and not cfg.get("rescale_acts_by_decoder_norm")
    into_ND = x_ND - w["b_dec"] * cfg["apply_b_dec_to_input"]
    if cfg["architecture"] == "gated":
        opened_NS = into_ND @ w["W_enc"] + w["b_gate"] > 0
        latents_NS = opened_NS * (into_ND @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    else:
        pre_NS = into_ND @ w["W_enc"] + w["b_enc"]
        latents_NS = {
            "standard": lambda: pre_NS.relu(),
            "jumprelu": lambda: pre_NS.relu() * (pre_NS > w["threshold"]),
            "topk": lambda: strongest(pre_NS, cfg["k"]),
        }[cfg["architecture"]]()
    return latents_NS, latents_NS @ w["W_dec"] + w["b_dec"]


def as_sparsify(folder, x_ND):
    """Latents and reconstruction as sparsify's documentation says."""
    cfg, w = read(folder, "sae.safetensors")
    assert (cfg["activation"], cfg["transcode"], cfg["skip_connection"]) == ("topk", False, False)
    assert (cfg["d_in"], cfg["num_latents"]) == tuple(reversed(w["encoder.weight"].shape))
    latents_NS = strongest((x_ND - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], cfg["k"])
    return latents_NS, latents_NS @ w["W_dec"] + w["b_dec"]


def strongest(pre_NS, k):
    values_NK, indices_NK = pre_NS.topk(k)
    return torch.zeros_like(pre_NS).scatter(1, indices_NK, values_NK.relu())


def require_equal(suite, folder, forward):
    """Latents are ours; the reconstruction too."""
    x_ND = random_batch().float()
    for hookpoint in PARTITION.hookpoints:
        latents_NS, x_hat_ND = forward(folder / hookpoint, x_ND)
        torch.testing.assert_close(latents_NS, suite[hookpoint].encode(x_ND), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x_hat_ND, suite[hookpoint](x_ND), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_is_written_for_saelens_does_what_the_suite_does(architecture, own, tmp_path):
    suite = single(architecture, own)
    export_saelens(suite, tmp_path / "out")
    require_equal(suite, tmp_path / "out", as_saelens)


@pytest.mark.parametrize("own", OWN)
def test_what_is_written_for_sparsify_does_what_the_suite_does(own, tmp_path):
    suite = single("topk", own)
    export_sparsify(suite, tmp_path / "out")
    require_equal(suite, tmp_path / "out", as_sparsify)


def test_the_files_are_those_that_the_tools_look_for_and_say_where_the_sae_comes_from(tmp_path):
    index = export_saelens(single("batchtopk", "all"), tmp_path / "out", model_name="demo", context_length=64)
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == index
    assert index["hookpoints"] == {name: {"group": list(PARTITION.group_of(name))} for name in PARTITION.hookpoints}
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    one = ("cfg.json", "sae_weights.safetensors")
    assert files == ["export.json", *(f"{name}/{file}" for name in PARTITION.hookpoints for file in one)]
    cfg, weights = read(tmp_path / "out" / "layers.2", "sae_weights.safetensors")
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["dtype"]) == ("jumprelu", D_MODEL, D_SAE, "float32")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    metadata = cfg["metadata"]
    assert metadata["hook_name"] == metadata["hf_hook_name"] == "gpt_neox.layers.2"
    assert "blocks.2.hook_resid_post, loads hub ids only" in metadata["hook_name_note"]
    assert metadata["model_class_name"] == "AutoModelForCausalLM"
    assert Path(metadata["model_name"]).is_dir() and metadata["context_size"] == 64
    assert metadata["group_layers"] == ["layers.0", "layers.2"]
    assert metadata["groupsae"]["sae"]["architecture"] == "batchtopk"


def test_sparsify_finds_no_key_that_it_does_not_know(tmp_path):
    export_sparsify(single("topk", "all"), tmp_path / "out")
    cfg, _ = read(tmp_path / "out" / "layers.2", "sae.safetensors")
    assert set(cfg) == {
        *("activation", "expansion_factor", "num_latents", "k", "normalize_decoder"),
        *("multi_topk", "skip_connection", "transcode", "d_in"),
    }
    provenance = json.loads((tmp_path / "out" / "layers.2" / "groupsae.json").read_text())
    assert provenance["group"] == ["layers.0", "layers.2"]


@pytest.mark.parametrize("architecture", OTHERS)
def test_what_sparsify_cannot_hold_is_refused_before_anything_is_written(architecture, tmp_path):
    with pytest.raises(ConfigError, match=f"sparsify cannot hold the SAE of layers.0, which is '{architecture}'.*topk"):
        export_sparsify(single(architecture), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_export_is_replaced_only_where_that_is_asked_for_and_anything_else_never(tmp_path):
    out, suite = tmp_path / "out", single("topk")
    export_sparsify(suite, out)
    (out / "layers.0" / "note.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds an export already.*--overwrite"):
        export_saelens(suite, out)
    export_saelens(suite, out, overwrite=True)
    assert not (out / "layers.0" / "note.txt").exists() and not (out / "layers.0" / "sae.safetensors").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="is no export"):
            export_saelens(suite, other, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_an_export_that_fails_leaves_the_one_before_it(tmp_path, monkeypatch):
    from groupsae.interop import layout

    out, suite = tmp_path / "out", single("topk")
    export_saelens(suite, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    save, calls = layout.save_tensors, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(layout, "save_tensors", full)
    with pytest.raises(RunError, match="No space left on device"):
        export_saelens(suite, out, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- the verb


def test_a_run_is_exported_beside_its_results(done, call):
    code, out, err = call("export", done, "--to", "sparsify")
    assert code == 0, err
    folder = done / "exports" / "sparsify" / "groups"
    assert out.startswith(f"{folder}: 3 SAEs of suite groups for sparsify") and "load_many" in out
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "layers.0", "layers.1", "layers.2"]
    code, out, _ = call("export", done, "--to", "saelens", "--suite", "baseline", "--json")
    assert code == 0 and json.loads(out)["suite"] == "baseline"
    cfg, _ = read(Path(json.loads(out)["folder"]) / "layers.1", "sae_weights.safetensors")
    assert cfg["metadata"]["group_layers"] == ["layers.1"] and cfg["metadata"]["context_size"] == 16
    assert cfg["metadata"]["groupsae"]["lineage"]["tokens"] == 512
    assert call("show", done, "--verify")[0] == 0


def test_exporting_twice_is_refused_unless_asked_for(done, call, tmp_path):
    place = ("--to", "saelens", "--out", tmp_path / "out")
    assert call("export", done, *place)[0] == 0
    code, _, err = call("export", done, *place)
    assert code == 2 and "holds an export already" in err
    assert call("export", done, *place, "--overwrite")[0] == 0


def test_a_suite_that_is_not_there_is_refused_naming_those_that_are(done, call):
    code, _, err = call("export", done, "--to", "saelens", "--suite", "basline")
    assert code == 2 and "no suite 'basline'; it has baseline, groups" in err
    assert not (done / "exports").exists()


def test_a_run_without_saes_is_refused_naming_the_command(here, call):
    assert call("tokens", "tiny.toml")[0] == 0
    code, _, err = call("export", "runs/tiny", "--to", "saelens")
    assert code == 2 and "groupsae train" in err
    code, _, err = call("export", "runs/none", "--to", "saelens")
    assert code == 2 and "not a run directory" in err


def test_an_export_says_where_transformer_lens_reads_the_same_tensor_and_only_there(tmp_path, monkeypatch):
    suite = single("topk")
    export_saelens(suite, tmp_path / "unknown", model_name="someone/unknown")
    metadata = read(tmp_path / "unknown" / "layers.2", "sae_weights.safetensors")[0]["metadata"]
    assert metadata["hook_name"] == "blocks.2.hook_resid_post" and "hf_hook_name" not in metadata
    known = ModelFacts("someone/gemma", "gemma2", "model", "layers", 4, 16, frozenset(PARTITION.hookpoints))
    monkeypatch.setattr(ModelFacts, "find", lambda name: known)
    export_saelens(suite, tmp_path / "known", model_name="someone/gemma")
    metadata = read(tmp_path / "known" / "layers.2", "sae_weights.safetensors")[0]["metadata"]
    assert (metadata["hook_name"], metadata["hf_hook_name"]) == ("blocks.2.hook_resid_post", "model.layers.2")
    assert metadata["model_class_name"] == "HookedTransformer" and "hook_name_note" not in metadata
    other = ModelFacts("someone/cohere", "cohere", "model", "layers", 4, 16, frozenset(PARTITION.hookpoints))
    monkeypatch.setattr(ModelFacts, "find", lambda name: other)
    export_saelens(suite, tmp_path / "other", model_name="someone/cohere")
    metadata = read(tmp_path / "other" / "layers.2", "sae_weights.safetensors")[0]["metadata"]
    assert metadata["hook_name"] == "model.layers.2" and "another residual stream" in metadata["hook_name_note"]
    assert metadata["model_class_name"] == "AutoModelForCausalLM"


def test_an_export_says_which_rows_and_positions_the_sae_was_trained_on(done, call):
    call("export", done, "--to", "saelens", "--suite", "baseline")
    metadata = read(done / "exports/saelens/baseline/layers.1", "sae_weights.safetensors")[0]["metadata"]
    assert (metadata["prepend_bos"], metadata["exclude_special_tokens"]) == (False, True)
    assert metadata["seqpos_slice"] == [1, None] and metadata["model_from_pretrained_kwargs"] == {}
    rows = TokenRows.load(done / "tokens" / "rows.safetensors")
    rows.ids_RT[:, 0] = rows.special_ids[0]
    (done / "tokens" / "rows.safetensors").unlink()
    rows.save(done / "tokens" / "rows.safetensors")
    call("export", done, "--to", "saelens", "--suite", "baseline", "--overwrite")
    metadata = read(done / "exports/saelens/baseline/layers.1", "sae_weights.safetensors")[0]["metadata"]
    assert metadata["prepend_bos"] is True


def test_an_export_is_marked_stale_once_its_run_is_trained_again(done, call):
    call("export", done, "--to", "saelens", "--suite", "baseline")
    index = done / "exports" / "saelens" / "baseline" / "export.json"
    assert "stale" not in json.loads(index.read_text())
    code, _, err = call("train", done, "--overwrite", "--learning-rate", "0.01")
    assert code == 0 and "exports/saelens/baseline was made of an earlier training" in err
    assert "earlier training" in json.loads(index.read_text())["stale"]
    call("export", done, "--to", "saelens", "--suite", "baseline", "--overwrite")
    assert "stale" not in json.loads(index.read_text())
