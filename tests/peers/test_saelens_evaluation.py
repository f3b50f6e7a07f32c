"""SAELens evaluates an exported folder by itself: the model, the place and the rows are those of the files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import transformers

from groupsae import TokenRows, cli

lens = pytest.importorskip("sae_lens", reason="SAELens is not installed", exc_type=ImportError)
datasets = pytest.importorskip("datasets", reason="datasets is not installed")

SHARED = Path(os.environ.get("GROUPSAE_SHARED", Path(__file__).parents[2] / "../shared"))
MODEL, TEXT = SHARED / "models/stories260K", SHARED / "text/tinystories_1000_clean.jsonl"

SETTINGS = """
name = "run"
[model]
name = "{model}"
device = "cpu"
[text]
source = ["{folder}/text.jsonl"]
context_length = 64
max_tokens = 100000
held_out_share = 0.3
[activations]
batch_rows = 64
buffer_tokens = 16384
hookpoints = ["layers.0", "layers.2", "layers.3.mlp"]
[distances]
num_tokens = 5000
[group]
groups = 2
[plan]
calibrate = false
[sae]
expansion = 8
k = 8
[train]
num_tokens = 60000
batch_tokens = 512
scale_tokens = 10000
learning_rate = 4e-3
[eval]
num_tokens = 30000
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run on a model whose rows begin with a token of their own, and its export."""
    if not MODEL.is_dir() or not TEXT.is_file():
        pytest.skip(f"{MODEL} or {TEXT} is not there")
    folder = tmp_path_factory.mktemp("evaluated")
    lines = TEXT.read_text(encoding="utf-8").splitlines()[:1000]
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "run.toml").write_text(SETTINGS.format(model=MODEL.resolve(), folder=folder))
    assert cli.main(["tokens", str(folder / "run.toml"), "--out", str(folder / "run")]) == 0
    for verb in ("distances", "group", "train"):
        assert cli.main([verb, str(folder / "run")]) == 0
    assert cli.main(["eval", str(folder / "run"), "reconstruction"]) == 0
    where = ["--suite", "baseline", "--out", str(folder / "out")]
    assert cli.main(["export", str(folder / "run"), "--to", "saelens", *where]) == 0
    ours = json.loads((folder / "run" / "eval" / "reconstruction.json").read_text())["suites"]["baseline"]
    return folder, ours, held_out_texts(folder / "run")


def held_out_texts(run):
    """The documents that were held out, from their tokens."""
    rows = TokenRows.load(run / "tokens" / "rows.safetensors").held_out
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    documents = np.split(rows.ids_RT.ravel().astype(np.int64), rows.document_starts[1:])
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in documents]


@pytest.mark.parametrize("hookpoint", ["layers.0", "layers.2", "layers.3.mlp"])
def test_its_fvu_is_ours_within_sampling(hookpoint, exported, measured):
    folder, ours, texts = exported
    found, expected = evaluated(folder / "out" / hookpoint, texts), ours[hookpoint]["fvu"]
    measured("sae-lens", "topk", f"SAELens' FVU of {hookpoint}", abs(found / expected - 1), limit=0.03)


def evaluated(folder, texts):
    """The FVU that SAELens finds from a folder alone."""
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.load_model import load_model
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = lens.SAE.load_from_disk(str(folder))
    facts = sae.cfg.metadata
    names = [facts.hook_name]
    model = load_model(facts.model_class_name, facts.model_name, "cpu", facts.model_from_pretrained_kwargs, names)
    dataset = datasets.Dataset.from_dict({"text": texts})
    sizes = {"store_batch_size_prompts": 8, "n_batches_in_buffer": 4, "train_batch_size_tokens": 512}
    store = lens.ActivationsStore.from_sae(
        model, sae, dataset=dataset, streaming=False, sequence_separator_token="eos", **sizes
    )
    config = EvalConfig(
        batch_size_prompts=8,
        n_eval_sparsity_variance_batches=40,
        compute_l2_norms=True,
        compute_variance_metrics=True,
        compute_sparsity_metrics=True,
    )
    found, _ = run_evals(
        sae, store, model, ActivationScaler(), config, exclude_special_tokens=facts.exclude_special_tokens
    )
    return 1 - found["reconstruction_quality"]["explained_variance"]
