"""Train tiny-chat: ``python -m hpcserve.demo.train --out DIR --minutes 6``.

Makes its data while it trains, counts the loss on the assistant's tokens only, and writes a
Hugging Face folder.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from hpcserve.demo.bpe import save_tokenizer, token_id, train_tokenizer
from hpcserve.demo.export import save_weights
from hpcserve.demo.feed import Feed
from hpcserve.demo.model import Mask, TinyChat
from hpcserve.demo.muon import Muon
from hpcserve.demo.packing import START, TOKEN_MASK, TRAINED
from hpcserve.demo.render import END_OF_TEXT, END_OF_TURN
from hpcserve.demo.shape import Shape

__all__ = ["Recipe", "main", "train"]

MaskBuilder = Callable[..., Mask]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one run; it stops at ``minutes`` or ``max_steps``, whichever is first."""

    minutes: float = 6.0
    max_steps: int | None = None
    seed: int = 0
    rows_per_step: int = 32
    row_length: int = 2048
    matrix_rate: float = 0.012
    other_rate: float = 0.004
    weight_decay: float = 0.1
    momentum: float = 0.95
    warmup_steps: int = 200
    decay_share: float = 0.5
    workers: int = max(1, (os.cpu_count() or 2) - 2)
    first_rows: int = 2048
    capacity: int = 600_000
    attention: str = "flex"


def rate_at(progress: float, step: int, recipe: Recipe) -> float:
    """Return the share of the full learning rate: warm-up, constant, then linear decay to 0."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return warm * min(1.0, max(0.0, 1.0 - progress) / recipe.decay_share)


def split_batch(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split marked rows into tokens, positions, targets, documents; each (batch, length)."""
    tokens = (rows & TOKEN_MASK).long()
    starts = (rows & START) != 0
    index = torch.arange(rows.shape[1], device=rows.device).expand_as(tokens)
    positions = index - torch.where(starts, index, 0).cummax(dim=1).values
    targets = torch.full_like(tokens, -100)
    targets[:, :-1] = torch.where((rows[:, 1:] & TRAINED) != 0, tokens[:, 1:], -100)
    return tokens, positions, targets, starts.cumsum(dim=1)


def document_mask(documents: Tensor, build: MaskBuilder | None) -> Mask:
    """Return the mask by which a token sees the earlier tokens of its own document.

    ``build`` is flex attention's ``create_block_mask``; without it the mask has booleans.
    """
    batch, length = documents.shape
    if build is None:
        same = documents[:, None, :, None] == documents[:, None, None, :]
        return same & torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (documents[b, q] == documents[b, k])

    return build(visible, batch, None, length, length, documents.device.type)


def train(recipe: Recipe, shape: Shape, out: Path) -> dict[str, object]:
    """Train, save the model into ``out``, and return a summary (also written as training.json)."""
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    tokenizer = train_tokenizer(recipe.seed)
    save_tokenizer(tokenizer, out, shape.max_length)
    ends = [token_id(tokenizer, END_OF_TURN), token_id(tokenizer, END_OF_TEXT)]
    shape.save(out, ends, pad_id=ends[1])
    model = TinyChat(shape).to(device)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    muon = Muon(matrices, recipe.momentum, recipe.weight_decay)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=on_gpu)
    flex = on_gpu and recipe.attention == "flex"
    loss_of = torch.compile(model.loss, dynamic=False) if on_gpu else model.loss
    build = torch.compile(create_block_mask, dynamic=False) if flex else None
    curve: list[tuple[int, float]] = []
    tokenizer_file = out / "tokenizer.json"
    with Feed(
        tokenizer_file, recipe.seed, recipe.row_length, recipe.workers, recipe.capacity, device
    ) as feed:
        feed.wait_for(recipe.first_rows)
        began = time.perf_counter()
        step, progress, total = 0, 0.0, torch.zeros((), device=device)
        while progress < 1.0:
            elapsed = time.perf_counter() - began
            progress = elapsed / (60 * recipe.minutes)
            if recipe.max_steps is not None:
                progress = max(progress, step / recipe.max_steps)
            tokens, positions, targets, documents = split_batch(feed.batch(recipe.rows_per_step))
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                loss = loss_of(tokens, positions, targets, document_mask(documents, build))
            loss.backward()
            rate = rate_at(progress, step, recipe)
            muon.step(recipe.matrix_rate * rate)
            adam.param_groups[0]["lr"] = recipe.other_rate * rate
            adam.step()
            model.zero_grad(set_to_none=True)
            total += loss.detach()
            step += 1
            if step % _report_every(recipe) == 0:
                mean = total.item() / _report_every(recipe)
                total.zero_()
                curve.append((step, round(mean, 5)))
                _report(step, mean, time.perf_counter() - began, recipe, feed.made, rate)
        seconds = time.perf_counter() - began
        rows_made = feed.made
    save_weights(model, out)
    summary: dict[str, object] = {
        "recipe": asdict(recipe),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "steps": step,
        "tokens": step * recipe.rows_per_step * recipe.row_length,
        "tokens_made": rows_made * recipe.row_length,
        "loss": curve,
    }
    (out / "training.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _report_every(recipe: Recipe) -> int:
    return 250 if recipe.max_steps is None else max(1, recipe.max_steps // 10)


def _report(
    step: int, loss: float, elapsed_s: float, recipe: Recipe, rows: int, rate: float
) -> None:
    speed = step * recipe.rows_per_step * recipe.row_length / elapsed_s
    print(
        f"step {step:6d}  loss {loss:.4f}  {elapsed_s:6.1f} s  {speed / 1e6:.2f} M tokens/s  "
        f"{rows * recipe.row_length / 1e6:.0f} M tokens made  rate {rate:.2f}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description="Train tiny-chat on generated conversations.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--minutes", type=float, default=recipe.minutes, help="training time")
    parser.add_argument("--max-steps", type=int, default=None, help="stop after this many steps")
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--rows-per-step", type=int, default=recipe.rows_per_step)
    parser.add_argument("--row-length", type=int, default=recipe.row_length)
    parser.add_argument("--matrix-rate", type=float, default=recipe.matrix_rate)
    parser.add_argument("--other-rate", type=float, default=recipe.other_rate)
    parser.add_argument("--workers", type=int, default=recipe.workers)
    parser.add_argument("--first-rows", type=int, default=recipe.first_rows)
    parser.add_argument("--capacity", type=int, default=recipe.capacity)
    parser.add_argument("--attention", choices=("flex", "sdpa"), default=recipe.attention)
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    summary = train(Recipe(**given), Shape(), out)
    print(f"trained {summary['steps']} steps in {summary['seconds']} s, wrote {out}", flush=True)


if __name__ == "__main__":
    main()
