"""Seconds and memory on a GPU by arithmetic: calculated from data sheets, not measured.

Each part of the work takes the longer of its FLOPs over a rate and its bytes over a bandwidth; parts follow one
another. docs/roofline.md has the formulas, the numbers of each GPU with their sources, and what is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from groupsae.errors import ConfigError, unknown

TERA, GIGA = 1e12, 1e9
PRODUCT_SHARE = 0.8
"""Share of the data sheet's rate that a large product reaches (assumed)."""
MODEL_SHARE = 0.32
"""Share of it that a whole forward pass of a language model reaches (assumed)."""
BANDWIDTH_SHARE = 0.9
"""Share of the data sheet's bandwidth that a kernel which streams reaches (assumed)."""
CACHE_SHARE = 0.8
"""A matrix smaller than this share of the L2 cache is gathered from there (assumed)."""
LAUNCH_SECONDS = 5e-6
"""Time to hand one kernel to the GPU (assumed); it counts where the kernels themselves are shorter."""
STEP_LAUNCHES, BLOCK_LAUNCHES = 60, 20
"""Kernels of one SAE's step, and of one block of a language model."""
ADAM_BYTES = 38
"""Bytes per weight and step: gradient written 4, read for its norm 4; Adam 28 (reads w, m, v, g; writes w, m, v); a
copy in bfloat16 written 2."""
BLOCK = 16
"""Latents per block in the first stage of top-k."""
RADIX_BITS = 2
"""Bits that one pass of `torch.topk` settles."""


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: FLOP/s without sparsity, bytes per second, bytes.

    `bfloat16` and `float32` are rates of products, `bandwidth` that of memory, `cache` the size of the L2 cache and
    `cache_bandwidth` its rate in gathers (assumed). `link` is the rate between GPUs of a node and `network` between
    nodes, per GPU and direction (assumed: NVLink or PCIe, and 400, 200 or 100 Gbit/s per GPU).
    """

    name: str
    title: str
    bfloat16: float
    float32: float
    bandwidth: float
    memory: float
    cache: float
    cache_bandwidth: float
    link: float
    network: float

    def rate(self, dtype: str) -> float:
        """FLOP/s of products in `float32`, `bfloat16` or `float16`; TF32 is not used."""
        return self.float32 if dtype == "float32" else self.bfloat16


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", "H100 SXM 80 GB", 989 * TERA, 67 * TERA, 3.35 * TERA, 80 * GIGA, 50 * 2**20, 5.5 * TERA,
            450 * GIGA, 50 * GIGA),
        Gpu("a100", "A100 SXM 80 GB", 312 * TERA, 19.5 * TERA, 2.04 * TERA, 80 * GIGA, 40 * 2**20, 4.0 * TERA,
            300 * GIGA, 25 * GIGA),
        Gpu("l40s", "L40S 48 GB", 362 * TERA, 91.6 * TERA, 0.864 * TERA, 48 * GIGA, 96 * 2**20, 3.5 * TERA,
            25 * GIGA, 12.5 * GIGA),
        Gpu("4090", "GeForce RTX 4090 24 GB", 165 * TERA, 82.6 * TERA, 1.008 * TERA, 24 * GIGA, 72 * 2**20,
            4.0 * TERA, 25 * GIGA, 12.5 * GIGA),
    )
}  # fmt: skip


@dataclass(frozen=True)
class StepShape:
    """One SAE's step: width `d_model`, `d_sae` latents, `k` of them active, `batch_tokens` per step, the products'
    precision."""

    d_model: int
    d_sae: int
    k: int
    batch_tokens: int
    dtype: str

    @property
    def product_flops(self) -> float:
        """FLOPs per token of one product with a D x S matrix: 2 D S."""
        return 2 * self.d_model * self.d_sae

    @property
    def bytes_per_number(self) -> int:
        """Bytes of a pre-activation, and of a number that is gathered."""
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class StepParts:
    """Calculated seconds per token of one SAE's step, by part; `total` is their sum."""

    encoder: float
    pre_activations: float
    top_k: float
    gathers: float
    optimizer: float
    launches: float

    @property
    def total(self) -> float:
        """Seconds per token of the whole step."""
        return sum(getattr(self, field.name) for field in fields(self))


def gpu_named(name: str) -> Gpu:
    """The GPU of this name. Raises ConfigError for one that is not known, naming those that are."""
    if name not in GPUS:
        raise ConfigError(unknown("GPU", name, GPUS))
    return GPUS[name]


def model_seconds(gpu: Gpu, forward_flops: float, num_blocks: int, row_tokens: int, dtype: str) -> float:
    """Seconds per token of the language model: FLOPs / (rate * 0.32), or its launches where those take longer.

    `forward_flops` per token through `num_blocks` blocks, in passes of `row_tokens` tokens.
    """
    work = forward_flops / (MODEL_SHARE * gpu.rate(dtype))
    return max(work, num_blocks * BLOCK_LAUNCHES * LAUNCH_SECONDS / row_tokens)


def step_parts(gpu: Gpu, step: StepShape) -> StepParts:
    """Seconds per token of one SAE's step. b = bytes per number, W = 0.9 bandwidth, B = batch_tokens:

    encoder          2 D S / (0.8 rate)
    pre-activations  3 b S / W              written by the product; read and written to add the bias
    top-k            _top_k_bytes / W       two stages: block maxima, then the blocks chosen by them
    gathers          4 b K D / W            decoding, gradient of the latents, two weight gradients; from L2 where
                                            the matrix lies there; or dense products, where those take less
    optimizer        38 * 2 D S / (B W)     clipping and Adam
    launches         60 * 5 us / B, where the above takes less than that, the difference
    """
    stream = BANDWIDTH_SHARE * gpu.bandwidth
    encoder = step.product_flops / (PRODUCT_SHARE * gpu.rate(step.dtype))
    pre_activations = 3 * step.bytes_per_number * step.d_sae / stream
    top_k = top_k_bytes(step) / stream
    in_cache = step.d_model * step.d_sae * step.bytes_per_number <= CACHE_SHARE * gpu.cache
    near = gpu.cache_bandwidth if in_cache else stream
    gathers = 4 * step.bytes_per_number * step.k * step.d_model / near
    dense = 4 * encoder + 4 * step.bytes_per_number * step.d_sae / stream
    optimizer = ADAM_BYTES * step.product_flops / (step.batch_tokens * stream)
    work = encoder + pre_activations + top_k + min(gathers, dense) + optimizer
    launches = max(0.0, STEP_LAUNCHES * LAUNCH_SECONDS / step.batch_tokens - work)
    return StepParts(encoder, pre_activations, top_k, min(gathers, dense), optimizer, launches)


def top_k_bytes(step: StepShape) -> float:
    """Bytes per token of an exact top-k in two stages, b per number: b S + p b (S / 16 + 16 K), at most p b S.

    The pre-activations are read once for the maxima of their blocks of 16; then `torch.topk`, a radix select of p =
    8 b / 2 passes, runs over the maxima and over the K blocks that hold the largest.
    """
    size, passes = step.bytes_per_number, 8 * step.bytes_per_number // RADIX_BITS
    two_stages = size * step.d_sae + passes * size * (step.d_sae / BLOCK + BLOCK * step.k)
    return min(two_stages, passes * size * step.d_sae)
