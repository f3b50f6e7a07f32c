"""The code of docs/steering.md runs, block after block, on the built-in model."""

import re
from pathlib import Path

import torch
from attach_cases import suite_for

from groupsae.model_structure import residual_stream
from groupsae.models import load_model

DOC = Path(__file__).parents[2] / "docs" / "steering.md"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = load_model("demo", device="cpu")
    suite_for(model, 128, layers=residual_stream(model)[:7]).save("suites/demo")
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    with torch.no_grad():
        for block in blocks:
            exec(compile(block, DOC.name, "exec"), names)
    assert names["latents"]["layers.3"].dense().shape[2] == 4 * 128
    assert not any("forward" in vars(module) for module in names["model"].modules())
