"""In which precision the encoder's product is computed."""

from __future__ import annotations

import torch


def product_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of the encoder's product for `float32` or `bf16` on this device; None is that of the weights.

    bf16 falls back to float32 where the hardware has no instructions for it, since emulating it is slower.
    """
    return torch.bfloat16 if precision == "bf16" and has_bf16(device) else None


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
