"""Checks and timings of parallel layouts on the GPUs of one host.

    python benchmarks/parallel_check.py equality --gpus 8 --out equality.json
    python benchmarks/parallel_check.py steps --tp 8 --out steps.json
    python benchmarks/parallel_check.py replicas --gpus 8 --out replicas.json
    python benchmarks/parallel_check.py experts --gpus 4 --out experts.json
    python benchmarks/parallel_check.py sockets --gpus 8 --out sockets.json
    python benchmarks/parallel_check.py dispatch --gpus 4 --out dispatch.json

equality: greedy text of tiny-chat and of a random mixture of experts under every layout that fits,
against one GPU, in fp32. steps: decode steps of a model's shape
with dummy weights, straight on the executor. replicas: sharegpt-like requests for one GPU, and as
many times more for --gpus replicas. experts: a mixture of experts on one GPU, by TP and EP, and with
DP attention: steps with the number of distinct experts that they hit, and offline throughput.
sockets: two launchers of half the GPUs each, without NVLink and shared memory as between nodes:
right answers, and the throughput of TP, TP x PP 2 and DP 2. dispatch: one layer of experts that
replicas share, by every way in which tokens may reach them: the same result, and microseconds a
call at --tokens of each replica. --only takes some of the layouts of equality, experts, replicas
and sockets. With --device cpu every shape is tiny:
to try the program. The last line printed is the JSON; --out writes it as well, after every case.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import parallel_dispatch
import parallel_layouts

#: Layouts of the dense model and of the mixture of experts; those with more ranks than GPUs are
#: left out.
DENSE = ("tp=2", "pp=2", "dp=2", "tp=4", "tp=2 pp=2", "tp=2 dp=2", "pp=4", "tp=4 dp=2", "tp=2 pp=4")
SPARSE = ("tp=2", "tp=2 ep=2", "pp=2", "tp=4 ep=4", "tp=4 ep=2", "tp=8 ep=8")
#: Of the mixture of experts, with DP attention.
SHARED = ("dp=2 ep=2", "tp=2 dp=2 ep=4", "dp=4 ep=4", "tp=2 dp=4 ep=8")
PROMPTS = [[1 + (7 * n + 3 * i) % 200 for i in range(5 + 6 * n)] for n in range(24)]
SPARSE_SHAPE = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 0,
    "bos_token_id": 0,
}


def sizes_of(layout: str) -> dict[str, int]:
    return {name: int(size) for name, size in (word.split("=") for word in layout.split())}


def num_ranks(layout: str) -> int:
    sizes = sizes_of(layout)
    return sizes.get("tp", 1) * sizes.get("pp", 1) * sizes.get("dp", 1)


def write_sparse_model(folder: Path, tokenizer_from: Path) -> Path:
    """A mixture of experts with random fp32 weights and tiny-chat's tokenizer."""
    import torch
    from safetensors.torch import save_file

    from hpcserve.config.checkpoint import CheckpointConfig
    from hpcserve.distributed.parallel_state import TensorParallel
    from hpcserve.models.qwen3_moe import Qwen3MoeForCausalLM
    from hpcserve.weights.loader import expected_tensors

    for file in tokenizer_from.iterdir():
        if (file.is_file() and "token" in file.name) or "template" in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    vocab_size = json.loads((tokenizer_from / "config.json").read_text())["vocab_size"]
    (folder / "config.json").write_text(json.dumps({**SPARSE_SHAPE, "vocab_size": vocab_size}))
    model = Qwen3MoeForCausalLM(CheckpointConfig.load(folder), TensorParallel(), 1024)
    params = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (param_name, shard_id) in expected_tensors(params, model.packed_modules).items():
        shape = params[param_name].full_shapes[shard_id]
        values = torch.randn(shape, generator=generator) * 0.08
        tensors[name] = values.abs() + 0.5 if "norm" in name else values
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def texts_of(
    model: Path, device: str, layout: str, dispatch: str | None = None
) -> tuple[list[list[int]], float, float]:
    """(token ids of every answer, seconds to start, seconds to answer).

    dispatch: with DP attention, how tokens reach the experts.
    """
    from hpcserve import LLM, SamplingParams

    started = time.perf_counter()
    sizes = {} if layout == "one" else sizes_of(layout)
    with LLM(
        str(model),
        device=device,
        dtype="float32",
        max_running_requests=16,
        max_total_tokens=16384,
        context_length=512,
        chunked_prefill_size=128,
        enable_dp_attention=dispatch is not None,
        moe_dispatch=dispatch or "allgather",
        **sizes,
    ) as llm:
        up = time.perf_counter()
        params = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
        outputs = llm.generate(PROMPTS, params)
        ids = [output.outputs[0].token_ids for output in outputs]
        return ids, up - started, time.perf_counter() - up


