"""What the distance pass costs beside the language model it rides on, for 32 layers of width 2048.

    python bench/distance_cost.py

The model is a random GPT-NeoX of that width; 4 of its 32 blocks are run and counted 8 times. The
distance pass is timed on random activations held in memory: angles of all pairs, in one pass, and
the means of the pass before it, each against the forward pass that it rides on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from groupsae.grouping.moments import Centering, _sum_over_tokens, token_blocks
from transformers import GPTNeoXConfig, GPTNeoXModel

from groupsae.grouping.angular import _summed_angles

LAYERS, WIDTH, RUN, ROWS, LENGTH = 32, 2048, 4, 2, 256


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median over repeated runs, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


@torch.no_grad()
def main() -> None:
    """Time all three, and print the shares."""
    config = GPTNeoXConfig(
        hidden_size=WIDTH, num_hidden_layers=RUN, num_attention_heads=16, intermediate_size=4 * WIDTH, vocab_size=512
    )
    model = GPTNeoXModel(config).eval()
    ids = torch.randint(512, (ROWS, LENGTH))
    forward = median_seconds(lambda: model(ids, use_cache=False)) * LAYERS / RUN
    x_LND = torch.randn(LAYERS, ROWS * LENGTH, WIDTH)
    center = Centering(torch.zeros(LAYERS, WIDTH, dtype=torch.float64), x_LND.device)
    angles = median_seconds(lambda: _summed_angles(x_LND, center))
    means = median_seconds(lambda: [_sum_over_tokens(block) for block in token_blocks(x_LND)])
    print(f"{LAYERS} layers of width {WIDTH}, {ROWS * LENGTH} tokens, {torch.get_num_threads()} threads")
    print(f"language model, forward   {forward:7.3f} s")
    print(f"angles of all pairs       {angles:7.3f} s  {angles / forward:.2%} of the forward pass it rides on")
    print(f"means, a pass before      {means:7.3f} s  {means / forward:.2%} of the forward pass it rides on")
    print(f"both passes               {angles + means:7.3f} s  {(angles + means) / (2 * forward):.2%} of both")


if __name__ == "__main__":
    main()
