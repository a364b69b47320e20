"""How many parameters and how much KV a model has, from its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcserve.errors import ModelError, ModelNotFoundError

_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0}


@dataclass(frozen=True)
class ModelShape:
    """Numbers of parameters: `embedding` (with the output matrix), `attention` and `mlp` of all
    layers, `experts` of those MLPs that are split over experts.

    active: parameters that one token uses.  kv_heads, head_dim: of the cache; an MLA cache is one
    head of `head_dim` values (latent and rope) and counts once, not for k and v.
    """

    num_layers: int
    hidden_size: int
    vocab_size: int
    kv_heads: int
    head_dim: int
    is_mla: bool
    embedding: int
    attention: int
    mlp: int
    experts: int
    active: int
    num_experts: int
    max_positions: int
    weight_bytes: float
    kv_bytes: float

    @property
    def parameters(self) -> int:
        return self.embedding + self.attention + self.mlp + self.experts

    def kv_bytes_per_token(self, tp: int = 1, pp: int = 1) -> float:
        """On one GPU; heads are copied where there are fewer than GPUs."""
        heads = 1 if self.is_mla else max(1, -(-self.kv_heads // tp))
        layers = -(-self.num_layers // pp)
        return (1 if self.is_mla else 2) * layers * heads * self.head_dim * self.kv_bytes

    def weights_bytes(self, tp: int = 1, pp: int = 1) -> float:
        """On the fullest GPU: embedding and output matrix are at the ends of the pipeline, also
        where they are the same."""
        share = -(-self.num_layers // pp) / self.num_layers
        layers = (self.attention + self.mlp + self.experts) * share
        ends = self.embedding if pp == 1 else self.vocab_size * self.hidden_size
        return (layers + ends) / tp * self.weight_bytes


def load_shape(model: str | Path, dtype: str = "auto") -> ModelShape:
    """Of the folder (or config.json) `model`.

    Raises ModelNotFoundError where there is none here, ModelError for one without the fields.
    """
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ModelNotFoundError(f"there is no config.json at {path}; give the model's folder")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return shape_of(raw, dtype)
    except KeyError as error:
        raise ModelError(f"{path} has no field {error}: cannot tell the model's size") from error
    except ValueError as error:
        raise ModelError(f"cannot read {path}: {error}") from error


def shape_of(raw: Mapping[str, Any], dtype: str = "auto") -> ModelShape:
    """From the fields that Hugging Face's decoder configs share; a missing one is a KeyError."""
    outer = raw
    raw = {**raw, **raw.get("text_config", {})}
    layers, hidden, vocab = raw["num_hidden_layers"], raw["hidden_size"], raw["vocab_size"]
    heads = raw["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    head_dim = raw.get("head_dim") or hidden // heads
    is_mla = bool(raw.get("kv_lora_rank"))
    per_layer = (
        _mla(raw, hidden, heads) if is_mla else _attention(raw, hidden, heads, kv_heads, head_dim)
    )
    moe_layers, num_experts = _moe_layers(raw, layers)
    expert = 3 * hidden * (raw.get("moe_intermediate_size") or raw.get("intermediate_size") or 0)
    per_token = raw.get("num_experts_per_tok") or 1
    dense = 3 * hidden * raw.get("intermediate_size", 0) * (layers - moe_layers)
    shared = (_shared_experts(raw, hidden) + hidden * num_experts) * moe_layers
    attention = (per_layer + 2 * hidden) * layers + hidden
    embedding = vocab * hidden * (1 if raw.get("tie_word_embeddings") else 2)
    experts = expert * num_experts * moe_layers
    used = expert * per_token * moe_layers
    plain = dtype if dtype != "auto" else raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"
    width = _BYTES.get(plain, 2.0)
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        vocab_size=vocab,
        kv_heads=1 if is_mla else kv_heads,
        head_dim=raw["kv_lora_rank"] + raw["qk_rope_head_dim"] if is_mla else head_dim,
        is_mla=is_mla,
        embedding=embedding,
        attention=attention,
        mlp=dense + shared,
        experts=experts,
        active=attention + dense + shared + used + vocab * hidden,
        num_experts=num_experts,
        max_positions=raw["max_position_embeddings"],
        weight_bytes=_quantized(outer) or width,
        kv_bytes=width if width <= 2 else 4.0,
    )


def _attention(raw: Mapping[str, Any], hidden: int, heads: int, kv_heads: int, dim: int) -> int:
    weights = 2 * hidden * heads * dim + 2 * hidden * kv_heads * dim
    if raw.get("attention_bias") or raw.get("model_type") in ("qwen2", "qwen2_moe"):
        weights += (heads + 2 * kv_heads) * dim
    if raw.get("model_type") in ("qwen3", "qwen3_moe"):
        weights += 2 * dim  # norms of queries and keys
    return weights


def _mla(raw: Mapping[str, Any], hidden: int, heads: int) -> int:
    """Multi-head latent attention, as in DeepSeek-V2 and V3."""
    rope, nope = raw["qk_rope_head_dim"], raw["qk_nope_head_dim"]
    latent, value, query = raw["kv_lora_rank"], raw["v_head_dim"], raw.get("q_lora_rank")
    width = heads * (nope + rope)
    weights = hidden * query + query + query * width if query else hidden * width
    weights += hidden * (latent + rope) + latent + latent * heads * (nope + value)
    return int(weights + heads * value * hidden)


def _moe_layers(raw: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """(layers with experts, experts of each)."""
    experts = next(
        (raw[k] for k in ("num_experts", "num_local_experts", "n_routed_experts") if raw.get(k)), 0
    )
    if not experts:
        return 0, 0
    step = raw.get("decoder_sparse_step") or raw.get("moe_layer_freq") or 1
    first = raw.get("first_k_dense_replace", 0)
    only_dense = set(raw.get("mlp_only_layers") or ())
    chosen = [
        layer
        for layer in range(first, layers)
        if layer not in only_dense and (layer + 1) % (step if isinstance(step, int) else 1) == 0
    ]
    return len(chosen), experts


def _shared_experts(raw: Mapping[str, Any], hidden: int) -> int:
    if raw.get("shared_expert_intermediate_size"):  # Qwen2-MoE, with a gate
        return int(3 * hidden * raw["shared_expert_intermediate_size"] + hidden)
    return int(
        3 * hidden * raw.get("moe_intermediate_size", 0) * (raw.get("n_shared_experts") or 0)
    )


def _quantized(raw: Mapping[str, Any]) -> float | None:
    """Bytes per weight of a quantized checkpoint."""
    config = raw.get("quantization_config") or {}
    method = config.get("quant_method", "")
    if method == "fp8":
        return 1.0
    if config.get("bits"):
        return float(config["bits"]) / 8 + 0.06  # and the scales of groups of 128 or so
    return None
