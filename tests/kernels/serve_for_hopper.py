"""Walk a whole serving path without a GPU, and compile for sm_90 each kernel that it would launch.

    python serve_for_hopper.py SHAPE TP [--rank R] [--graph-rows 256] [--fused] [--dtype float32]

The model, its pool and its slots are tensors without memory; a launch compiles and does not run.
First comes what a start does: the largest step, small steps of every kind, the decode graphs. Then
steps as they come while serving, which should find every kernel compiled. Prints one JSON object
for each variant of a kernel. Of flashinfer only the project's own kernels beside it are seen.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import compile_for_hopper
import numpy as np
import torch

META = torch.device("meta")


def pretend() -> None:
    """Let tensors without memory pass for an H200's. Before anything else is imported."""
    flashinfer = ModuleType("flashinfer")
    flashinfer.decode = ModuleType("flashinfer.decode")
    flashinfer.decode.fast_decode_plan = None
    for name in ("Decode", "Prefill"):
        setattr(flashinfer, f"Batch{name}WithPagedKVCacheWrapper", None)
    sys.modules |= {"flashinfer": flashinfer, "flashinfer.decode": flashinfer.decode}
    torch.cuda.get_device_name = lambda device=None: "NVIDIA H200"
    from hpcserve.engine import staging
    from hpcserve.ops import _dispatch

    staging.to_device = lambda array, device: torch.from_numpy(array).to(META)
    _dispatch.use_kernel = lambda tensor: True


def backend_class():
    from hpcserve.attention import flashinfer
    from hpcserve.attention.flashinfer import FlashInfer
    from hpcserve.attention.triton import TritonAttention
    from hpcserve.ops.page_index import page_index
    from hpcserve.ops.paged_attention import paged_decode

    class OwnKernels(TritonAttention):
        """Triton's backend; a graph's steps also run what the one of flashinfer puts into them."""

        _split_of_own = staticmethod(FlashInfer._split_of_own)

        def graph_variants(self, num_rows):
            return FlashInfer.graph_variants(self, num_rows)

        def graph_variant(self, host_seq_lens):
            return FlashInfer.graph_variant(self, host_seq_lens)

        def plan(self, meta):
            super().plan(meta)
            self._index(meta)
            many = meta.num_decodes >= flashinfer._MANY_ROWS
            self.split = flashinfer._MANY_SPLIT if many else None

        def _index(self, meta):
            lists = (torch.empty(meta.page_table.numel() + 1, dtype=torch.int32) for _ in range(3))
            page_index(meta.page_table, meta.seq_lens, self.page_size, *lists)

        def capture_plan(self, meta, variant=0):
            super().capture_plan(meta, variant)
            self.split = self._split_of_own(meta.num_rows, variant)
            if self.split is None:
                self.rotates = False
                self._index(meta)
            else:
                FlashInfer.capture_plan(self, meta, variant)

        def forward(self, q, k_cache, v_cache, meta):
            rows = meta.num_decodes
            if self.split is not None:
                table, lens = meta.page_table[:rows], meta.seq_lens[:rows]
                own = q[:rows], k_cache, v_cache, table, lens, self.scale
                paged_decode(*own, out=torch.empty_like(q)[:rows], min_split=self.split)
            return super().forward(q, k_cache, v_cache, meta)

        def rotate_and_forward(self, *args):
            FlashInfer.rotate_and_forward(self, *args)
            return super().rotate_and_forward(*args)

    return OwnKernels


def communicator(rank: int, size: int, fused: bool):
    """What a rank's kernels see of its group; nothing is sent."""
    from hpcserve.distributed.comm_base import Communicator, PeerOutputs, PeerParts

    class Alone(Communicator):
        def all_reduce(self, x):
            return x

        def all_gather(self, x):
            return x.new_empty((size * x.shape[0], *x.shape[1:]))

        def all_to_all(self, x, sent=None, taken=None):
            return x.new_empty((len(x) if taken is None else sum(taken), *x.shape[1:]))

        def part(self, shape, dtype, device):
            return torch.empty(shape, dtype=dtype, device=META)

        def peers(self, part):
            if not fused or len(part) > 256:
                return None
            flags = torch.empty(size, dtype=torch.int64, device=META)
            meetings = torch.empty(512, dtype=torch.int32, device=META)
            addresses, outputs = (1 << 40,) * size, None
            if len(part) > 32:
                memory = torch.empty(2, *part.shape, dtype=part.dtype, device=META)
                outputs = PeerOutputs(memory, addresses)
            return PeerParts(addresses, flags, meetings, rank, outputs)

    return Alone()


def checkpoint_of(shape: str, folder: Path):
    """With two layers: the others launch the same."""
    from hpcserve.bench.stand_in import SHAPES
    from hpcserve.config.checkpoint import CheckpointConfig
    from hpcserve.demo import tiny_chat_path

    if shape == "tiny-chat":
        config = json.loads((tiny_chat_path() / "config.json").read_text())
    else:
        config = {"hidden_act": "silu", "torch_dtype": "bfloat16", **SHAPES[shape]}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    return CheckpointConfig.load(folder)


