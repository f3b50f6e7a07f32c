"""How many groups? FVU and cost of 1, 2, 4 and 7 SAEs for the seven layers of the built-in model.

    python examples/compare_groups.py

All are trained on the same number of tokens, so those with fewer SAEs cost less. The last column divides by what one
SAE per layer costs: a fair comparison gives the cheaper ones more tokens (docs/results.md has that one).
"""

import groupsae as gs

CONTEXT, MAX_TOKENS, TOKENS = 128, 200_000, 16_000
SAE = gs.TopKConfig(expansion=8, k=16)


def main() -> None:
    """Train a suite for each number of groups, and print a table."""
    model, tokenizer = gs.load_model("demo")
    rows = gs.TokenRows.from_files("demo", tokenizer, context_length=CONTEXT, max_tokens=MAX_TOKENS)
    layers = gs.residual_stream(model)[:-1]
    source = gs.Harvester(model, rows, layers)
    distances = gs.angular_distances(source, num_tokens=TOKENS // 2)

    settings = gs.TrainConfig(num_tokens=TOKENS, batch_tokens=512, scale_tokens=TOKENS // 2, learning_rate=4e-3)
    step = 10 * source.d_model * SAE.width(source.d_model)  # FLOPs per token of a dense TopK step, as published
    forward = 24 * len(layers) * source.d_model**2  # and of the model, without attention
    print("groups  mean FVU  worst FVU  cost     layers")
    for count in (1, 2, 4, len(layers)):
        groups = gs.group_layers(distances, groups=count)
        suite = gs.train(source, groups, SAE, settings, buffer_tokens=8_192)
        found = gs.evaluate_reconstruction(suite, source.held_out(), num_tokens=TOKENS // 4)
        fvu = [result.fvu for result in found.values()]
        cost = (forward + count * step) / (forward + len(layers) * step)
        print(f"{count:>6}  {sum(fvu) / len(fvu):8.3f}  {max(fvu):9.3f}  {cost:5.0%}    {groups}")


if __name__ == "__main__":
    main()
