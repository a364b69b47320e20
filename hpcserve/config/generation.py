"""What a model's makers say of sampling it: generation_config.json beside its weights.

Requests that leave a parameter out get it from there, as on other servers; what a request says
itself always counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcserve.config.model import ModelConfig
from hpcserve.errors import ConfigError, InvalidParameterError, ModelError
from hpcserve.sampling_params import SamplingParams

GENERATION_FILE = "generation_config.json"
#: The file's fields that are taken. Not `max_new_tokens`: how long an answer may get is the
#: user's business, and a limit that nobody asked for would cut answers off.
_TAKEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
#: What other servers' users write for the two.
_FROM_MODEL = frozenset({"auto", "model"})
_FROM_NOWHERE = frozenset({"none", "openai", "vllm"})


def sampling_defaults(model: ModelConfig) -> dict[str, Any]:
    """Fields of SamplingParams that the model's generation_config.json sets.

    model: its `model` is a folder (or "", which sets nothing).  A file that says `do_sample: false`
    and no temperature means greedy.
    Raises ConfigError for a folder without the file, ModelError for a file that makes no sense.
    """
    chosen = model.generation_config
    if chosen in _FROM_NOWHERE or (chosen in _FROM_MODEL and not model.model):
        return {}
    folder = Path(model.model if chosen in _FROM_MODEL else chosen).expanduser()
    path = folder / GENERATION_FILE
    if not path.is_file():
        if chosen in _FROM_MODEL:
            return {}
        raise ConfigError(
            f"--generation-config: there is no {path}; give a folder that has one, auto or none"
        )
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object")
    found = {name: content[name] for name in _TAKEN if content.get(name) is not None}
    if content.get("do_sample") is False:
        found.setdefault("temperature", 0.0)
    _check(path, found)
    return found


def _check(path: Path, found: dict[str, Any]) -> None:
    for name, value in found.items():
        kind = int if name == "top_k" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ModelError(f"{path}: {name} is {value!r}, which is no number of its kind")
    try:
        SamplingParams(**found).validate()
    except InvalidParameterError as error:
        raise ModelError(f"{path}: {error}; leave it out with --generation-config none") from error
