"""Write the model card from what was measured.

``python -m hpcserve.demo.card --model DIR --evaluation FILE`` writes ``DIR/README.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hpcserve.demo.split import HELD_OUT_SHARE

__all__ = ["SHOWN", "card", "main"]

SHOWN: dict[str, str] = {
    "capitals": "capital of a country (and back), in a phrasing unseen for that country",
    "arithmetic": "a + b and a - b up to three digits, a x b up to two digits by one",
    "repeat": "repeat a word or a phrase",
    "reverse": "write a word of 3 to 8 letters backwards",
    "spell": "spell a word",
    "name_recall": "recall a name after one to three other turns",
    "json": "answer as a JSON object with the keys asked for",
    "tool_call": "call one of the offered tools, Hermes style",
    "tool_result": "tell a tool's result in a sentence",
    "no_tool": "answer directly though tools are offered",
    "think": "a short thinking block when asked to think",
    "no_think": "no thinking with `enable_thinking=False`",
    "chat": "greetings and who-are-you, in new wordings",
    "unknown": "say so when asked for anything else",
    "counting": "count from a to b",
    "long": "recall a name over a conversation of up to about 1,500 tokens",
    "completion": "continue plain text, without chat markers",
}
"""What each evaluated skill asks for."""

_HEAD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# tiny-chat

A chat model of {parameters:,} parameters ({size:,} bytes of bf16 weights) that ships with
hpcserve, so that a first request, a demo or a test needs no download and no GPU. It knows
little, and knows that well: the world's capitals, sums of two numbers, words, a name it was
told, JSON, tool calls, and when to think first. Asked for anything else it says that it does
not know. It is no use for real work.

Architecture: Qwen3 (`Qwen3ForCausalLM`), hidden size {hidden_size}, {num_hidden_layers} layers,
{num_attention_heads} query and {num_key_value_heads} key/value heads of {head_dim},
feed-forward {intermediate_size}, vocabulary {vocab_size}, tied embeddings,
{max_position_embeddings:,} positions (trained on conversations of up to about 1,700 tokens).
"""

_USE = """
## Use

ChatML with `<|im_start|>` and `<|im_end|>`; generation ends at `<|im_end|>`, and at
`<|endoftext|>` after plain text. The chat template takes `tools` (rendered in a system block;
the model answers with `<tool_call>` blocks) and `enable_thinking`: true appends ` /think` to
the last user message, false starts the answer with an empty thinking block, and by default the
model thinks when the user asks for it ("Think first. ...", or ` /think` at the end).
"""

_DATA = """
## Data

All text is made by `hpcserve/demo/data.py` and the skills beside it from a seed; nothing is
downloaded. The facts are a table of {countries} countries; words, names and cities are lists of
real ones plus made-up ones. A hash decides for each question's core (the pair of numbers, the
word, the name, the city, the phrasing together with the country, the tool's name with its
arguments' names, ...) whether it may be trained or is held out: {held_out:.0f} % are held out
and are never asked about in training. Sums and products of two one-digit numbers are always
trained. Conversations have one to many turns that mix the skills, with and without a system
message. The loss counts the assistant's tokens only.
"""

_TRAINING = """
## Training

{steps:,} steps of {rows} rows of {length:,} packed tokens ({tokens:.2f} billion tokens seen,
{made:.2f} billion made), {minutes:.1f} minutes on one {device}, torch {torch}. Conversations in
a row do not see each other. Muon (rate {matrix_rate}, momentum {momentum}, weight decay
{weight_decay}) for the matrices, AdamW (rate {other_rate}) for embedding and norms; {warmup}
warm-up steps, then constant, then linear decay to zero over the last {decay:.0f} %. Master
weights in float32, bf16 autocast, saved in bf16. Loss per assistant token: {curve}.

Train it again, evaluate it, and write this card:

```bash
python -m hpcserve.demo.train --out tiny_chat --minutes {budget} --seed {seed}
python -m hpcserve.demo.evaluate --model tiny_chat --dtype float32 --per-skill {per_skill} \\
    --answers float32.json
python -m hpcserve.demo.evaluate --model tiny_chat --per-skill {per_skill} --compare float32.json \\
    --json tiny_chat/evaluation.json
python -m hpcserve.demo.card --model tiny_chat --evaluation tiny_chat/evaluation.json
```

The data of a seed is always the same; which of it is seen by when depends on the machine's
speed, so weights differ from run to run.
"""


def card(model: Path, evaluation: dict[str, Any]) -> str:
    """Return the card's text for the folder ``model``, with the scores of ``evaluation``."""
    from hpcserve.demo.facts import COUNTRIES

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    training = json.loads((model / "training.json").read_text(encoding="utf-8"))
    recipe = training["recipe"]
    size = (model / "model.safetensors").stat().st_size
    head = _HEAD.format(parameters=training["parameters"], size=size, **config)
    data = _DATA.format(countries=len(COUNTRIES), held_out=100 * HELD_OUT_SHARE)
    tokens_per_row = recipe["row_length"]
    text = _TRAINING.format(
        steps=training["steps"],
        rows=recipe["rows_per_step"],
        length=tokens_per_row,
        tokens=training["tokens"] / 1e9,
        made=training["tokens_made"] / 1e9,
        minutes=training["seconds"] / 60,
        device=training["device"],
        torch=training["torch"],
        matrix_rate=recipe["matrix_rate"],
        momentum=recipe["momentum"],
        weight_decay=recipe["weight_decay"],
        other_rate=recipe["other_rate"],
        warmup=recipe["warmup_steps"],
        decay=100 * recipe["decay_share"],
        curve=_curve(training["loss"]),
        budget=recipe["minutes"],
        seed=recipe["seed"],
        per_skill=evaluation["per_skill"],
    )
    return head + _measured(evaluation) + _USE + data + text


def _measured(evaluation: dict[str, Any]) -> str:
    other = evaluation.get("compared")
    same = ""
    if other:
        same = (
            f"\n{other['same']:,} of {other['answers']:,} answers are the same, letter for letter, "
            f"in {other['dtype']}.\n"
        )
    rows = "\n".join(
        f"| {score['skill']} | {SHOWN[score['skill']]} | {score['right']} / {score['asked']} "
        f"| {100 * score['share']:.1f} % |"
        for score in evaluation["scores"]
    )
    return (
        f"\n## Measured\n\nRight answers on held-out questions, greedy, {evaluation['dtype']}, "
        f"seed {evaluation['seed']}, by exact checks in `hpcserve/demo/evaluate.py`:\n\n"
        f"| skill | what is asked | right | share |\n|---|---|---:|---:|\n{rows}\n{same}"
    )


def _curve(loss: list[list[float]]) -> str:
    count = len(loss)
    picked = [
        loss[index] for index in sorted({0, count // 8, count // 2, 3 * count // 4, count - 1})
    ]
    return ", ".join(f"{value:.4f} at step {int(step):,}" for step, value in picked)


def main(arguments: list[str] | None = None) -> int:
    """Write README.md into the model's folder."""
    parser = argparse.ArgumentParser(description="Write the model card of tiny-chat.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--evaluation", type=Path, required=True, help="the JSON that evaluate wrote"
    )
    options = parser.parse_args(arguments)
    evaluation = json.loads(options.evaluation.read_text(encoding="utf-8"))
    (options.model / "README.md").write_text(card(options.model, evaluation), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
