"""The tokenizer of tiny-chat: byte-level BPE, every digit and every space a token of its own."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hpcserve.demo.data import training_stream
from hpcserve.demo.render import END_OF_TEXT, END_OF_TURN, START_OF_TURN, chat_template, render

__all__ = ["VOCAB_SIZE", "save_tokenizer", "token_id", "train_tokenizer"]

VOCAB_SIZE = 1024
_SPECIAL = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
_VISIBLE = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
_PIECES = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
"""Words without their space (so that a word has the same tokens wherever it stands), single digits,
marks, single spaces."""


def train_tokenizer(seed: int, conversations: int = 20_000) -> Tokenizer:
    """Train on the first ``conversations`` of the training stream of ``seed``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(_SPECIAL) - len(_VISIBLE),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    markers = (*_SPECIAL, *_VISIBLE)

    def texts() -> list[str]:
        made = (
            "".join(part.text for part in render(one))
            for one in islice(training_stream(seed), conversations)
        )
        return [_without(markers, text) for text in made]

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in _SPECIAL]
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _VISIBLE])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the data gave {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    return tokenizer


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of the one token ``text``."""
    found = tokenizer.token_to_id(text)
    if found is None:
        raise ValueError(f"{text!r} is no token of this tokenizer")
    return int(found)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": text in _SPECIAL,
        }
        for text in (*_SPECIAL, *_VISIBLE)
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "additional_special_tokens": [START_OF_TURN],
        "bos_token": None,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": chat_template(),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")


def _without(markers: tuple[str, ...], text: str) -> str:
    for marker in markers:
        text = text.replace(marker, "")
    return text
