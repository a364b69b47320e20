"""Ways of tokens to the experts that replicas share: what `parallel_check.py dispatch` runs.

One layer of the shape on as many ranks as --gpus, attention data-parallel, experts parallel: every
way's result against that of all-gather, also where one replica has no token; then its time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import parallel_layouts

#: Name of a way -> (dispatch, whether sizes are fixed, as in a captured graph).
WAYS = {
    "allgather": ("allgather", True),
    "alltoall": ("alltoall", True),
    "allgather_eager": ("allgather", False),
    "alltoall_by_need": ("alltoall", False),
}
EAGER_CALLS = 20
#: Largest difference in units of the largest value: bfloat16 sums in another order.
TOLERANCE = {"cuda": 2e-2, "cpu": 1e-5}


def dispatch(args: argparse.Namespace) -> list[dict]:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parallel_layouts.shape_folder(args.shape, folder, args.device)
        mp.start_processes(_rank_main, (args, folder), nprocs=args.gpus)
        rows: list[dict] = json.loads((folder / "rows.json").read_text())
    _print_table(rows)
    return rows


def _print_table(rows: list[dict]) -> None:
    print(f"{'tokens':>6} " + " ".join(f"{name:>17}" for name in WAYS), file=sys.stderr)
    for row in rows:
        cells = " ".join(f"{row[f'{name}_us']:>14.1f} us" for name in WAYS)
        print(f"{row['tokens']:>6} {cells}   equal {row['equal']}/{row['of']}", file=sys.stderr)


def _note(rows: list[dict], *paths: Path | None) -> None:
    """What there is so far, so that a run that is cut off is not lost."""
    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    for path in paths:
        if path is not None:
            path.write_text(json.dumps(rows, indent=1) + "\n")


def _rank_main(rank: int, args: argparse.Namespace, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from hpcserve.config.parallel import ParallelConfig
    from hpcserve.distributed import process_group

    on_gpu = args.device == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    config = ParallelConfig(dp_size=args.gpus, ep_size=args.gpus, enable_dp_attention=True)
    store = dist.FileStore(str(folder / "store"), args.gpus)
    state = process_group.join(config, rank, store, device, secret="dispatch", timeout_s=300)
    with torch.inference_mode():
        layers = _layers(folder / args.shape, state, device)
        rows = []
        for tokens in args.tokens:
            rows.append(_measured(layers, state, args, tokens, device))
            if rank == 0:
                _note(rows, folder / "rows.json", args.out)
    process_group.leave(state)
    os._exit(0)


def _layers(folder: Path, state: Any, device: Any) -> dict[str, Any]:
    """The same layer with each dispatch."""
    import torch

    from hpcserve.config.checkpoint import CheckpointConfig
    from hpcserve.distributed.parallel_state import TensorParallel
    from hpcserve.engine.device import default_dtype_and_device
    from hpcserve.layers.moe import SparseMoE
    from hpcserve.models.qwen2_moe import expert_shape

    shape = expert_shape(CheckpointConfig.load(folder))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layers: dict[str, Any] = {}
    with default_dtype_and_device(dtype, device):
        for name in ("allgather", "alltoall"):
            parallel = replace(state.model.experts, dispatch=name)
            layers[name] = SparseMoE(shape, parallel, TensorParallel())
    first, second = layers.values()
    generator = torch.Generator(device).manual_seed(state.place.rank)
    for param in first.experts.parameters():
        param.data.normal_(0.0, param.shape[-1] ** -0.5, generator=generator)
    # Every rank routes alike.
    first.gate.weight.data.normal_(generator=torch.Generator(device).manual_seed(99))
    second.gate, second.experts = first.gate, first.experts
    return layers


@contextmanager
def _way(state: Any, fixed: bool) -> Iterator[None]:
    from hpcserve.layers.expert_dispatch import alltoall

    usual, alltoall.FIXED_ROWS = alltoall.FIXED_ROWS, 0
    try:
        with state.model.experts.replicas.fixed() if fixed else nullcontext():
            yield
    finally:
        alltoall.FIXED_ROWS = usual


def _measured(
    layers: dict[str, Any], state: Any, args: argparse.Namespace, tokens: int, device: Any
) -> dict:
    row: dict[str, Any] = {"shape": args.shape, "gpus": args.gpus, "tokens": tokens}
    row |= {"equal": 0, "of": 0}
    for counts in ([tokens] * args.gpus, [0] + [tokens] * (args.gpus - 1)):
        _check(row, layers, state, counts, device)
    x = _tokens(layers, state, [tokens] * args.gpus, device)
    for name, (dispatched, fixed) in WAYS.items():
        with _way(state, fixed):
            took = _graph_us if fixed else _eager_us
            row[f"{name}_us"] = round(took(partial(layers[dispatched], x), device), 1)
    return row


def _tokens(layers: dict[str, Any], state: Any, counts: list[int], device: Any) -> Any:
    import torch

    state.model.experts.replicas.counts = counts
    weight = layers["allgather"].gate.weight
    generator = torch.Generator(device).manual_seed(7 + state.place.rank)
    shape = (counts[state.place.dp_rank], weight.shape[1])
    return torch.randn(shape, generator=generator, device=device).to(weight.dtype)


def _check(
    row: dict[str, Any], layers: dict[str, Any], state: Any, counts: list[int], device: Any
) -> None:
    """Count the ways whose result is that of all-gather on every rank."""
    x = _tokens(layers, state, counts, device)
    expected = layers["allgather"](x)
    for dispatched, fixed in WAYS.values():
        with _way(state, fixed):
            found = layers[dispatched](x)
        worst = (found - expected).abs().max() if len(x) else 0.0
        limit = TOLERANCE[device.type] * expected.abs().max() if len(x) else 0.0
        row["of"] += 1
        row["equal"] += state.smallest(int(found.isfinite().all() and worst <= limit))


def _graph_us(call: Callable[[], object], device: Any) -> float:
    from all_reduce_check import microseconds

    return microseconds(call, device)


def _eager_us(call: Callable[[], object], device: Any) -> float:
    """Of one call with what the host does."""
    import torch
    import torch.distributed as dist

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    settle()
    dist.barrier()
    started = time.perf_counter()
    for _ in range(EAGER_CALLS if device.type == "cuda" else 1):
        call()
    settle()
    return (time.perf_counter() - started) * 1e6 / (EAGER_CALLS if device.type == "cuda" else 1)
