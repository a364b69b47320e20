from __future__ import annotations

import json
from array import array

import pytest

from hpcserve.bench.metrics import figures_of
from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.roofline import Hardware, ModelCost
from hpcserve.errors import ModelNotFoundError

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def cost_of(tmp_path):
    def make(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return ModelCost.of_folder(tmp_path)

    return make


def test_sizes_of_llama_8b(cost_of):
    cost = cost_of(LLAMA_8B)
    assert cost.weight_bytes(1) == pytest.approx(15.0e9, rel=0.005)
    assert cost.kv_bytes_per_token == 128 * 1024


@pytest.mark.parametrize(
    ("batch_size", "context", "floor_ms"),
    [(1, 1024, 3.52), (1, 4096, 3.62), (16, 1024, 3.99), (64, 1024, 5.49), (256, 1024, 12.9)],
)
def test_decode_floors_of_llama_8b(cost_of, batch_size, context, floor_ms):
    floor = cost_of(LLAMA_8B).decode_floor_s(batch_size, context, Hardware()) * 1e3
    assert floor == pytest.approx(floor_ms, rel=0.005)


@pytest.mark.parametrize(
    ("batch_size", "floor_ms"), [(1, 1.44), (16, 9.63), (64, 15.3), (256, 20.1)]
)
def test_decode_floors_of_a_mixture_of_experts(cost_of, batch_size, floor_ms):
    floor = cost_of(QWEN3_30B_A3B).decode_floor_s(batch_size, 1024, Hardware()) * 1e3
    assert floor == pytest.approx(floor_ms, rel=0.02)


def test_prefill_flops_of_llama_8b(cost_of):
    cost = cost_of(LLAMA_8B)
    # 70 % of the peak gives 38,600 tokens/s for prompts of 1,024.
    rate = 0.7 * Hardware().peak / (cost.flops(1024, 0, 1) / 1024)
    assert rate == pytest.approx(38_600, rel=0.03)
    # A cached prefix costs nothing but being looked at.
    assert cost.flops(1024, 1000, 1) < 0.04 * cost.flops(1024, 0, 1)


def test_quantized_weights_are_smaller(cost_of):
    full = cost_of(LLAMA_8B).weight_bytes(1)
    fp8 = cost_of({**LLAMA_8B, "quantization_config": {"quant_method": "fp8"}})
    int4 = cost_of({**LLAMA_8B, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert full == 2 * fp8.weight_bytes(1) == 4 * int4.weight_bytes(1)


def test_a_run_at_the_floor_has_full_bandwidth(cost_of):
    cost = cost_of(LLAMA_8B)
    step_s = cost.decode_bytes(2, 1024) / Hardware().bandwidth
    chunks = array("d", [0.1 + step_s * step for step in range(101)])
    records = [
        RequestRecord(
            index, 0.0, 0.0, chunks[-1], chunks.tobytes(), prompt_tokens=974, output_tokens=101
        )
        for index in range(2)
    ]
    asked = [BenchRequest(prompt_token_ids=[1], max_tokens=101)] * 2
    figures = figures_of(asked, records, cost=cost, hardware=Hardware())
    assert figures["mean_decode_batch"] == pytest.approx(2.0)
    assert figures["mbu"] == pytest.approx(1.0, rel=0.001)
    assert figures["decode_floor_ms"] == pytest.approx(step_s * 1e3, rel=0.001)
    assert 0.0 < figures["mfu"] < 0.2
    two = figures_of(asked, records, cost=cost, hardware=Hardware(num_gpus=2))
    assert two["mbu"] == pytest.approx(0.5, rel=0.001)


def test_no_model_folder(tmp_path):
    with pytest.raises(ModelNotFoundError):
        ModelCost.of_folder(tmp_path)
