"""Train the built-in language model: a small GPT-NeoX on this machine's Python standard library.

    python tools/train_demo_lm.py --out groupsae/text/demo/model --tokens 20_000_000

Writes weights (float16 safetensors), tokenizer and card.json (what it was trained on, how long,
and what it can do) into one folder that `groupsae.load_model` reads.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from groupsae.text.demo.text import standard_library_files

END = "<|endoftext|>"
CONTEXT = 256
PEAK_RATE = 3e-3
ROW_BATCH = 16
MICRO_BATCH = 8  # logits below 32 MiB: larger ones are mapped afresh at every step
REPEATED_SHARE = 1 / 16  # rows that hold one half-length passage twice, so that copying pays early


def train_tokenizer(files: list[Path], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly these files."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet)
    bpe.train_from_iterator((read(path) for path in files), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, bos_token=END, unk_token=END, model_max_length=CONTEXT
    )


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def tokenize(files: list[Path], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All files' tokens in one line, each file after an end-of-text token."""
    pieces = [[tokenizer.eos_token_id, *tokenizer.encode(read(path), verbose=False)] for path in files]
    return torch.tensor([token for piece in pieces for token in piece])


def batch_at(tokens: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """Rows (B, T) of step `step`: random windows, a few of them one half twice."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(tokens) - CONTEXT, (ROW_BATCH,), generator=random)
    rows = torch.stack([tokens[start : start + CONTEXT] for start in starts])
    repeated = torch.rand(ROW_BATCH, generator=random) < REPEATED_SHARE
    rows[repeated, CONTEXT // 2 :] = rows[repeated, : CONTEXT // 2]
    return rows


def token_losses(model: GPTNeoXForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of each next token, (B, T-1)."""
    hidden = model.gpt_neox(rows, use_cache=False).last_hidden_state[:, :-1]
    logits = model.get_output_embeddings()(hidden).flatten(0, 1)
    return F.cross_entropy(logits, rows[:, 1:].flatten(), reduction="none").view(len(rows), -1)


@torch.no_grad()
def evaluate(model: GPTNeoXForCausalLM, train: torch.Tensor, held_out: torch.Tensor) -> dict[str, float]:
    """Losses in nats per token: the model, unigram and bigram on the same tokens, and copying."""
    model.eval()
    rows = held_out[: len(held_out) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = torch.cat([token_losses(model, chunk) for chunk in rows.split(MICRO_BATCH)])
    random = torch.Generator().manual_seed(1)
    halves = torch.randint(1, model.config.vocab_size, (64, CONTEXT // 2), generator=random)
    passages = rows[torch.randperm(len(rows), generator=random)[:64], : CONTEXT // 2]
    result = {"model": losses.mean().item(), "held_out_tokens": losses.numel()}
    for name, half in (("random", halves), ("text", passages)):
        loss = token_losses(model, torch.cat([half, half], dim=1))
        result[f"repeated_{name}_first_half"] = loss[:, : CONTEXT // 2 - 1].mean().item()
        result[f"repeated_{name}_second_half"] = loss[:, CONTEXT // 2 :].mean().item()
    model.train()
    return result | ngram_losses(train, rows, model.config.vocab_size)


def ngram_losses(train: torch.Tensor, rows: torch.Tensor, vocab_size: int) -> dict[str, float]:
    """Unigram and bigram losses; the bigram is smoothed by the unigram, with the strength that suits it best."""
    unigram = np.bincount(train.numpy(), minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs = np.bincount(train[:-1].numpy() * vocab_size + train[1:].numpy(), minlength=vocab_size**2)
    before, after = rows[:, :-1].numpy(), rows[:, 1:].numpy()
    seen = pairs[before * vocab_size + after]
    total = pairs.reshape(vocab_size, vocab_size).sum(1)[before]
    bigram = min(
        -np.log((seen + strength * unigram[after]) / (total + strength)).mean() for strength in (1, 3, 10, 30, 100)
    )
    return {"unigram": float(-np.log(unigram[after]).mean()), "bigram": float(bigram)}


def learning_rate_at(step: int, steps: int) -> float:
    """Share of the peak: 2 % warm-up, constant, linear to zero over the last 40 %."""
    return min(1.0, (step + 1) / (0.02 * steps), (steps - step) / (0.4 * steps))


def optimizers_for(model: GPTNeoXForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms and biases."""
    matrices = [p for p in model.gpt_neox.layers.parameters() if p.ndim == 2]
    in_blocks = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_blocks]
    return [
        torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def train(args: argparse.Namespace) -> None:
    """Tokenize, train, evaluate, save."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(standard_library_files(held_out=False), args.vocab_size)
    train_tokens = tokenize(standard_library_files(held_out=False), tokenizer)
    held_out = tokenize(standard_library_files(held_out=True), tokenizer)
    print(f"{len(train_tokens):,} training tokens, {len(held_out):,} held out", flush=True)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=args.vocab_size,
            hidden_size=args.d_model,
            num_hidden_layers=args.blocks,
            num_attention_heads=4,
            intermediate_size=4 * args.d_model,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            use_cache=False,
        )
    )
    optimizers = optimizers_for(model)
    steps = args.tokens // (ROW_BATCH * CONTEXT)
    start = time.time()
    for step in range(steps):
        loss = backward(model, batch_at(train_tokens, step, args.seed))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * learning_rate_at(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            rate = (step + 1) * ROW_BATCH * CONTEXT / (time.time() - start)
            print(f"step {step}/{steps} loss {loss:.3f} {rate:,.0f} tokens/s", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            finished = copy.deepcopy(model).half()
            losses = evaluate(copy.deepcopy(finished).float(), train_tokens, held_out)
            card = describe(args, model, len(train_tokens), step + 1, time.time() - start, losses)
            save(finished, tokenizer, card, args.out)
            print(json.dumps(losses), flush=True)


def backward(model: GPTNeoXForCausalLM, rows: torch.Tensor) -> float:
    """Accumulate the gradient of the mean loss over rows (B, T); return that loss."""
    total = 0.0
    for chunk in rows.split(MICRO_BATCH):
        loss = token_losses(model, chunk).mean() * len(chunk) / len(rows)
        loss.backward()
        total += loss.item()
    return total


def describe(
    args: argparse.Namespace, model: GPTNeoXForCausalLM, distinct: int, steps: int, seconds: float, losses: dict
) -> dict:
    """The model's card: what it was trained on, how, and what it can do."""
    return {
        "data": "the .py files of Python's standard library, without tests, site-packages, encodings, pydoc_data",
        "python": platform.python_version(),
        "split": "by file: sha256 of the path, one tenth held out",
        "training_files": len(standard_library_files(held_out=False)),
        "held_out_files": len(standard_library_files(held_out=True)),
        "distinct_training_tokens": distinct,
        "trained_tokens": steps * ROW_BATCH * CONTEXT,
        "repeated_rows_share": REPEATED_SHARE,
        "steps": steps,
        "minutes": round(seconds / 60, 1),
        "threads": args.threads,
        "seed": args.seed,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss_in_nats_per_token": losses,
    }


def save(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, card: dict, out: Path) -> None:
    """Everything into a fresh folder, then into place."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        name_old_class(Path(scratch) / "tokenizer_config.json")
        (Path(scratch) / "card.json").write_text(json.dumps(card, indent=2) + "\n")
        out.mkdir(exist_ok=True)
        for file in Path(scratch).iterdir():
            shutil.move(file, out / file.name)


def name_old_class(path: Path) -> None:
    """Name the tokenizer's class as transformers 4 knows it, too; 5 reads the same tokenizer under either name."""
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("groupsae/text/demo/model"))
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
