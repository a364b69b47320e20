"""What of a model decides its answers: its files, and the options that change its numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hpcserve.config.engine import EngineConfig
from hpcserve.config.generation import sampling_defaults
from hpcserve.errors import ModelError

#: Small files are told apart by their bytes, big ones (the weights) by their names and sizes.
_SMALL_BYTES = 32 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_TEXTS = ("README.md", ".gitattributes", "LICENSE")


def model_content(config: EngineConfig) -> dict[str, Any]:
    """Facts of the model, wherever its folder lies: it may be staged elsewhere for each job.

    Raises ModelError where it cannot be read.
    """
    model = config.model
    facts = _folder_facts(Path(model.model))
    facts |= {"revision": model.revision, "dtype": model.dtype, "load_format": model.load_format}
    facts["context_length"] = model.context_length
    facts["sampling_defaults"] = sampling_defaults(model)
    if model.tokenizer not in (None, model.model):
        facts |= {f"tokenizer {k}": v for k, v in _folder_facts(Path(str(model.tokenizer))).items()}
    return facts


def template_content(config: EngineConfig) -> dict[str, Any]:
    """The chat template that replaces the model's own, if one does. Raises ModelError."""
    name = config.model.chat_template
    if name is None:
        return {"chat_template": None}
    try:
        text = Path(name).expanduser().read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the chat template {name}: {error.strerror}") from error
    return {"chat_template": hashlib.sha256(text).hexdigest()}


def _folder_facts(folder: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    weights = []
    try:
        for path in sorted(one for one in folder.iterdir() if one.is_file()):
            size = path.stat().st_size
            if path.suffix in _WEIGHTS or size > _SMALL_BYTES:
                weights.append(f"{path.name}:{size}")
            elif path.name not in _TEXTS and not path.name.startswith("."):
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read the model {folder}: {error.strerror}") from error
    shown = hashlib.sha256("\n".join(weights).encode()).hexdigest()
    return {"files": digest.hexdigest(), "weights": shown}