def runner_of(args, checkpoint, limits):
    from hpcserve import registry
    from hpcserve.distributed.parallel_state import ExpertParallel, TensorParallel
    from hpcserve.engine.device import default_dtype_and_device
    from hpcserve.engine.model_runner import ModelRunner
    from hpcserve.kvcache.mha_pool import MHAPool

    comm = communicator(args.rank, args.tp, args.fused) if args.tp > 1 else None
    entry = registry.load("hpcserve.models", checkpoint.model_type).EntryClass
    dtype = getattr(torch, args.dtype)
    with default_dtype_and_device(dtype, META):
        experts = ExpertParallel(slice_rank=args.rank, num_slices=args.tp, comm=comm)
        tp = TensorParallel(args.rank, args.tp, comm)
        model = entry(checkpoint, tp, limits.context_length, experts=experts).eval()
    heads = {"num_kv_heads": model.num_kv_heads, "head_dim": model.head_dim}
    shape = {"page_size": limits.page_size, "dtype": dtype, **heads}
    pool = MHAPool(num_layers=model.num_layers, num_pages=50_000, device=META, **shape)
    backend = backend_class()(num_heads=model.num_heads, scale=0.1, **shape)
    runner = ModelRunner(
        model=model,
        pool=pool,
        backend=backend,
        max_slots=limits.max_slots,
        context_length=limits.context_length,
        vocab_size=limits.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        device=META,
        grammars=SimpleNamespace(),
        hidden_size=checkpoint.hidden_size,
        dtype=dtype,
    )
    # Results would have to come to the host.
    runner.submit = runner._run
    return runner


class Recorder:
    """Stands in for what captures CUDA graphs: a replay runs it again."""

    def __init__(self, device):
        pass

    def capture(self, run):
        return run(), run


def start(runner, limits, graph_rows: int) -> None:
    from hpcserve.engine import decode_graphs
    from hpcserve.engine.trial_steps import largest_step, warm_up_steps

    runner.submit(largest_step(limits)[0])
    for step in warm_up_steps(limits):
        runner.submit(step)
    decode_graphs.make_recorder = Recorder
    if graph_rows:
        runner.capture_graphs(runner.backend, graph_rows)


def serve_graphs(runner, limits) -> None:
    """Steps of decodes alone, which take graphs of both kinds."""
    from hpcserve.engine.trial_steps import _PARAMS, _step

    for rows, history in ((1, 1), (1, 300), (2, 100), (3, 50), (4, 200), (5, 20), (33, 40)):
        ones, computed = np.ones(rows, np.int32), np.full(rows, history, np.int32)
        pages = [np.zeros(-(-(int(computed[0]) + 1) // limits.page_size), np.int32)] * rows
        args = (ones, pages, _PARAMS[0], limits.vocab_size)
        runner.submit(_step(computed, *args, num_decodes=rows))


def serve(runner, limits, count: int) -> None:
    """Mixed steps of all kinds of rows, lengths and parameters; none of them takes a graph."""
    from hpcserve.engine.trial_steps import _PARAMS, _step

    runner._graphs = None
    draw = random.Random(5)
    for number in range(count):
        decodes = draw.choice((0, 1, 2, 3, 7, 16, 33, 100, 255))
        prompts = draw.choice((1, 2, 5)) if decodes else draw.choice((1, 3, 16))
        most = min((limits.num_tokens - decodes) // prompts, limits.context_length // 2)
        scheduled = [1] * decodes + [draw.randint(1, most) for _ in range(prompts)]
        history = min(limits.context_length // 2, draw.choice((50, 3000, 100_000)))
        computed = [draw.randint(1, history) for _ in scheduled]
        lengths = np.array(scheduled, np.int32) + np.array(computed, np.int32)
        pages = [np.zeros(-(-length // limits.page_size), np.int32) for length in lengths]
        step = _step(
            np.array(computed, np.int32),
            np.array(scheduled, np.int32),
            pages,
            _PARAMS[number % len(_PARAMS)],
            limits.vocab_size,
            num_decodes=decodes,
        )
        # Grown by pages of their own, as requests are.
        added = draw.randint(1, 40)
        step.new_page_slots, step.new_page_indices = np.zeros((2, added), np.int32)
        step.new_page_ids = np.zeros(added, np.int32)
        runner.submit(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape")
    parser.add_argument("tp", type=int)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--graph-rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192, help="most of a step")
    parser.add_argument("--steps", type=int, default=40, help="while serving")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--fused", action="store_true")
    args = parser.parse_args()
    compile_for_hopper.compile_instead_of_launching()
    pretend()
    from hpcserve.engine.trial_steps import StepLimits

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_of(args.shape, Path(folder))
    limits = StepLimits(
        max_slots=1024,
        num_tokens=args.tokens,
        context_length=checkpoint.max_position_embeddings,
        page_size=16,
        vocab_size=checkpoint.vocab_size,
    )
    with torch.inference_mode(), META:
        runner = runner_of(args, checkpoint, limits)
        start(runner, limits, args.graph_rows)
        print(json.dumps({"phase": "serving"}), flush=True)
        if args.graph_rows:
            serve_graphs(runner, limits)
        serve(runner, limits, args.steps)


if __name__ == "__main__":
    main()
