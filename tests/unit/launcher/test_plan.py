"""The arithmetic of `plan`, held against the sizes that transformers gives the same configs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from hpcserve.cli.main import main
from hpcserve.errors import ConfigError
from hpcserve.launcher.plan.estimate import estimate
from hpcserve.launcher.plan.gpus import GIB, gpu
from hpcserve.launcher.plan.shape import shape_of
from hpcserve.launcher.plan.suggest import suggest

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}
MOE = {"moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 2}
CONFIGS = [
    {"model_type": "llama", **SMALL},
    {"model_type": "llama", **SMALL, "tie_word_embeddings": True},
    {"model_type": "mistral", **SMALL, "head_dim": 16},
    {"model_type": "qwen2", **SMALL},
    {"model_type": "qwen3", **SMALL, "head_dim": 16},
    {"model_type": "qwen3_moe", **SMALL, **MOE, "head_dim": 16, "norm_topk_prob": True},
    {"model_type": "mixtral", **SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
]


@pytest.mark.parametrize("raw", CONFIGS, ids=lambda raw: raw["model_type"])
def test_parameters_are_those_of_transformers(raw):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kwargs = {key: value for key, value in raw.items() if key != "model_type"}
    config = AutoConfig.for_model(raw["model_type"], **kwargs)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_of(raw).parameters == sum(p.numel() for p in model.parameters())


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
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
}


def test_published_sizes_come_out():
    llama = shape_of(LLAMA_8B)
    assert llama.parameters == pytest.approx(8.03e9, rel=0.001)
    assert llama.kv_bytes_per_token() == 128 * 1024  # 2 x 32 layers x 8 heads x 128 x 2 bytes
    deepseek = shape_of(DEEPSEEK_V3)
    assert deepseek.parameters == pytest.approx(671e9, rel=0.01)
    assert deepseek.active == pytest.approx(37e9, rel=0.05)
    assert deepseek.kv_bytes_per_token() == 61 * 576 * 2


def test_an_h200_holds_what_it_is_known_to_hold():
    found = estimate(shape_of(LLAMA_8B), gpu("h200"))
    assert 790_000 < found.kv_tokens < 900_000
    assert found.weights_bytes == pytest.approx(15.0 * GIB, rel=0.01)
    # The floor of one token: reading the weights once.
    assert 3.0 < found.decode_ms_one < 4.0


def test_layouts_split_what_they_should():
    shape = shape_of(LLAMA_8B)
    assert shape.weights_bytes(tp=4) == pytest.approx(shape.weights_bytes() / 4)
    assert shape.kv_bytes_per_token(tp=4) == shape.kv_bytes_per_token() / 4
    assert shape.kv_bytes_per_token(tp=16) == shape.kv_bytes_per_token() / 8  # copied heads
    assert shape.kv_bytes_per_token(pp=2) == shape.kv_bytes_per_token() / 2


def test_suggestions_take_few_gpus_per_replica_and_fill_the_rest():
    small = suggest(shape_of(LLAMA_8B), gpu("h100"), node_gpus=8)
    assert (small.tp, small.pp, small.dp) == (1, 1, 8)
    big = suggest(shape_of(DEEPSEEK_V3), gpu("h100"), node_gpus=8)
    assert big.tp == 8
    assert big.pp >= 2  # across nodes by stages
    assert suggest(shape_of(DEEPSEEK_V3), gpu("l4"), node_gpus=1, nodes=1) is None


def test_unknown_gpu_lists_the_known():
    with pytest.raises(ConfigError, match="h200"):
        gpu("h2000")


def test_plan_prints_and_gives_json(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    shown = CliRunner().invoke(main, ["plan", str(tmp_path), "--gpu", "h100"])
    assert "--tp 1 --pp 1 --dp 8" in shown.output
    done = CliRunner().invoke(main, ["plan", str(tmp_path), "--tp", "2", "--json"])
    assert json.loads(done.output)["tp"] == 2
    missing = CliRunner().invoke(main, ["plan", str(tmp_path / "none")])
    assert missing.exit_code == 2


def test_the_ends_of_a_pipeline_hold_a_whole_embedding():
    tied = shape_of({**SMALL, "tie_word_embeddings": True})
    ends = tied.vocab_size * tied.hidden_size
    layers = tied.parameters - ends
    assert tied.weights_bytes(pp=3) == pytest.approx((layers / 3 + ends) * 2)
    assert tied.weights_bytes(pp=2) == pytest.approx((layers * 2 / 3 + ends) * 2)  # 2 of 3 layers


def test_plan_takes_nodes_and_layout_together_or_refuses(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    done = CliRunner().invoke(main, ["plan", str(tmp_path), "-N", "2", "--tp", "16"])
    assert "--tp 16 --pp 1 --dp 1" in done.output
    done = CliRunner().invoke(main, ["plan", str(tmp_path), "-N", "2", "--tp", "8"])
    assert (done.exit_code, "--tp 16" in done.output) == (2, True)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_what_does_not_fit_is_a_failure_in_any_form(tmp_path, form):
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    done = CliRunner().invoke(main, ["plan", str(tmp_path), "--tp", "1", *form])
    assert done.exit_code == 1
    assert "does not fit" in done.stderr


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nvidia_h100_80gb_hbm3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("nvidia_a100-sxm4-80gb", "a100"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("nvidia-l40s", "l40s"),
        ("nvidia_gh200_480gb", "gh200"),
    ],
)
def test_gpus_go_by_the_names_of_their_drivers_too(name, meant):
    assert gpu(name).name == meant


@pytest.mark.parametrize(
    "name", ["nvidia_h100_80gb_hbm3_mig_1g.10gb", "tesla_v100-sxm2-16gb", "l40", ""]
)
def test_what_is_less_than_a_known_gpu_is_unknown(name):
    with pytest.raises(ConfigError):
        gpu(name)
