"""The small JSON files that lie beside a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcserve.errors import TokenizerError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"

#: Named special tokens that chat templates may use.
TOKEN_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, {} where there is no such file. Raises TokenizerError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds no JSON object")
    return content


def special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Role -> text of the special tokens, such as {"eos_token": "<|im_end|>"}."""
    declared = {**read_json(folder / SPECIAL_TOKENS_FILE), **config}
    found = {}
    for role in TOKEN_ROLES:
        token = declared.get(role)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[role] = text
    return found
