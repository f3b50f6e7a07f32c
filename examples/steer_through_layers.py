"""Follow one latent through the layers of its group, and steer it at one layer or at all of them.

    python examples/train_a_suite.py
    python examples/steer_through_layers.py

Layers of a group share an SAE, so latent 17 is the same feature at each of them: that is what makes it possible to
follow it through the model, and to change it everywhere at once.
"""

import torch

import groupsae as gs

IMPORTS = ["import os\nimport sys\nimport json\nimport time\n", "from typing import Any\nfrom pathlib import Path\n"]
OTHER = ["    x = a + b\n    y = x * 2\n    return y\n", "for i in range(10):\n    print(i)\n    total += i\n"]
PROMPT, WORDS = '"""A module."""\n\n', ("import", "from")
STRENGTH = 0.2  # in units of a layer's average activation


def main() -> None:
    """Find a latent, follow it, steer it."""
    suite = gs.Suite.load("suites/demo")
    model, tokenizer = gs.load_model("demo", device="cpu")
    group, layers = max(zip(suite.partition.names, suite.partition.groups, strict=True), key=lambda pair: len(pair[1]))

    latent = most_telling(suite, model, tokenizer, layers)
    print(f"latent {latent} of group {group}: its value at each token, layer by layer")
    with torch.no_grad(), suite.attach(model) as latents:
        model(**batch_of(tokenizer, [IMPORTS[0][:20]]))
    tokens = tokenizer.convert_ids_to_tokens(batch_of(tokenizer, [IMPORTS[0][:20]])["input_ids"][0])
    print(" " * 9, *(f"{tokenizer.convert_tokens_to_string([token])!r:>9}" for token in tokens))
    for layer, values_T in zip(layers, latents.through_layers(group, latent)[:, 0], strict=True):
        print(f"{layer:<9}", *(f"{value:9.2f}" for value in values_T.tolist()))

    print(f"\nAfter {PROMPT!r}: the chance of {' or '.join(WORDS)}, and what the model writes")
    one, many = layers[0], len(layers)
    for title, edit in {
        "no steering": {"layer": one, "strength": 0.0},
        f"{one}, {STRENGTH:g}": {"layer": one, "strength": STRENGTH},
        f"{one}, {many} x {STRENGTH:g}": {"layer": one, "strength": many * STRENGTH},
        f"all of {group}, {STRENGTH:g}": {"group": group, "strength": STRENGTH},
    }.items():
        chance, text = steered(suite, model, tokenizer, latent, edit)
        print(f"{title:<24} {chance:6.2%}  {text!r}")


@torch.no_grad()
def steered(suite, model, tokenizer, latent, edit) -> tuple[float, str]:
    """The chance that the next token is one of the words, and what the model writes, under an edit."""
    prompt = batch_of(tokenizer, [PROMPT])
    words = [tokenizer(word)["input_ids"][0] for word in WORDS]
    with suite.attach(model, record=False) as latents:
        latents.steer(latent=latent, **edit)
        chance = model(**prompt).logits[0, -1].softmax(-1)[words].sum().item()
        ids = model.generate(**prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
    return chance, tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])


@torch.no_grad()
def most_telling(suite, model, tokenizer, layers) -> int:
    """The latent that is larger in imports than in other code, at the layer where the difference is smallest."""
    means = []
    for texts in (IMPORTS, OTHER):
        with suite.attach(model) as latents:
            model(**batch_of(tokenizer, texts))
        means.append(torch.stack([latents[layer].dense()[latents[layer].kept_BT].mean(0) for layer in layers]))
    return (means[0] - means[1]).amin(0).argmax().item()


def batch_of(tokenizer, texts):
    """Texts as a batch, padded on the left."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


if __name__ == "__main__":
    main()
