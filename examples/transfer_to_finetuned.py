"""A model was fine-tuned: are its old SAEs still good, and what does it cost to bring them up to date?

    python examples/train_a_suite.py
    python examples/transfer_to_finetuned.py

Fine-tunes the built-in model, which was trained on code, on Python's manual for a few steps. Then compares, on the
fine-tuned model: the old suite as it is; the old suite trained on for a few tokens; and SAEs from scratch with as many.
"""

import copy
import pydoc_data.topics

import torch

import groupsae as gs

MANUAL = pydoc_data.topics.__file__
CONTEXT, MAX_TOKENS, STEPS, TOKENS = 128, 30_000, 25, 8_000
LAYERS = ("layers.1", "layers.3", "layers.5")


def main() -> None:
    """Fine-tune, transfer, compare."""
    suite = gs.Suite.load("suites/demo")
    model, tokenizer = gs.load_model("demo", device="cpu")
    rows = gs.TokenRows.from_files(MANUAL, tokenizer, context_length=CONTEXT, max_tokens=MAX_TOKENS)
    tuned = fine_tuned(model, rows)
    hookpoints, partition = suite.partition.hookpoints, gs.Partition.singletons(LAYERS)
    source = gs.Harvester(tuned, rows, hookpoints)
    sae = suite.saes[suite.partition.names[0]].config

    settings = gs.TrainConfig(num_tokens=TOKENS, batch_tokens=512, scale_tokens=TOKENS, learning_rate=4e-3)
    gentle = settings.model_copy(update={"learning_rate": 4e-3 / 3})  # a warm start needs smaller steps
    start = gs.WarmStart(suite, "group", run="suites/demo")
    warm = gs.train(source, partition, sae, gentle, buffer_tokens=4_096, start=start)
    scratch = gs.train(source, partition, sae, settings, buffer_tokens=4_096)
    print(f"{'FVU on held-out text':<32}", *LAYERS)
    report("old suite, old model", suite, gs.Harvester(model, rows, hookpoints))
    report("old suite, fine-tuned model", suite, source)
    report(f"trained on for {TOKENS:,} tokens", warm, source)
    report(f"from scratch, {TOKENS:,} tokens", scratch, source)


def fine_tuned(model, rows):
    """A copy of the model after some steps of Adam."""
    tuned = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=3e-4)
    losses = []
    for step in range(STEPS):
        ids_BT = rows[list(range(8 * step, 8 * step + 8))]
        losses.append(tuned(input_ids=ids_BT, labels=ids_BT).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    print(f"fine-tuned: from {losses[0].item():.2f} to {losses[-1].item():.2f} nats per token in {STEPS} steps")
    return tuned.requires_grad_(False).eval()


def report(title, suite, source) -> None:
    """A line of the table."""
    found = gs.evaluate_reconstruction(suite, source.held_out(), num_tokens=TOKENS // 4)
    print(f"{title:<32}", *(f"{found[layer].fvu:8.3f}" for layer in LAYERS))


if __name__ == "__main__":
    main()
