"""The contexts stage of a run: what it finds, that it resumes, and what it says of wrong input."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from groupsae.errors import RunError
from groupsae.interpretability import firings
from groupsae.interpretability.store import SCORES, ContextStore
from groupsae.recipes.context import RunContext
from groupsae.recipes.eval_inputs import EvalInputs
from groupsae.records import RunDirectory
from groupsae.records.types.interpretability import InterpretabilityRecord


def store_of(done):
    return ContextStore(RunDirectory.open(done))


def shards(done):
    paths = sorted(path for path in (done / "contexts").rglob("*") if path.is_file())
    return {path.relative_to(done): path.read_bytes() for path in paths}


def test_every_latent_of_every_suite_is_there(done):
    store = store_of(done)
    inputs = EvalInputs(RunContext(RunDirectory.open(done)))
    assert {name for one in store.dictionaries for name in one.suites} == set(inputs.suites)
    assert store.record.final_norm == "final_layer_norm" and store.record.window == 16
    assert not (done / "contexts/firings").exists()
    for suite, made in inputs.suites.items():
        served = [layer for number in store.of_suite(suite) for layer in store.dictionaries[number].layers]
        assert sorted(served) == sorted(made.partition.hookpoints)


def test_counts_and_windows_are_those_of_the_saes(done):
    store = store_of(done)
    inputs = EvalInputs(RunContext(RunDirectory.open(done)))
    text = store.text
    x_LBTD, out_BT = inputs.source.read_positions(text["row"].tolist())
    assert (text["kept"].astype(bool) == ~out_BT.numpy()).all() and out_BT[:, 0].all()
    assert (text["ids"] == inputs.source.rows.ids_RT[text["row"]]).all()
    for number, one in enumerate(store.dictionaries):
        for layer, hookpoint in enumerate(one.layers):
            bound = inputs.suites[one.suite][hookpoint]
            x_ND = x_LBTD[inputs.source.hookpoints.index(hookpoint)].flatten(0, 1)
            value_NS = bound.encode(x_ND).numpy() * ~out_BT.flatten().numpy()[:, None]
            assert (store.column(number, layer, "count") == (value_NS > 0).sum(0)).all()
            value_SRT = value_NS.T.reshape(one.d_sae, *out_BT.shape)
            for latent in range(0, one.d_sae, 5):
                found = store.latent(number, layer, latent)
                assert bool(found.windows) == bool(found.facts["count"])
                for window in (*found.windows, *found.silent):
                    here = slice(window.first, window.first + store.record.window)
                    assert np.allclose(window.values, value_SRT[latent, window.row, here], atol=1e-5)
                    assert (window.ids == text["ids"][window.row, here]).all()
                assert not any(window.values.any() for window in found.silent)


def test_the_same_run_gives_the_same_bytes_and_goes_on_where_it_stopped(done, call, monkeypatch):
    before = shards(done)
    assert call("contexts", done, "--overwrite")[0] == 0
    assert shards(done) == before
    monkeypatch.setattr(firings, "FIRINGS_PER_CHUNK", 1)
    real, read = RunContext.harvester, []

    def stops(self, *given, **options):
        source = real(self, *given, **options)
        inner = source.read_positions

        def read_positions(rows):
            read.append(rows)
            if len(read) == 2:
                raise KeyboardInterrupt
            return inner(rows)

        source.read_positions = read_positions
        return source

    monkeypatch.setattr(RunContext, "harvester", stops)
    assert call("contexts", done, "--overwrite")[0] == 130
    assert len(list((done / "contexts/firings").iterdir())) == 1
    assert call("contexts", done)[0] == 0
    assert read[2] == read[1], "the first rows are not read again"
    assert shards(done) == before


def test_latents_and_suites_that_are_none(done):
    store = store_of(done)
    with pytest.raises(RunError, match=r"There is no latent 99999 in baseline .*: it has 0 to 31"):
        store.latent(0, 0, 99999)
    with pytest.raises(RunError, match="There is no layer 7"):
        store.latent(0, 7, 0)
    with pytest.raises(RunError, match="has no suite 'others'; it has baseline, groups"):
        store.of_suite("others")


def test_contexts_of_another_training_are_out_of_date(done, call):
    assert call("train", done, "--train.num-tokens", "640", "--overwrite")[0] == 0
    assert RunDirectory.open(done).status("contexts") == "stale"
    with pytest.raises(RunError, match=r"Stage 'contexts' is out of date .* `groupsae contexts .* --overwrite`"):
        store_of(done)
    code, _, err = call("browse", done)
    assert code == 2 and "browse" in err and "--overwrite" in err
    code, _, err = call("eval", done, "interpretability")
    assert code == 2 and "'contexts' is out of date" in err
    code, _, err = call("contexts", done)
    assert code == 2 and "--overwrite" in err


def test_a_run_without_text_left(done, call):
    path = done / "tokens/rows.safetensors"
    arrays = load_file(path)
    special = int(arrays["special"][0])
    save_file(arrays | {"held_out": np.full_like(arrays["held_out"], special)}, path)
    shutil.rmtree(done / "contexts")
    run = RunDirectory.open(done)
    run.finish("tokens", 1.0, ["tokens/rows.safetensors"])
    for stage in ("distances", "group", "train"):
        run.finish(stage, 1.0, list(run.manifest.stages[stage].files))
    code, _, err = call("contexts", done, "--overwrite")
    assert code == 2 and "No held-out token is left" in err


def test_windows_may_come_from_training_text(done, call):
    assert call("contexts", done, "--text", "training", "--overwrite")[0] == 0
    store = store_of(done)
    rows = RunContext(RunDirectory.open(done)).rows
    assert store.record.text == "training"
    assert (store.text["ids"] == rows.ids_RT[store.text["row"]]).all()


def test_scores_of_suites_are_means_of_their_latents(done, call):
    code, out, _ = call("eval", done, "interpretability", "--overwrite", "--json")
    assert code == 0
    record, store = InterpretabilityRecord.read(RunDirectory.open(done)), store_of(done)
    assert record.compared_with == "baseline" and json.loads(out)["stages"]["eval"]["status"] == "done"
    for suite, layers in record.suites.items():
        for number in store.of_suite(suite):
            for layer, hookpoint in enumerate(store.dictionaries[number].layers):
                for name in SCORES:
                    values = store.column(number, layer, name)
                    found = layers[hookpoint][name]
                    assert found.scored == np.isfinite(values).sum()
                    if found.scored:
                        assert np.isclose(found.mean, np.nanmean(values), atol=1e-6)
        means = [scores["token_purity"].mean for scores in layers.values()]
        assert np.isclose(record.layers[suite]["token_purity"].mean, np.mean(means))
        low, high = record.layers[suite]["token_purity"].interval
        assert low < record.layers[suite]["token_purity"].mean < high


def test_scores_beside_another_run_are_refused(done, call, here):
    shutil.copytree(done, here / "runs/other")
    code, _, err = call("eval", done, "interpretability", "--against", "runs/other")
    assert code == 2 and "compares the suites of one run only" in err
