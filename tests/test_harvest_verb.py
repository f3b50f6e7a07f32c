"""`groupsae harvest`: activations are kept once, and every later stage reads them as it reads the model."""

import json

import pytest
from safetensors.torch import load_file

from groupsae.recipes import context


@pytest.fixture
def cached(here, call):
    """A run that reads a float32 cache, as far as its training and reconstruction."""
    assert call("harvest", "tiny.toml", "--dtype", "float32", "--out", "cache")[0] == 0
    settings = (here / "tiny.toml").read_text().replace("[activations]", '[activations]\ncache = "cache"')
    (here / "cached.toml").write_text(settings)
    for verb in ("tokens", "distances", "group", "train"):
        assert call(verb, "cached.toml")[0] == 0
    assert call("eval", "runs/cached", "reconstruction", "similarity")[0] == 0
    return here / "runs" / "cached"


def test_a_run_from_a_cache_is_the_run_from_the_model(done, cached):
    weights = sorted(path.relative_to(done) for path in done.glob("groups/*/sae.safetensors"))
    assert weights
    for name in weights:
        assert (cached / name).read_bytes() == (done / name).read_bytes()
    for name in ("stats.safetensors", "scales.safetensors"):
        mine, theirs = load_file(cached / name), load_file(done / name)
        assert all(mine[key].equal(theirs[key]) for key in theirs)
    for name in ("distances.json", "positions.json", "eval/reconstruction.json", "eval/similarity.json"):
        assert json.loads((cached / name).read_text()) == json.loads((done / name).read_text()), name


def test_the_language_model_is_loaded_for_losses_only(cached, call, monkeypatch):
    loads = []
    load = context.load_model

    def counted(*arguments, **options):
        loads.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(context, "load_model", counted)
    for verb in ("tokens", "distances", "group", "train"):
        assert call(verb, cached, "--overwrite")[0] == 0
    assert call("eval", cached, "reconstruction", "similarity", "--overwrite")[0] == 0
    assert not loads
    assert call("eval", cached, "losses")[0] == 0
    assert len(loads) == 1


def test_a_cache_of_something_else_is_refused_by_name(here, call):
    assert call("harvest", "tiny.toml", "--out", "cache")[0] == 0
    read = ("--activations.cache", "cache", "--out")
    code, _, err = call("run", "tiny.toml", *read, "runs/other-rule", "--activations.skip-first", "2")
    assert code == 2 and "skip_first: asked 2, found 1" in err
    code, _, err = call("run", "tiny.toml", *read, "runs/other-text", "--text.max-tokens", "1000")
    assert code == 2 and "text: asked" in err
    code, _, err = call("run", "tiny.toml", *read, "runs/other-place", "--activations.hookpoints", "layers.*.mlp")
    assert code == 2 and "layers.0.mlp" in err


def test_a_cache_that_is_not_there_names_the_command_that_writes_it(here, call):
    code, _, err = call("run", "tiny.toml", "--activations.cache", "nowhere")
    assert code == 2 and "groupsae harvest" in err and "nowhere" in err


def test_a_repeated_harvest_is_done_already_and_another_is_refused(here, call):
    code, out, _ = call("harvest", "tiny.toml", "--json")
    assert code == 0
    written = json.loads(out)
    assert written["tokens"]["train"] > written["tokens"]["held_out"] > 0
    assert call("harvest", "tiny.toml", "--json")[1] == out
    code, _, err = call("harvest", "tiny.toml", "--dtype", "int8")
    assert code == 2 and "another activation cache" in err
