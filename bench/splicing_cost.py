"""What splicing one layer at a time costs as the model gets deeper, resumed at the splice and from the bottom.

    python bench/splicing_cost.py

Random GPT-NeoX models of several depths. For each: every layer but the last spliced once. From the
bottom that is L - 1 passes; resumed at the splice, the blocks below it are not computed, and what is
left is (L - 1) / 2 passes: linear in layers, with half the slope. Times are processor time, which a
busy machine moves least, in clean passes of the same model; blocks are counted by hooks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from groupsae.evaluation.splice import CleanPass
from groupsae.model_structure import base_model

WIDTH, ROWS, LENGTH, VOCABULARY, REPEATS = 128, 4, 256, 512, 3
DEPTHS = (4, 8, 16, 32)


@torch.no_grad()
def main() -> None:
    """Time every depth, and print the table."""
    print(f"{WIDTH} wide, {ROWS} rows of {LENGTH}, {torch.get_num_threads()} threads; least of {REPEATS} runs")
    print("layers | from the bottom: blocks, passes | resumed: blocks, passes | passes per layer | share")
    for depth in DEPTHS:
        config = GPTNeoXConfig(
            hidden_size=WIDTH, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=4 * WIDTH,
            vocab_size=VOCABULARY, max_position_embeddings=LENGTH,
        )  # fmt: skip
        model = GPTNeoXForCausalLM(config).eval()
        whole, resumed = measure(model, depth, from_bottom=True), measure(model, depth, from_bottom=False)
        print(
            f"{depth:6d} | {whole[0]:23d} {whole[1]:8.2f} | {resumed[0]:15d} {resumed[1]:8.2f}"
            f" | {resumed[1] / (depth - 1):16.2f} | {resumed[1] / whole[1]:5.2f}"
        )


def least_seconds(work: Callable[[], object]) -> float:
    """The least processor time of repeated runs."""
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def measure(model: GPTNeoXForCausalLM, depth: int, *, from_bottom: bool) -> tuple[int, float]:
    """Blocks that are computed for all splices, and the seconds that they take in those of a clean pass."""
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH))
    hookpoints = [f"layers.{layer}" for layer in range(depth - 1)]
    clean = CleanPass(model, ids, hookpoints)
    blocks = 0

    def count(*_: object) -> None:
        nonlocal blocks
        blocks += 1

    def splice_all() -> None:
        for hookpoint in hookpoints:
            if not from_bottom:
                clean.spliced(hookpoint, clean.hidden[hookpoint])
                continue
            module = base_model(model).get_submodule(hookpoint)
            hook = module.register_forward_hook(lambda *_, kept=clean.hidden[hookpoint]: kept)
            model(ids, use_cache=False)
            hook.remove()

    handles = [block.attention.register_forward_hook(count) for block in base_model(model).layers]
    splice_all()
    for handle in handles:
        handle.remove()
    return blocks, least_seconds(splice_all) / least_seconds(lambda: model(ids, use_cache=False))


if __name__ == "__main__":
    main()
