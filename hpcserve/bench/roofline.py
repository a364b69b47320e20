"""What a model must move and compute, and how fast that could be: the floor beside each figure.

A decode step of `bs` sequences with `ctx` tokens each reads the weights once and every KV entry:
    floor = max(weight bytes / bandwidth, linear FLOPs / peak) + KV bytes / bandwidth
The embedding table is not read (one row per token), lm_head is. Of a mixture of experts a step
reads the distinct experts that its tokens choose: E * (1 - (1 - k/E)**bs) with uniform routing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcserve.config.checkpoint import CheckpointConfig

#: One H200, measured: device copy, and dense bf16 matrix products.
H200_BYTES_PER_S = 4.3e12
H200_FLOPS_PER_S = 785e12

_BYTES_PER_PARAM = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_BITS_OF_METHOD = {"fp8": 8, "fbgemm_fp8": 8, "modelopt": 8, "awq": 4, "gptq": 4, "mxfp4": 4}


@dataclass(frozen=True)
class Hardware:
    """Ceilings of one GPU, and how many share the model."""

    bytes_per_s: float = H200_BYTES_PER_S
    flops_per_s: float = H200_FLOPS_PER_S
    num_gpus: int = 1

    @property
    def bandwidth(self) -> float:
        return self.bytes_per_s * self.num_gpus

    @property
    def peak(self) -> float:
        return self.flops_per_s * self.num_gpus


@dataclass(frozen=True)
class ModelCost:
    """Sizes of a decoder, in parameters; KV entries are counted at 2 bytes unless float32.

    dense_params: read and used by every token in the layers.  head_params: lm_head, used where a
    token is sampled.  expert_params: one expert of one layer.
    """

    dense_params: int
    head_params: int
    expert_params: int
    num_moe_layers: int
    num_experts: int
    experts_per_token: int
    bytes_per_param: float
    kv_bytes_per_token: float
    attention_flops_per_pair: int

    @classmethod
    def of_folder(cls, folder: Path) -> ModelCost:
        """Read config.json. Raises ModelError where it is missing or lacks a field."""
        return cls.of(CheckpointConfig.load(folder))

    @classmethod
    def of(cls, config: CheckpointConfig) -> ModelCost:
        raw, hidden, layers = config.raw, config.hidden_size, config.num_layers
        heads = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        attention = 2 * hidden * heads + 2 * hidden * kv_width
        num_experts = raw.get("num_experts") or raw.get("num_local_experts") or 0
        moe_layers = _num_moe_layers(config) if num_experts else 0
        expert_width = raw.get("moe_intermediate_size") or config.intermediate_size
        shared_width = raw.get("shared_expert_intermediate_size") or 0
        dense = layers * (attention + 2 * hidden)
        dense += (layers - moe_layers) * 3 * hidden * config.intermediate_size
        dense += moe_layers * (hidden * num_experts + 3 * hidden * shared_width)
        return cls(
            dense_params=dense,
            head_params=hidden * config.vocab_size,
            expert_params=3 * hidden * expert_width,
            num_moe_layers=moe_layers,
            num_experts=num_experts,
            experts_per_token=raw.get("num_experts_per_tok") or 0,
            bytes_per_param=_bytes_per_param(config),
            kv_bytes_per_token=2
            * kv_width
            * layers
            * _BYTES_PER_PARAM.get(config.torch_dtype, 2.0),
            attention_flops_per_pair=4 * layers * heads,
        )

    def weight_bytes(self, batch_size: float) -> float:
        """Bytes of weights that one decode step of so many sequences reads."""
        distinct = 0.0
        if self.num_experts:
            missed = (1 - self.experts_per_token / self.num_experts) ** batch_size
            distinct = self.num_experts * (1 - missed)
        experts = self.num_moe_layers * distinct * self.expert_params
        return (self.dense_params + self.head_params + experts) * self.bytes_per_param

    @property
    def active_layer_params(self) -> int:
        """Parameters of the layers that one token uses, lm_head apart."""
        experts = self.num_moe_layers * self.experts_per_token * self.expert_params
        return self.dense_params + experts

    def decode_bytes(self, batch_size: float, context: float) -> float:
        """Bytes that one decode step must read."""
        return self.weight_bytes(batch_size) + batch_size * context * self.kv_bytes_per_token

    def decode_floor_s(self, batch_size: float, context: float, hardware: Hardware) -> float:
        """Seconds of one decode step at the ceilings, without any communication."""
        linear = 2 * batch_size * (self.active_layer_params + self.head_params)
        weights_s = self.weight_bytes(batch_size) / hardware.bandwidth
        kv_s = batch_size * context * self.kv_bytes_per_token / hardware.bandwidth
        return max(weights_s, linear / hardware.peak) + kv_s

    def flops(self, num_prompt: int, num_cached: int, num_output: int) -> float:
        """FLOPs of one request: its uncached prompt, and all outputs but the last's own step."""
        computed = num_prompt - num_cached + max(0, num_output - 1)
        end = num_prompt + max(0, num_output - 1)
        pairs = (end * (end + 1) - num_cached * (num_cached + 1)) / 2
        return (
            2.0 * computed * self.active_layer_params
            + 2.0 * num_output * self.head_params
            + pairs * self.attention_flops_per_pair
        )

    def prefill_floor_s(self, num_rows: int, num_tokens: int, hardware: Hardware) -> float:
        """Seconds to prefill num_rows prompts of num_tokens each, at the ceilings."""
        flops = num_rows * self.flops(num_tokens, 0, 1)
        return max(flops / hardware.peak, self.weight_bytes(num_rows) / hardware.bandwidth)


def _num_moe_layers(config: CheckpointConfig) -> int:
    step = config.raw.get("decoder_sparse_step") or 1
    dense = set(config.raw.get("mlp_only_layers") or ())
    first_dense = config.raw.get("first_k_dense_replace") or 0
    return sum(
        (layer + 1) % step == 0 and layer not in dense and layer >= first_dense
        for layer in range(config.num_layers)
    )


def _bytes_per_param(config: CheckpointConfig) -> float:
    quantized = config.raw.get("quantization_config")
    if quantized:
        bits = quantized.get("bits") or _BITS_OF_METHOD.get(quantized.get("quant_method", ""), 8)
        return float(bits) / 8
    return _BYTES_PER_PARAM.get(config.torch_dtype, 2.0)
