"""Every model of the registry gives transformers' logits, whichever way its tokens are scheduled."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpcserve import registry
from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.config.engine import EngineConfig
from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.engine.worker import Worker
from hpcserve.errors import UnsupportedModelError
from hpcserve.testing import StepDriver, make_random_checkpoint

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: Fields over the tiny random config, for each model and then for single ones.
VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "one_kv_head_each": {"num_key_value_heads": 6},
    "single_kv_head": {"num_key_value_heads": 1},
    "llama3_rope": {"rope_parameters": LLAMA3_SCALING, "rope_scaling": LLAMA3_SCALING},
}
CASES = [
    pytest.param(name, fields, id=f"{name}-{variant}")
    for name in registry.names("hpcserve.models")
    for variant, fields in VARIANTS.items()
] + [
    pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="llama-biases"),
    pytest.param("qwen3", {"attention_bias": True}, id="qwen3-biases"),
    pytest.param(
        "llama",
        {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
        id="llama-linear_rope",
    ),
]
PROMPT_LENGTHS = (41, 7, 70)


@dataclass
class Reference:
    """prompts: token ids.  logits: transformers', [len(prompt), vocab_size] each."""

    folder: object
    prompts: list[np.ndarray]
    logits: list[torch.Tensor]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    made: dict[str, Reference] = {}

    def make(model_type, fields) -> Reference:
        key = f"{model_type}{sorted(fields.items(), key=str)}"
        if key not in made:
            made[key] = _reference(tmp_path_factory.mktemp(model_type), model_type, fields)
        return made[key]

    return make


def _reference(folder, model_type, fields) -> Reference:
    from transformers import AutoModelForCausalLM

    make_random_checkpoint(folder, model_type, **fields)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rng = np.random.default_rng(7)
    prompts = [rng.integers(0, 131, length).astype(np.int32) for length in PROMPT_LENGTHS]
    with torch.inference_mode():
        logits = [model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0] for ids in prompts]
    return Reference(folder, prompts, logits)


def _driver(folder, page_size=16, **options) -> StepDriver:
    config = EngineConfig.from_options(
        {
            "model": str(folder),
            "device": "cpu",
            "cpu_threads": 1,
            "page_size": page_size,
            "max_total_tokens": 1024,
            "max_running_requests": 8,
            "attention_backend": "torch_sdpa",
            **options,
        }
    )
    return StepDriver(Worker(config).runner)


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("model_type", "fields"), CASES)
def test_prefill_of_several_rows(references, model_type, fields):
    ref = references(model_type, fields)
    driver = _driver(ref.folder)
    for slot, ids in enumerate(ref.prompts):
        driver.admit(slot, ids)
    logits = driver.logits([(slot, 0, len(ids)) for slot, ids in enumerate(ref.prompts)])
    for ours, theirs in zip(logits, ref.logits, strict=True):
        _close(ours, theirs)