def equality(args: argparse.Namespace) -> list[dict]:
    from hpcserve.demo import tiny_chat_path

    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        sparse = write_sparse_model(Path(temporary), tiny_chat_path())
        for name, model, layouts, dispatch in (
            ("tiny-chat", tiny_chat_path(), DENSE, None),
            ("mixture", sparse, SPARSE, None),
            ("mixture, DP attention", sparse, SHARED, "allgather"),
            ("mixture, DP attention, all-to-all", sparse, SHARED, "alltoall"),
        ):
            wanted = [one for one in layouts if num_ranks(one) <= args.gpus]
            wanted = [one for one in wanted if parallel_layouts.wanted(args, one)]
            if not wanted:
                continue
            expected, _, _ = texts_of(model, args.device, "one")
            for layout in wanted:
                found, start_s, run_s = texts_of(model, args.device, layout, dispatch)
                same = sum(a == b for a, b in zip(found, expected, strict=True))
                rows.append(
                    {
                        "model": name,
                        "layout": layout,
                        "equal": same,
                        "of": len(expected),
                        "start_s": round(start_s, 1),
                        "run_s": round(run_s, 2),
                    }
                )
                note(args, rows)
    return rows


def steps(args: argparse.Namespace) -> list[dict]:
    from hpcserve.bench.one_batch import run_one_batch
    from hpcserve.bench.roofline import Hardware
    from hpcserve.config.engine import EngineConfig

    with tempfile.TemporaryDirectory() as temporary:
        folder = parallel_layouts.shape_folder(args.shape, Path(temporary), args.device)
        sizes = {"tp": args.tp, "ep": args.ep}
        config = EngineConfig.from_options(
            parallel_layouts.engine_options(folder, args.device, **sizes)
            | {
                "context_length": 2048,
                "max_running_requests": 64,
                "cuda_graph_max_bs": 64,
                "chunked_prefill_size": 2048,
            }
        )
        started = time.perf_counter()
        rows = run_one_batch(
            config,
            batch_sizes=args.batch_sizes,
            input_lens=[args.input_len],
            num_steps=64,
            depth=2,
            repeats=3,
            hardware=Hardware(num_gpus=args.tp),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        seconds = time.perf_counter() - started
    found = [
        {"shape": args.shape, "tp": args.tp, "ep": args.ep, "all_s": round(seconds, 1), **row}
        for row in rows
    ]
    note(args, found)
    return found


def sockets(args: argparse.Namespace) -> list[dict]:
    """The mixture of experts has heads for eight ranks; its text must be that of one."""
    from hpcserve.demo import tiny_chat_path

    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        model = write_sparse_model(Path(temporary), tiny_chat_path())
        expected, _, _ = texts_of(model, args.device, "one")

        def add(row: dict) -> None:
            rows.append(row)
            note(args, rows)

        parallel_layouts.sockets(args, add, model, expected, PROMPTS)
    return rows


def layouts(args: argparse.Namespace) -> list[dict]:
    rows: list[dict] = []

    def add(row: dict) -> None:
        rows.append(row)
        note(args, rows)

    run = parallel_layouts.replicas if args.check == "replicas" else parallel_layouts.experts
    run(args, add)
    return rows


#: The shape that a check is about where none is named.
USUAL_SHAPE = {
    "replicas": "llama-3.1-8b",
    "experts": "qwen3-30b-a3b",
    "sockets": "llama-3.1-8b",
    "dispatch": "qwen3-30b-a3b",
}


def note(args: argparse.Namespace, rows: list[dict]) -> None:
    """What there is so far, so that a run that is cut off is not lost."""
    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


def gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    checks = {
        "equality": equality,
        "steps": steps,
        "replicas": layouts,
        "experts": layouts,
        "sockets": sockets,
        "dispatch": parallel_dispatch.dispatch,
    }
    parser.add_argument("check", choices=checks)
    parser.add_argument("--only", nargs="+", help="layouts, such as 'tp=2 pp=2', 'dp=1' or 'one'")
    parser.add_argument("--no-hits", action="store_true", help="experts: do not count those hit")
    parser.add_argument("--requests", type=int, default=1000, help="for each GPU of replicas")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", help="a shape of hpcserve bench (steps: llama-3.1-70b)")
    parser.add_argument("--tp", type=int, default=8)
    parser.add_argument("--ep", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 4096])
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    needed = args.tp if args.check == "steps" else args.gpus
    if args.device == "cuda" and (seen := gpus_here()) < needed:
        print(f"error: torch sees {seen} GPUs, not {needed}; see --help", file=sys.stderr)
        return 2
    args.shape = args.shape or USUAL_SHAPE.get(args.check, "llama-3.1-70b")
    rows = checks[args.check](args)
    if not rows:
        named = ", ".join(repr(one) for one in args.only or ())
        print(f"error: {args.check} has no layout {named} on {args.gpus} GPUs", file=sys.stderr)
        return 2
    print(json.dumps(rows))
    return 0 if all(row.get("equal") == row.get("of") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
