"""Ranks as processes over gloo: a mixture of experts that replicas share, by one dispatch.

A program of its own, since it forks: `python dispatch_ranks.py DISPATCH DP TP EP FOLDER`. Exits with
0 if every rank found, for several spreads of tokens, what one process with all experts finds.
"""

import contextlib
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from hpcserve.config.parallel import ParallelConfig
from hpcserve.distributed import process_group
from hpcserve.distributed.parallel_state import ExpertParallel, ReplicaGather, TensorParallel
from hpcserve.layers.expert_dispatch import alltoall
from hpcserve.layers.moe import ExpertShape, SparseMoE
from hpcserve.testing import fill_by_name

SHAPE = ExpertShape(num_experts=8, k=3, hidden_size=20, size=8, renormalize=True)
SECONDS = 60


def spreads(replicas: int) -> list[list[int]]:
    """Tokens of each replica: alike, none at all of one, one alone, many of one."""
    return [
        [5] * replicas,
        [0, *range(3, 2 + replicas)],
        [1] + [0] * (replicas - 1),
        [2] * (replicas - 1) + [37],
    ]


@contextlib.contextmanager
def way(name: str, replicas: ReplicaGather) -> Iterator[None]:
    """By equal parts since the step is captured, since there are few tokens, or by need."""
    alltoall.FIXED_ROWS = 1 << 20 if name == "few" else 0
    if name == "captured":
        with replicas.fixed():
            yield
    else:
        yield


def tokens_of(replica: int, count: int, turn: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * turn + replica)
    tokens = torch.randn(count, SHAPE.hidden_size, generator=generator)
    # In one of the spreads all tokens take the same experts: the other ranks get none.
    return tokens if turn % 2 else tokens[:1].expand(count, -1).contiguous()


def layer_of(parallel: ExpertParallel, tp: TensorParallel) -> SparseMoE:
    """Weights depend on their names alone: each rank has its part of the same ones."""
    layer = SparseMoE(SHAPE, parallel, tp)
    fill_by_name(layer)
    return layer


def run(rank: int, config: ParallelConfig, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), config.world_size)
    state = process_group.join(
        config, rank, store, torch.device("cpu"), secret="s", timeout_s=SECONDS
    )
    experts, tp, place = state.model.experts, state.model.tp, state.place
    with torch.inference_mode():
        shared, whole = layer_of(experts, tp), layer_of(ExpertParallel(), TensorParallel())
        for turn, counts in enumerate(spreads(config.dp_size)):
            experts.replicas.counts = counts
            own = tokens_of(place.dp_rank, counts[place.dp_rank], turn)
            for name in ("captured", "few", "many"):
                with way(name, experts.replicas):
                    found = shared(own)
                assert found.shape == own.shape
                if len(own):
                    torch.testing.assert_close(found, whole(own), rtol=1e-5, atol=1e-5)
    process_group.leave(state)


def main() -> int:
    dispatch, dp, tp, ep, folder = sys.argv[1:]
    config = ParallelConfig(
        dp_size=int(dp),
        tp_size=int(tp),
        ep_size=int(ep),
        enable_dp_attention=True,
        moe_dispatch=dispatch,
    )
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=run, args=(rank, config, Path(folder)))
        for rank in range(config.world_size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(2 * SECONDS)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return 0 if codes == [0] * len(ranks) else 1


if __name__ == "__main__":
    sys.exit(main())
