"""Every kernel gives what the reference gives; Triton's run in its interpreter where there is no GPU."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from sae_cases import WEIGHTS, K, copies, dead, naive_losses, random_batch, random_sae

from groupsae.saes.kernels import gather
from groupsae.saes.kernels.by_name import kernel_named
from groupsae.saes.layer_maps import Bias

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NO_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
TRITON = pytest.param("triton", marks=NO_TRITON)
KERNELS = ("gather", "dense", TRITON)


@dataclass(frozen=True)
class Sizes:
    """A batch: which latents are active, and how wide it is."""

    tokens: int
    k: int
    d_model: int
    d_sae: int
    always: int = 0
    """So many latents are active on every token."""

    def indices(self):
        random = torch.Generator().manual_seed(0)
        scores_NS = torch.rand(self.tokens, self.d_sae, generator=random)
        scores_NS[:, : self.always] += 1
        return scores_NS.topk(self.k).indices.to(DEVICE)

    def numbers(self, *shape, seed, dtype=torch.float32):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


SIZES = {
    "one-token": Sizes(1, 3, 5, 7),
    "no-token": Sizes(0, 3, 5, 7),
    "odd": Sizes(9, 5, 19, 23),
    "every-latent": Sizes(5, 6, 16, 6),
    "silent-latents": Sizes(4, 1, 8, 33),
    "always-active": Sizes(37, 2, 6, 29, always=1),
    "always-active-in-two-stretches": Sizes(12, 2, 6, 12, always=1),
    "wide": Sizes(3, 2, 1100, 5),
}


def naive_rows(indices_NK, weights_NK, x_ND, d_sae):
    """For each latent the sum over its tokens of weight times x, in float64."""
    rows_SD = torch.zeros(d_sae, x_ND.shape[1], dtype=torch.float64, device=x_ND.device)
    for token, latents in enumerate(indices_NK.tolist()):
        for place, latent in enumerate(latents):
            rows_SD[latent] += weights_NK[token, place].double() * x_ND[token].double()
    return rows_SD


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """A kernel; stretches of the kernels' list are short enough to be many."""
    if request.param == "triton":
        monkeypatch.setattr("groupsae.saes.kernels.triton.SHORTEST", 2)
    return kernel_named(request.param)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_decoded_tokens_are_the_sums_of_their_rows(kernel, sizes):
    indices_NK, values_NK = sizes.indices(), sizes.numbers(sizes.tokens, sizes.k, seed=1)
    W_SD = sizes.numbers(sizes.d_sae, sizes.d_model, seed=2)
    expected_ND = torch.einsum("nk,nkd->nd", values_NK.double(), W_SD.double()[indices_NK])
    close(kernel.decode(values_NK, indices_NK, W_SD), expected_ND)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_rows_dots_and_sums_are_those_of_the_entries(kernel, sizes):
    indices_NK, values_NK = sizes.indices(), sizes.numbers(sizes.tokens, sizes.k, seed=1)
    x_ND, W_SD = (sizes.numbers(n, sizes.d_model, seed=n) for n in (sizes.tokens, sizes.d_sae))
    active = kernel.of(indices_NK, values_NK, sizes.d_sae)
    rows_SD, dots_M = active.rows_and_dots(x_ND, W_SD)
    close(rows_SD, naive_rows(indices_NK, values_NK, x_ND, sizes.d_sae))
    close(dots_M, (W_SD.double()[active.latents.long()] * x_ND.double()[active.tokens]).sum(1))
    ones_ND, twice_NK = torch.ones_like(x_ND), 2 * values_NK
    close(active.rows(ones_ND, 2 * active.values), naive_rows(indices_NK, twice_NK, ones_ND, sizes.d_sae))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_what_was_added_to_a_bias_sums_up_for_all_tokens_or_for_those_of_each_layer(kernel, sizes, layers):
    indices_NK, values_NK = sizes.indices(), sizes.numbers(sizes.tokens, sizes.k, seed=1)
    layers_N = torch.arange(sizes.tokens, device=DEVICE) % layers
    rows_SM = naive_rows(indices_NK, values_NK, torch.eye(layers, device=DEVICE)[layers_N], sizes.d_sae)
    active, rows_MS = kernel.of(indices_NK, values_NK, sizes.d_sae), sizes.numbers(layers, sizes.d_sae, seed=2)
    bias = Bias(rows_MS[0]) if layers == 1 else Bias(rows_MS, layers_N)
    found = active.sums(bias, active.values)
    assert found.shape == bias.rows.shape
    close(found.view(layers, -1), rows_SM.T)


