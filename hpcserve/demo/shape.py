"""The shape of tiny-chat: one dataclass that also writes config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Shape"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 decoder with tied embeddings."""

    vocab: int = 1024
    hidden: int = 256
    intermediate: int = 512
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    max_length: int = 2048

    def save(self, folder: Path, eos_ids: list[int], pad_id: int) -> None:
        """Write config.json and generation_config.json (greedy by default) into ``folder``."""
        config = {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_length,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "sliding_window": None,
            "use_sliding_window": False,
            "use_cache": True,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": eos_ids[0],
            "pad_token_id": pad_id,
        }
        generation = {"do_sample": False, "eos_token_id": eos_ids, "pad_token_id": pad_id}
        for name, content in (("config.json", config), ("generation_config.json", generation)):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