@pytest.mark.parametrize(("model_type", "fields"), CASES)
def test_chunks_and_decodes_mixed(references, model_type, fields):
    """One row decodes the second half of its tokens while the others are prefilled in chunks."""
    ref = references(model_type, fields)
    driver = _driver(ref.folder)
    for slot, ids in enumerate(ref.prompts):
        driver.admit(slot, ids)
    first, _, third = ref.logits
    _close(driver.logits([(0, 0, 20)])[0], first[:20])
    chunks = [(0, 11), (11, 5), (16, 1), (17, 33), (50, 20)]
    for step, (start, count) in enumerate(chunks):
        decode, chunk = driver.logits([(0, 20 + step, 1), (2, start, count)], num_decodes=1)
        _close(decode, first[20 + step : 21 + step])
        _close(chunk, third[start : start + count])


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("model_type", registry.names("hpcserve.models"))
def test_cached_prefix(references, model_type, page_size):
    """A second request whose first pages are another's gets the logits of a run of its own."""
    ref = references(model_type, {})
    driver = _driver(ref.folder, page_size)
    ids = ref.prompts[2]
    driver.admit(0, ids)
    driver.logits([(0, 0, len(ids))])
    cached = 64
    driver.admit(1, ids, shared_pages=driver.pages_of(0)[: cached // page_size])
    _close(driver.logits([(1, cached, len(ids) - cached)])[0], ref.logits[2][cached:])


@pytest.mark.parametrize("model_type", registry.names("hpcserve.models"))
def test_greedy_text_through_submit(references, model_type):
    """Steps issued as an engine issues them give the tokens of transformers' generate."""
    from transformers import AutoModelForCausalLM

    ref = references(model_type, {})
    model = AutoModelForCausalLM.from_pretrained(ref.folder, dtype=torch.float32)
    driver = _driver(ref.folder)
    texts = driver.generate(ref.prompts, num_tokens=24)
    for ids, text in zip(ref.prompts, texts, strict=True):
        prompt = torch.from_numpy(ids.astype(np.int64))[None]
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert text == theirs[0, len(ids) :].tolist()


@pytest.mark.parametrize("tp_size", [2, 4])
@pytest.mark.parametrize("model_type", registry.names("hpcserve.models"))
def test_shards_put_together_are_the_whole(references, model_type, tp_size):
    """Each rank's part, loaded by itself: rank after rank they give back the checkpoint."""
    fields = {"num_attention_heads": 8, "vocab_size": 131}
    ref = references(model_type, fields)
    checkpoint = CheckpointConfig.load(ref.folder)
    tensors = load_file(ref.folder / "model.safetensors")
    parts = [_load_rank(checkpoint, tensors, rank, tp_size) for rank in range(tp_size)]
    head_dim, kv_heads = checkpoint.head_dim, checkpoint.num_kv_heads
    for layer in range(checkpoint.num_layers):
        prefix = f"model.layers.{layer}."
        sizes = [8 // tp_size * head_dim, *[max(1, kv_heads // tp_size) * head_dim] * 2]
        fused = [part[prefix + "self_attn.qkv_proj.weight"].split(sizes) for part in parts]
        # With fewer KV heads than ranks, neighbours hold the same head.
        repeats = max(1, tp_size // kv_heads)
        for index, name in enumerate("qkv"):
            rows = [fused[rank][index] for rank in range(0, tp_size, repeats if index else 1)]
            whole = tensors[f"{prefix}self_attn.{name}_proj.weight"]
            assert torch.equal(torch.cat(rows), whole)
            if index:
                assert all(
                    torch.equal(fused[rank][index], fused[rank - rank % repeats][index])
                    for rank in range(tp_size)
                )
        dense = prefix + "mlp.gate_up_proj.weight" in parts[0]
        # Experts are split by tests/unit/layers/test_moe.py.
        gate_up = [part[prefix + "mlp.gate_up_proj.weight"].chunk(2) for part in parts if dense]
        for index, name in enumerate(("gate_proj", "up_proj") if dense else ()):
            rows = torch.cat([pair[index] for pair in gate_up])
            assert torch.equal(rows, tensors[f"{prefix}mlp.{name}.weight"])
        for name in ("self_attn.o_proj.weight", *(["mlp.down_proj.weight"] if dense else [])):
            columns = torch.cat([part[prefix + name] for part in parts], dim=1)
            assert torch.equal(columns, tensors[prefix + name])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.cat([part[name] for part in parts])
        assert torch.equal(rows[:131], tensors[name])
        assert not rows[131:].any()


def _load_rank(checkpoint, tensors, rank, size) -> dict[str, torch.Tensor]:
    from hpcserve.weights.loader import expected_tensors

    entry = registry.load("hpcserve.models", checkpoint.model_type).EntryClass
    with torch.inference_mode():
        model = entry(checkpoint, TensorParallel(rank, size), 128)
        params = dict(model.named_parameters())
        expected = expected_tensors(params, model.packed_modules)
        assert set(expected) == set(tensors)
        for name, (param_name, shard_id) in expected.items():
            params[param_name].weight_loader(params[param_name], tensors[name], shard_id)
    return {name: param.data for name, param in params.items()}


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}),
    ],
)
def test_sliding_window_is_refused_unless_it_covers_the_context(tmp_path, model_type, fields):
    make_random_checkpoint(tmp_path, model_type, **fields)
    with pytest.raises(UnsupportedModelError, match="--context-length 64 or less"):
        _driver(tmp_path)
    _driver(tmp_path, context_length=64)


def test_mistral_slides_unless_its_config_says_otherwise(tmp_path):
    make_random_checkpoint(tmp_path, "mistral", max_position_embeddings=8192)
    config = json.loads((tmp_path / "config.json").read_text())
    for window, length in ((None, 8192), (4096, 4096)):
        config["sliding_window"] = window
        (tmp_path / "config.json").write_text(json.dumps(config))
        _driver(tmp_path, context_length=length)
    del config["sliding_window"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="--context-length 4096 or less"):
        _driver(tmp_path)


def test_other_activations_and_ropes_are_refused(tmp_path):
    make_random_checkpoint(tmp_path / "gelu", "llama", hidden_act="gelu")
    with pytest.raises(UnsupportedModelError, match="'gelu'"):
        _driver(tmp_path / "gelu")
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    make_random_checkpoint(
        tmp_path / "dynamic", "llama", rope_parameters=dynamic, rope_scaling=dynamic
    )
    with pytest.raises(UnsupportedModelError, match="'dynamic'"):
        _driver(tmp_path / "dynamic")