@NO_TRITON
def test_a_latent_with_many_tokens_is_divided_among_programs():
    from groupsae.saes.kernels.triton import Stretches

    cut = Stretches.of(torch.tensor([0, 300, 300, 301]), 310)  # 300, 0, 1 and 9 entries
    lengths = (cut.lasts_U - cut.firsts_U).clamp_min(0)
    assert cut.num_extra == 1 and lengths.tolist() == [300, 0, 1, 9, 0]  # 310 is four times the mean
    cut = Stretches.of(torch.tensor([0, 900, *[900 + n for n in range(1, 15)]]), 1000)
    lengths = (cut.lasts_U - cut.firsts_U).clamp_min(0)
    assert lengths.tolist() == [250, *[1] * 14, 86, 250, 250, 150, 0]
    assert cut.ends_S1.tolist() == [0, *[3] * 16]
    assert cut.firsts_U[16:19].tolist() == [250, 500, 750]


@NO_TRITON
@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_kernels_add_up_bfloat16_in_float32_and_take_both_kinds_of_integers(integers):
    sizes, kernel = SIZES["odd"], kernel_named("triton")
    indices_NK, values_NK = sizes.indices().to(integers), sizes.numbers(9, 5, seed=1)
    x_ND, W_SD = (sizes.numbers(n, sizes.d_model, seed=n, dtype=torch.bfloat16) for n in (9, 23))
    expected_ND = torch.einsum("nk,nkd->nd", values_NK.double(), W_SD.double()[indices_NK.long()])
    close(kernel.decode(values_NK, indices_NK, W_SD), expected_ND)
    active = kernel.of(indices_NK, values_NK, 23)
    rows_SD, dots_M = active.rows_and_dots(x_ND, W_SD)
    close(rows_SD, naive_rows(indices_NK, values_NK, x_ND, 23))
    close(dots_M, (W_SD.double()[active.latents.long()] * x_ND.double()[active.tokens]).sum(1))


def test_dense_products_are_the_same_in_tiles_and_nearly_in_bfloat16(monkeypatch):
    sizes, kernel = SIZES["odd"], kernel_named("dense")
    indices_NK, values_NK = sizes.indices(), sizes.numbers(9, 5, seed=1)
    x_ND, W_SD = (sizes.numbers(n, sizes.d_model, seed=n) for n in (9, 23))

    def everything(dtype=None):
        active = kernel.of(indices_NK, values_NK, 23, dtype)
        rows_SD, dots_M = active.rows_and_dots(x_ND, W_SD)
        sums_S = active.sums(Bias(W_SD[:, 0]), dots_M)
        return kernel.decode(values_NK, indices_NK, W_SD, dtype), rows_SD, dots_M, sums_S

    whole, rounded = everything(), everything(torch.bfloat16)
    monkeypatch.setitem(gather.TILE_NUMBERS, DEVICE, 2 * 23)
    for tiled, near, expected in zip(everything(), rounded, whole, strict=True):
        torch.testing.assert_close(tiled, expected)
        assert near.dtype == torch.float32 and not torch.equal(near, expected)
        assert (near - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("dead_S", [dead(), dead(3, 7, 11)], ids=["none-dead", "some-dead"])
def test_loss_and_every_gradient_equal_the_naive_definition(kernel, dead_S):
    sae, z_ND = random_sae(), random_batch(tokens=12)
    weights = copies(sae)
    total, *_ = naive_losses(weights, z_ND, K, dead_S, 1 / 32)
    total.backward()
    sae = sae.float().to(DEVICE)
    sae.kernel = kernel
    losses = sae.losses(z_ND.float().to(DEVICE), dead_S.to(DEVICE))
    losses.total.backward()
    torch.testing.assert_close(losses.total.double().cpu(), total, rtol=1e-5, atol=0)
    for name in WEIGHTS:
        found, expected = getattr(sae, name).grad.double().cpu(), weights[name].grad
        assert (found - expected).norm() < 1e-5 * expected.norm(), name


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from groupsae.saes.kernels import triton as kernels

POINTERS = {"values": "*fp32", "weights": "*fp32", "out": "*fp32", "extra": "*fp32", "dots": "*fp32"}
LISTS = dict.fromkeys(("indices", "tokens", "latents", "firsts", "lasts", "ends"), "*i64")
tile = kernels._tile(2304)
warps = tile.pop("num_warps")
types = POINTERS | LISTS | {"x": "*bf16", "W": "*fp32", "K": "i32", "S": "i32", "D": "i32"}
for kernel, constants in (
    (kernels._decode, tile), (kernels._rows, tile | {"WITH_DOTS": True}),
    (kernels._rows, tile | {"WITH_DOTS": False}), (kernels._add_extra, {"BLOCK_D": tile["BLOCK_D"]}),
):
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    print(kernel.__name__, len(made.asm["cubin"]))
"""


@NO_TRITON
def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    ours = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE],
        env=ours | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    compiled = [line.split() for line in found.stdout.splitlines()]
    assert [name for name, _ in compiled] == ["_decode", "_rows", "_rows", "_add_extra"]
    assert all(int(size) > 0 for _, size in compiled)
