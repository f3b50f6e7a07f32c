"""Train SAEs for all layers of a model, as one SAE per group of layers that look alike.

    python examples/train_a_suite.py

Writes suites/demo, which the other examples read. The built-in model and the standard library of your Python are
small enough for a laptop; for a model of your own, change MODEL, TEXT and the numbers of tokens.
"""

from pathlib import Path

import groupsae as gs

MODEL = "demo"  # a hub id, a directory, or a .gguf file
TEXT = "demo"  # files and folders, or hf:NAME
FOLDER = Path("suites/demo")
CONTEXT, MAX_TOKENS, TOKENS = 128, 200_000, 40_000  # per row; read at most; seen by each SAE


def main() -> None:
    """Compare the layers, group them, train, evaluate, save."""
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER} exists; remove it to train again.")
    model, tokenizer = gs.load_model(MODEL)
    rows = gs.TokenRows.from_files(TEXT, tokenizer, context_length=CONTEXT, max_tokens=MAX_TOKENS)
    layers = gs.residual_stream(model)[:-1]  # every block but the last
    source = gs.Harvester(model, rows, layers)  # one forward pass feeds every layer

    distances = gs.angular_distances(source, num_tokens=TOKENS // 4)
    groups = gs.group_layers(distances, max_amad=0.2)
    print(f"{len(layers)} layers in {len(groups)} groups: {groups}")

    settings = gs.TrainConfig(num_tokens=TOKENS, batch_tokens=512, scale_tokens=TOKENS // 4, learning_rate=4e-3)
    suite = gs.train(source, groups, gs.TopKConfig(expansion=8, k=16), settings, buffer_tokens=16_384)

    found = gs.evaluate_reconstruction(suite, source.held_out(), num_tokens=TOKENS // 8)
    for layer, result in found.items():
        print(f"{layer}  FVU {result.fvu:.3f}  active latents per token {result.l0:.1f}")
    suite.save(FOLDER)
    print(f"saved in {FOLDER}; gs.Suite.load({str(FOLDER)!r}) reads it")


if __name__ == "__main__":
    main()
