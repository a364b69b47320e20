"""Measure tiny-chat on held-out conversations: ``python -m hpcserve.demo.evaluate --model DIR``.

Greedy generation with transformers, an exact check per example, a table, and exit status 1 below
the bar.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpcserve.demo.conversation import Conversation, Message
from hpcserve.demo.data import EVALUATED, held_out

__all__ = [
    "BAR",
    "Score",
    "answers",
    "chat_messages",
    "compared",
    "evaluate",
    "main",
    "prompt_text",
]

BAR = 0.95
"""The share of right answers that every skill must reach."""
_MAX_NEW_TOKENS = 224


@dataclass(frozen=True)
class Score:
    """How one skill did; ``wrong`` holds up to five failures."""

    skill: str
    right: int
    asked: int
    wrong: list[dict[str, str]]

    @property
    def share(self) -> float:
        """Share of right answers."""
        return self.right / self.asked


def chat_messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    """Return messages in the form chat templates take."""
    return [{"role": message.role, "content": message.content} for message in messages]


def prompt_text(tokenizer: Any, conversation: Conversation) -> str:
    """Render what comes before the last answer, through the model's own chat template."""
    if conversation.raw:
        return conversation.messages[0].content
    options = {} if conversation.thinking is None else {"enable_thinking": conversation.thinking}
    text = tokenizer.apply_chat_template(
        chat_messages(conversation.messages[:-1]),
        tools=list(conversation.tools) or None,
        add_generation_prompt=True,
        tokenize=False,
        **options,
    )
    return str(text)


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, prompts: list[str], batch_size: int) -> list[str]:
    """Return the greedy continuation of every prompt, without end markers."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    out = [""] * len(prompts)
    ends = ("<|im_end|>", "<|endoftext|>")
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[index] for index in picked],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        ).to(model.device)
        made = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=_MAX_NEW_TOKENS,
            do_sample=False,
        )
        new = made[:, batch["input_ids"].shape[1] :]
        for index, text in zip(
            picked, tokenizer.batch_decode(new, skip_special_tokens=False), strict=True
        ):
            out[index] = min((text.split(end)[0] for end in ends), key=len)
    return out


def evaluate(
    model_path: Path,
    per_skill: int,
    seed: int,
    dtype: torch.dtype,
    skills: list[str],
    batch_size: int = 512,
) -> tuple[list[Score], dict[str, list[str]]]:
    """Return the score of every skill, and every answer by skill."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
    model = model.to(device).eval()
    asked = [(skill, one) for skill in skills for one in held_out(skill, per_skill, seed)]
    prompts = [prompt_text(tokenizer, one) for _, one in asked]
    given = answers(model, tokenizer, prompts, batch_size)
    scores, texts = [], {}
    for skill in skills:
        rows = [
            (one, text) for (name, one), text in zip(asked, given, strict=True) if name == skill
        ]
        texts[skill] = [text for _, text in rows]
        wrong = [
            {"asked": one.messages[-2].content, "expected": one.answer, "given": text}
            for one, text in rows
            if not one.check(text)
        ]
        scores.append(Score(skill, len(rows) - len(wrong), len(rows), wrong[:5]))
    return scores, texts


def table(scores: list[Score]) -> str:
    """Return the scores as a Markdown table."""
    lines = ["| skill | right | asked | share |", "|---|---:|---:|---:|"]
    lines += [f"| {s.skill} | {s.right} | {s.asked} | {100 * s.share:.1f} % |" for s in scores]
    return "\n".join(lines)


def compared(texts: dict[str, list[str]], other: dict[str, Any]) -> dict[str, object]:
    """Count the answers that are the same, letter for letter, as those of another run."""
    pairs = [
        pair
        for skill, given in texts.items()
        for pair in zip(given, other["answers"][skill], strict=True)
    ]
    same = sum(left == right for left, right in pairs)
    return {"dtype": other["dtype"], "same": same, "answers": len(pairs)}


def _write(path: Path | None, content: object) -> None:
    if path is not None:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Evaluate from the command line; return 0 if every skill reaches the bar."""
    parser = argparse.ArgumentParser(description="Measure tiny-chat on held-out conversations.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--per-skill", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--skills", nargs="+", choices=tuple(EVALUATED), default=list(EVALUATED))
    parser.add_argument("--json", type=Path, default=None, help="where to write the scores")
    parser.add_argument("--answers", type=Path, default=None, help="where to write every answer")
    parser.add_argument("--compare", type=Path, default=None, help="answers of another run")
    parser.add_argument("--failures", type=int, default=2, help="failures to print per skill")
    options = parser.parse_args(arguments)
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    scores, texts = evaluate(options.model, options.per_skill, options.seed, dtype, options.skills)
    print(table(scores), flush=True)
    for score in scores:
        for failure in score.wrong[: options.failures]:
            print(f"{score.skill}: {failure}")
    content: dict[str, object] = {
        "per_skill": options.per_skill,
        "seed": options.seed,
        "dtype": options.dtype,
        "scores": [asdict(score) | {"share": score.share} for score in scores],
    }
    if options.compare is not None:
        content["compared"] = compared(texts, json.loads(options.compare.read_text("utf-8")))
        print(f"compared with {options.compare}: {content['compared']}")
    _write(options.json, content)
    _write(options.answers, {"dtype": options.dtype, "answers": texts})
    return 0 if all(score.share >= BAR for score in scores) else 1


if __name__ == "__main__":
    sys.exit(main())
