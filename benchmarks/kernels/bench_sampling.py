"""Cases of sampling, penalties and logit bias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from harness import Case

from hpcserve.kernels.sampling import penalties_triton, reference, sample_triton, shapes


def _torch_sort(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: Any, top_p: torch.Tensor, *rest: Any
) -> torch.Tensor:
    """What engines without a kernel do: sort, mask, softmax, draw."""
    ordered, ids = (logits.float() / temperature.clamp(min=1e-5)[:, None]).sort(descending=True)
    probs = ordered.softmax(-1)
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p[:, None], 0.0)
    noise = torch.empty_like(probs).exponential_()
    return ids.gather(1, (probs / noise).argmax(-1, keepdim=True)).squeeze(1)


def _flashinfer(rivals: Any) -> Any:
    def run(logits: Any, temperature: Any, top_k: Any, top_p: Any, *rest: Any) -> Any:
        probs = rivals.sampling.softmax(logits.float(), temperature=temperature)
        k = torch.where(top_k > 0, top_k, logits.shape[1])
        return rivals.sampling.top_k_top_p_sampling_from_probs(
            probs, k, top_p, filter_apply_order="joint", deterministic=True
        )

    return run


def _sample(device: str, dtype: torch.dtype, dry_run: bool, rivals: Any) -> Iterator[Case]:
    for shape in shapes.SMALL if dry_run else shapes.FULL:

        def make(seed: int, shape: shapes.Case = shape) -> tuple[Any, ...]:
            return shape.make(device, dtype, seed)

        greedy = shape.temperature == 0.0
        others: dict[str, Any] = {"argmax": lambda x, *rest: x.argmax(-1)} if greedy else {}
        if not greedy and not dry_run:
            others["torch sort"] = _torch_sort
        if not greedy and rivals:
            others["flashinfer"] = _flashinfer(rivals)
        yield Case(
            "sample",
            f"{shape.name} {shape.batch} x {shape.vocab}",
            make,
            sample_triton.sample,
            reference.sample,
            others,
            bytes=shape.batch * shape.vocab * dtype.itemsize,
            # Logarithms differ in the last place between devices; near ties may fall otherwise.
            tolerance=0.02,
        )


def _penalties(device: str, dtype: torch.dtype, dry_run: bool) -> Iterator[Case]:
    for batch, vocab in [(2, 3000)] if dry_run else [(1, 128256), (64, 128256), (256, 128256)]:

        def make(seed: int, batch: int = batch, vocab: int = vocab) -> tuple[Any, ...]:
            g = torch.Generator(device).manual_seed(seed)
            logits = torch.randn(batch, vocab, generator=g, device=device).to(dtype)
            counts = torch.randint(-9, 3, (batch, vocab), generator=g, device=device)
            prompt = torch.rand(batch, vocab, generator=g, device=device) < 0.01
            amounts = torch.rand(2, batch, generator=g, device=device)
            return logits, counts.clamp(min=0).int(), prompt, *amounts, amounts[0] + 1.0

        yield Case(
            "penalties",
            f"{batch} x {vocab}",
            make,
            penalties_triton.apply_penalties,
            reference.apply_penalties,
            {"torch": reference.apply_penalties},
            bytes=batch * vocab * (2 * dtype.itemsize + 5),
        )

        def biases(seed: int, batch: int = batch, vocab: int = vocab) -> tuple[Any, ...]:
            g = torch.Generator(device).manual_seed(seed)
            logits = torch.randn(batch, vocab, generator=g, device=device).to(dtype)
            ids = torch.randperm(vocab, generator=g, device=device)[:300].int()
            rows = torch.randint(-1, batch, (300,), generator=g, device=device).int()
            return logits, rows, ids, torch.randn(300, generator=g, device=device)

        yield Case(
            "logit_bias",
            f"300 of {batch} x {vocab}",
            biases,
            penalties_triton.apply_logit_bias,
            reference.apply_logit_bias,
        )


def cases(device: str, dtype: torch.dtype, dry_run: bool, rivals: Any) -> Iterator[Case]:
    yield from _sample(device, torch.float32, dry_run, rivals)
    if not dry_run:
        yield from _sample(device, dtype, dry_run, None)
    yield from _penalties(device, torch.float32, dry_run)
