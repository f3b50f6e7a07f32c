"""The card of a release, for every architecture: its snippet computes what the suite computes."""

import re
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "saes"))
from suite_cases import random_suite

from groupsae.hub.card import card
from groupsae.interop.saelens import export_saelens
from groupsae.partition import group_name
from groupsae.records.types.lineage import Lineage, Origin
from groupsae.records.types.release import ReleasedLayer, ReleasedModel, ReleasedSAE, ReleasedText, ReleaseRecord

TEXT = ReleasedText(sources=("stories.jsonl",), context_length=64)


def release_of(suite, **changes):
    """A release that says little."""
    saes = {
        group_name(group): ReleasedSAE(
            layers=group,
            architecture=suite.saes[group_name(group)].config.architecture,
            d_sae=40,
            k=suite.saes[group_name(group)].config.k,
        )
        for group in suite.partition.groups
    }
    layers = {layer: ReleasedLayer(group="g") for layer in suite.partition.hookpoints}
    model = ReleasedModel(name="someone/model")
    return ReleaseRecord(suite="groups", model=model, text=TEXT, saes=saes, layers=layers, **changes)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"])
def test_the_plain_snippet_gives_the_latents(architecture, tmp_path, monkeypatch):
    suite = random_suite(architecture, "all")
    for module in (*suite.saes.values(), *suite.layer_maps.values()):
        module.float()
    export_saelens(suite, tmp_path / "export")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name: str(tmp_path / "export" / name))
    text = card(release_of(suite, per_layer=("bias", "rotation")), "someone/saes")
    names = {"x": torch.randn(30, 16, generator=torch.Generator().manual_seed(1))}
    exec(compile(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[2], "card", "exec"), names)
    layer = re.search(r'layer="(.*?)"', text)[1]
    torch.testing.assert_close(names["latents"], suite[layer].encode(names["x"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(names["reconstruction"], suite[layer](names["x"]), rtol=1e-4, atol=1e-4)


def test_a_card_says_where_saes_come_from_and_what_is_not_known():
    suite = random_suite("topk")
    before = Lineage(tokens=2_000)
    origin = Origin(
        hookpoint="layers.1", group="layers.1-2", direction="group", sha256="0", run="small", lineage=before
    )
    release = release_of(suite)
    name = next(iter(release.saes))
    started = release.saes[name].model_copy(update={"lineage": Lineage(tokens=500, origin=origin)})
    text = card(release.model_copy(update={"saes": release.saes | {name: started}}), "someone/saes")
    assert "500 tokens from the SAE of layers.1-2 at layers.1 of small (2,000 tokens from random weights)" in text
    assert "This release was not evaluated." in text and "- License: none was named." in text
    assert "base_model: someone/model\n" in text and "license:" not in text
    assert "every SAE began with random weights" in card(release, "someone/saes")
