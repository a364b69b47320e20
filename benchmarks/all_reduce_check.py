"""The sum over ranks with residual add and norm: is it right, and which way is fastest at which size?

    python benchmarks/all_reduce_check.py --gpus 4 --out all_reduce.json     (under a minute)

Every way is checked against plain torch, then timed inside a CUDA graph of several calls: `fused`
(one kernel, one-shot), `pushed` (one kernel, each rank its rows), `pushed_whole` (with the total, as
at the end of a pipeline's stage), `two_shot` (in place, then the norm), `copied` (symmetric memory as
for any tensor, then the norm), `nccl` (then the norm); `exchange` is the pairs of a choice of tokens.
Prints what FUSED_BYTES and PUSHED_BYTES in hpcserve/distributed/comm_symm_mem.py should be; the last
line printed is the JSON. With --device cpu it runs what a CPU has, over gloo, to try the program.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

HIDDEN = 8192
MOST_BYTES = 8 << 20
CALLS = 20
REPLAYS = 20
EPS = 1e-5

Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def ways_of(comm, tp, *, copies: bool) -> dict[str, Way]:
    """name -> (this rank's part, residual, weight) -> (normed, total).

    copies: False leaves parts in the communicator's memory as they are, since a matrix product
    would have made them there: for timing alone.
    """
    from hpcserve.distributed.comm_symm_mem import MAX_PUSHED_BYTES
    from hpcserve.layers.norm import RMSNorm
    from hpcserve.ops.norm import add_rms_norm

    def placed(x: torch.Tensor) -> torch.Tensor:
        """As a matrix product leaves it: in the communicator's own memory."""
        out = comm.part(tuple(x.shape), x.dtype, x.device)
        if out is None:
            return x.clone()
        return out.copy_(x) if copies else out

    def summed_by_norm(fused_bytes, pushed_bytes, chained, x, residual, weight):
        # Whatever the tables say of this size: where it stops to pay is the question.
        comm._fused_bytes, comm._pushed_bytes = fused_bytes, pushed_bytes
        norm = RMSNorm(x.shape[-1], EPS)
        norm.weight.data = weight
        return norm.add_sum(placed(x), residual, tp, chained=chained)

    def two_shot(x, residual, weight):
        return add_rms_norm(comm.all_reduce(placed(x)), residual, weight, EPS)

    def copied(x, residual, weight):
        return add_rms_norm(comm.all_reduce(x.clone() if copies else x), residual, weight, EPS)

    def nccl(x, residual, weight):
        summed = x.clone() if copies else x
        dist.all_reduce(summed)
        return add_rms_norm(summed, residual, weight, EPS)

    return {
        "fused": partial(summed_by_norm, MOST_BYTES, 0, False),
        "pushed": partial(summed_by_norm, 0, MAX_PUSHED_BYTES, True),
        "pushed_whole": partial(summed_by_norm, 0, MAX_PUSHED_BYTES, False),
        "two_shot": two_shot,
        "copied": copied,
        "nccl": nccl,
    }


def is_right(
    name: str, way: Way, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> bool:
    """Whether it is on every rank, and what the norm sums of the same bits."""
    from hpcserve.kernels.comm import reference

    rank, size = dist.get_rank(), dist.get_world_size()
    normed, total = reference.sum_add_rms_norm(_gathered(x), residual, weight, EPS)
    # Of a total that only the next sum takes, just a rank's own rows need be right.
    rows = slice(rank, None, size) if name == "pushed" else slice(None)
    right = True
    for _ in range(3):  # the memory is used in turn; whoever finds a mistake still meets the others
        found = way(x, residual, weight)
        right &= _close(found[0], normed) and _close(found[1][rows], total[rows])
        if name in ("fused", "pushed", "pushed_whole"):
            right &= all(torch.equal(other, found[0]) for other in _gathered(found[0]))
    on_all = torch.tensor(int(right), device=x.device)
    dist.all_reduce(on_all, op=dist.ReduceOp.MIN)
    return bool(on_all)


def _gathered(x: torch.Tensor) -> list[torch.Tensor]:
    """Each rank's."""
    found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(found, x)
    return found


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=2e-2, atol=5e-2)


def microseconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call: a graph of CALLS on a GPU, the clock elsewhere."""
    if device.type == "cpu":
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1e6
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        kept = [call() for _ in range(CALLS)]
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / CALLS)
    del kept
    return statistics.median(times)


def rank_main(rank: int, args: argparse.Namespace) -> None:
    on_gpu = args.device == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        init_method=f"tcp://127.0.0.1:{args.port}",
        rank=rank,
        world_size=args.gpus,
        device_id=device if on_gpu else None,
    )
    with torch.inference_mode():
        rows = measure_all(rank, args, device)
    if rank == 0 and args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    if rank == 0:
        print(json.dumps(rows), flush=True)
    dist.barrier()
    os._exit(0 if all(row["ok"] for row in rows) else 1)


def measure_all(rank: int, args: argparse.Namespace, device: torch.device) -> list[dict]:
    from hpcserve.distributed.comm_torch import TorchComm
    from hpcserve.distributed.parallel_state import TensorParallel

    group = dist.new_group(list(range(args.gpus)))
    if device.type == "cuda":
        from hpcserve.distributed.comm_symm_mem import SymmMemComm

        comm = SymmMemComm(group, device)
    else:
        comm = TorchComm(group)
    tp = TensorParallel(rank, args.gpus, comm)
    checked, timed, found = ways_of(comm, tp, copies=True), ways_of(comm, tp, copies=False), []
    for rows in args.rows:
        own = torch.Generator(device).manual_seed(rank)
        same = torch.Generator(device).manual_seed(99)
        x = torch.randn(rows, HIDDEN, generator=own, device=device).to(torch.bfloat16)
        residual = torch.randn(rows, HIDDEN, generator=same, device=device).to(torch.bfloat16)
        weight = torch.randn(HIDDEN, generator=same, device=device).to(torch.bfloat16)
        pairs = torch.randn(rows, 2, generator=own, device=device)
        row = {"gpus": args.gpus, "rows": rows, "bytes": rows * HIDDEN * 2, "ok": True}
        for name, way in timed.items():
            is_ok = is_right(name, checked[name], x, residual, weight)
            comm.settle()
            if not is_ok:
                row["ok"] = False
                row.setdefault("wrong", []).append(name)
            again = x.clone()  # some ways sum into it, again and again
            row[name] = round(microseconds(partial(way, again, residual, weight), device), 2)
            comm.settle()
        exchange = partial(tp.all_gather_first, pairs.unsqueeze(0))
        row["exchange"] = round(microseconds(exchange, device), 2)
        found.append(row)
        if rank == 0:
            print(json.dumps(row), file=sys.stderr, flush=True)
    if rank == 0:
        for table, number in thresholds(found).items():
            print(f"{table}[{args.gpus}] = {number}", file=sys.stderr)
    return found


def thresholds(found: list[dict]) -> dict[str, int]:
    """The largest sizes at which one-shot, and then pushing, is the fastest of what norms can do."""
    from hpcserve.distributed.comm_symm_mem import MAX_PUSHED_BYTES

    ways = ("fused", "pushed", "two_shot")
    best = {way: [0] for way in ways}
    for row in found:
        # Larger ones do not fit its memory: there it is two_shot by another name.
        held = ways if row["bytes"] <= MAX_PUSHED_BYTES else ("fused", "two_shot")
        best[min(held, key=row.__getitem__)].append(row["bytes"])
    return {"FUSED_BYTES": max(best["fused"]), "PUSHED_BYTES": max(best["pushed"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--port", type=int, default=29533)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and (seen := torch.cuda.device_count()) < args.gpus:
        print(f"error: torch sees {seen} GPUs, not {args.gpus}; see --help", file=sys.stderr)
        return 2
    try:
        mp.start_processes(rank_main, (args,), nprocs=args.gpus)
    except mp.ProcessExitedException as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
