"""Rotary embedding tables: plain, linear, Llama 3.1 and YaRN scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hpcserve.errors import ModelError, UnsupportedModelError
from hpcserve.ops.rope import cos_sin_cache


class RotaryEmbedding(nn.Module):
    """The table of one model.  cos_sin: fp32 [max_position, head_dim], cosines then sines."""

    cos_sin: torch.Tensor

    def __init__(
        self,
        head_dim: int,
        max_position: int,
        theta: float,
        scaling: Mapping[str, Any] | None,
        max_position_embeddings: int,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        inv_freq, factor = inverse_frequencies(head_dim, theta, scaling, max_position_embeddings)
        table = cos_sin_cache(inv_freq, max_position, factor)
        self.register_buffer("cos_sin", table, persistent=False)


def inverse_frequencies(
    head_dim: int,
    theta: float,
    scaling: Mapping[str, Any] | None,
    max_position_embeddings: int,
) -> tuple[torch.Tensor, float]:
    """(fp32 [head_dim / 2] on the default device, factor on cosines and sines).

    scaling: the checkpoint's dict with its `rope_type`, or None.
    Raises UnsupportedModelError for another kind, ModelError where a field is missing.
    """
    # The powers are taken on the CPU: a GPU's pow may differ in the last bit.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    plain = 1.0 / theta**exponents
    kind = "default" if scaling is None else str(scaling["rope_type"])
    fields = scaling or {}
    if float(fields.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError("rope with partial_rotary_factor is not supported")
    factor = 1.0
    try:
        if kind == "linear":
            plain = plain / float(fields["factor"])
        elif kind == "llama3":
            plain = _llama3(plain, fields)
        elif kind == "yarn":
            plain, factor = _yarn(plain, head_dim, theta, fields, max_position_embeddings)
        elif kind != "default":
            raise UnsupportedModelError(
                f"rope type {kind!r} is not supported; supported: default, linear, llama3, yarn"
            )
    except KeyError as error:
        raise ModelError(f"rope scaling of type {kind!r} has no field {error}") from error
    return plain.to(torch.get_default_device()), factor


def _llama3(plain: torch.Tensor, fields: Mapping[str, Any]) -> torch.Tensor:
    """Slow waves are stretched by `factor`, fast ones kept, those between blended (Llama 3.1)."""
    factor = float(fields["factor"])
    low, high = float(fields["low_freq_factor"]), float(fields["high_freq_factor"])
    turns = float(fields["original_max_position_embeddings"]) * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - kept) * plain / factor + kept * plain


def _yarn(
    plain: torch.Tensor,
    head_dim: int,
    theta: float,
    fields: Mapping[str, Any],
    max_position_embeddings: int,
) -> tuple[torch.Tensor, float]:
    """Peng et al., 2023, "YaRN": interpolation of slow waves, and a factor on the attention."""
    factor = float(fields["factor"])
    original = float(fields.get("original_max_position_embeddings") or max_position_embeddings)

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(float(fields.get("beta_fast") or 32))
    high = dimension(float(fields.get("beta_slow") or 1))
    if fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    index = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    interpolated = ((index - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    blended = interpolated * plain / factor + (1.0 - interpolated) * plain
    return blended, _yarn_attention_factor(factor, fields)


def _yarn_attention_factor(factor: float, fields: Mapping[str, Any]) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0

    if fields.get("attention_factor") is not None:
        return float(fields["attention_factor"])
    if fields.get("mscale") and fields.get("mscale_all_dim"):
        return scale(float(fields["mscale"])) / scale(float(fields["mscale_all_dim"]))
    return scale(1.0)
