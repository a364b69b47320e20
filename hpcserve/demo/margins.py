"""How clearly tiny-chat prefers each token: ``python -m hpcserve.demo.margins --model DIR``.

For held-out conversations it compares the logit of every token of the reference answer with the
best other one. A wide margin means that the greedy text is the same under another rounding of the
same numbers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpcserve.demo.data import EVALUATED, held_out
from hpcserve.demo.evaluate import prompt_text
from hpcserve.demo.render import END_OF_TEXT, END_OF_TURN

__all__ = ["main", "margins"]

_QUANTILES = (0.0, 0.001, 0.01, 0.1, 0.5)


@torch.inference_mode()
def margins(model_path: Path, per_skill: int, seed: int) -> Tensor:
    """Return the margin of every answer token, in logits, computed in float32; shape (tokens,)."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    found = []
    for skill in EVALUATED:
        for one in held_out(skill, per_skill, seed):
            before = tokenizer(prompt_text(tokenizer, one), add_special_tokens=False)["input_ids"]
            end = END_OF_TEXT if one.raw else END_OF_TURN
            answer = tokenizer(one.answer + end, add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
            expected = torch.tensor(answer)[:, None]
            own = logits.gather(1, expected)[:, 0]
            others = logits.scatter(1, expected, float("-inf")).max(dim=1).values
            found.append(own - others)
    return torch.cat(found)


def main(arguments: list[str] | None = None) -> int:
    """Print quantiles of the margin."""
    parser = argparse.ArgumentParser(description="Measure the greedy margins of tiny-chat.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--per-skill", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    values = margins(options.model, options.per_skill, options.seed)
    smallest = [round(value, 2) for value in values.sort().values[:20].tolist()]
    print(f"{len(values)} tokens; smallest: {smallest}")
    for quantile in _QUANTILES:
        print(f"quantile {quantile:5.3f}: {values.quantile(quantile).item():.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
