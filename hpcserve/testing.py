"""What tests of hpcserve, and of what is built on it, need: tiny models and fakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# ---------------------------------------------------------------- random checkpoints

#: A decoder small enough that a test may make, save and load several a second.
TINY_CONFIG: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def make_random_checkpoint(
    folder: Path, model_type: str, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any
) -> Path:
    """Write a checkpoint of `model_type` with random float32 weights to `folder`; returns it.

    overrides: fields of its config.json, over TINY_CONFIG. max_shard_size: smaller ones split the
    weights over several files with an index. The weights are spread widely enough for greedy
    outputs to differ from token to token; biases and norms are random as well. It has no
    tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**TINY_CONFIG, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, param in model.named_parameters():
                if "norm" in name:
                    param.uniform_(0.5, 1.5)
                else:
                    param.normal_(0.0, 0.15)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
