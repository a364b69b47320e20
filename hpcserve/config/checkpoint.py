"""What a checkpoint's config.json says, read without torch or transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcserve.errors import ModelError, ModelNotFoundError

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class CheckpointConfig:
    """The fields that every decoder shares; a model's own are in `raw`.

    rope_scaling: None, or the checkpoint's dict (its `rope_type` says which kind).
    eos_token_ids: from generation_config.json where there is one, else from config.json.
    """

    path: Path
    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    tie_word_embeddings: bool
    torch_dtype: str
    eos_token_ids: tuple[int, ...]
    raw: dict[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> CheckpointConfig:
        """Read config.json (and generation_config.json) of the folder `path`."""
        raw = _read(path / CONFIG_FILE)
        try:
            return cls._from_raw(path, raw)
        except KeyError as error:
            raise ModelError(f"{path / CONFIG_FILE} has no field {error}") from error

    @classmethod
    def _from_raw(cls, path: Path, raw: dict[str, Any]) -> CheckpointConfig:
        # transformers 5 keeps theta and scaling together in rope_parameters.
        rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        heads = raw["num_attention_heads"]
        return cls(
            path=path,
            model_type=raw["model_type"],
            hidden_size=raw["hidden_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            intermediate_size=raw["intermediate_size"],
            vocab_size=raw["vocab_size"],
            max_position_embeddings=raw["max_position_embeddings"],
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            rope_scaling=None if kind == "default" else {**rope, "rope_type": kind},
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            torch_dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
            eos_token_ids=_eos_token_ids(path, raw),
            raw=raw,
        )


def _read(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise ModelNotFoundError(f"there is no model folder {path.parent}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path.parent} is no model folder: it has no {path.name}"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object")
    return content


def _eos_token_ids(path: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    found = raw.get("eos_token_id")
    if (path / "generation_config.json").is_file():
        found = _read(path / "generation_config.json").get("eos_token_id", found)
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (found,)
