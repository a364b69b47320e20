"""Throughput and steps of layouts: what `parallel_check.py` runs for replicas, experts and sockets."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

#: What a shape becomes on a CPU, to try the program.
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 4096,
}

Note = Callable[[dict], None]


def wanted(args: argparse.Namespace, layout: str) -> bool:
    return not args.only or layout in args.only


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def shape_folder(shape: str, folder: Path, device: str) -> Path:
    """A folder of `shape` for dummy weights; tiny on a CPU."""
    from hpcserve.bench.stand_in import make_stand_in

    make_stand_in(shape, folder / shape)
    if device == "cpu":
        path = folder / shape / "config.json"
        config = json.loads(path.read_text())
        config |= {key: value for key, value in TINY.items() if key in config}
        config["rope_scaling"] = None
        path.write_text(json.dumps(config | {"eos_token_id": 0}))
    return folder / shape


def engine_options(model: Path, device: str, **sizes: object) -> dict[str, object]:
    options: dict[str, object] = {
        "model": str(model),
        "load_format": "dummy",
        "device": device,
        "random_seed": 0,
        **sizes,
    }
    if device == "cpu":
        options |= {"max_total_tokens": 16384, "context_length": 4096, "cpu_threads": 1}
        options |= {"max_running_requests": 16}
    return options


# ---------------------------------------------------------------- offline throughput


def throughput(model: Path, device: str, requests: int, gpus: int, **sizes: object) -> dict:
    """Output tokens per second of sharegpt-like requests, all at once, through hpcserve.LLM."""
    from hpcserve.bench.offline import run_offline
    from hpcserve.bench.roofline import Hardware
    from hpcserve.bench.selection import select
    from hpcserve.config.engine import EngineConfig

    selection = select(
        workload=None, preset="sharegpt", trace=None, values={"num_requests": requests}
    )
    started = time.perf_counter()
    outcome = run_offline(
        EngineConfig.from_options(engine_options(model, device, **sizes)),
        selection,
        seed=0,
        repeats=1,
        warmup=min(requests, 16 if device == "cpu" else 256 * gpus),
        frontend=True,
        hardware=Hardware(num_gpus=gpus),
        trace_file=None,
        say=say,
    )
    (run,) = outcome["cells"][0]["runs"]
    return {
        "requests": requests,
        "output_tok_s": run["output_tok_s"],
        "all_s": round(time.perf_counter() - started, 1),
    }


def replicas(args: argparse.Namespace, note: Note) -> None:
    """One GPU against `--gpus` replicas, with as many requests for each."""
    with tempfile.TemporaryDirectory() as temporary:
        model = shape_folder(args.shape, Path(temporary), args.device)
        alone = None
        for count in (1, args.gpus):
            if not wanted(args, f"dp={count}"):
                continue
            found = throughput(model, args.device, args.requests * count, count, dp=count)
            alone = found["output_tok_s"] if count == 1 else alone
            times = {"times_one": round(found["output_tok_s"] / alone, 3)} if alone else {}
            note({"shape": args.shape, "dp": count, **found, **times})


# ---------------------------------------------------------------- mixtures of experts

EXPERT_LAYOUTS = {
    "one": {},
    "tp=4 ep=4": {"tp": 4, "ep": 4},
    "dp=4 ep=4": {"dp": 4, "ep": 4, "enable_dp_attention": True},
    "dp=4 ep=4 alltoall": {
        "dp": 4,
        "ep": 4,
        "enable_dp_attention": True,
        "moe_dispatch": "alltoall",
    },
}


def experts(args: argparse.Namespace, note: Note) -> None:
    """Decode steps with the distinct experts that they hit, and offline throughput."""
    with tempfile.TemporaryDirectory() as temporary:
        model = shape_folder(args.shape, Path(temporary), args.device)
        for name, layout in EXPERT_LAYOUTS.items():
            gpus = layout.get("tp", 1) * layout.get("dp", 1)
            if gpus > args.gpus or not wanted(args, name):
                continue
            named = {"shape": args.shape, **layout}
            for row in expert_steps(model, args, layout, Path(temporary) / "hits.json"):
                note({**named, **row})
            note({**named, **throughput(model, args.device, args.requests, gpus, **layout)})


def alone(call: Callable[..., list[dict]], *args: object, **options: object) -> list[dict]:
    """In a process of its own, whose memory on the GPU goes with it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(call, *args, **options).result()


def expert_steps(
    model: Path, args: argparse.Namespace, layout: dict, hits_file: Path
) -> list[dict]:
    """A run for the times, and one for the experts, whose counting takes time itself."""
    rows = alone(step_times, model, args, layout)
    if args.no_hits:
        return rows
    os.environ["HPCSERVE_EXPERT_HITS_FILE"] = str(hits_file)
    try:
        alone(step_times, model, args, layout, num_steps=8)
    finally:
        del os.environ["HPCSERVE_EXPERT_HITS_FILE"]
    means = {int(tokens): mean for tokens, mean in json.loads(hits_file.read_text()).items()}
    for row in rows:
        # Replicas' tokens are padded to the most that one has: only even batches tell.
        even = row["batch_size"] % layout.get("dp", 1) == 0
        row["distinct_experts"] = means.get(row["batch_size"]) if even else None
        say(f"{layout or 'one GPU'}: batch {row['batch_size']}, {row['distinct_experts']} experts")
    return rows


def step_times(
    model: Path, args: argparse.Namespace, layout: dict, num_steps: int = 64
) -> list[dict]:
    from hpcserve.bench.one_batch import run_one_batch
    from hpcserve.bench.roofline import Hardware
    from hpcserve.config.engine import EngineConfig

    largest = max(args.batch_sizes)
    options = engine_options(model, args.device, **layout) | {
        "context_length": 2048 if args.device == "cuda" else 1024,
        "max_running_requests": largest,
        "cuda_graph_max_bs": largest,
        "chunked_prefill_size": 2048,
    }
    if args.device == "cpu":
        options["max_total_tokens"] = largest * 1024
        num_steps = min(num_steps, 4)
    return run_one_batch(
        EngineConfig.from_options(options),
        batch_sizes=args.batch_sizes,
        input_lens=[args.input_len],
        num_steps=num_steps,
        depth=2,
        repeats=1 if args.device == "cpu" else 3,
        hardware=Hardware(num_gpus=layout.get("tp", 1) * layout.get("dp", 1)),
        say=say,
    )


# ---------------------------------------------------------------- two launchers over sockets


@dataclass
class Served:
    """Two launchers that serve together.  start_s: until both answered."""

    url: str
    start_s: float


#: Neither NVLink nor shared memory: what passes between the launchers, passes over sockets.
SOCKETS = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}


@contextlib.contextmanager
def two_launchers(
    model: Path, args: argparse.Namespace, layout: str, options: list[str], logs: Path
) -> Iterator[Served]:
    """Each has half of the GPUs. Both are ended afterwards."""
    from hpcserve.ipc.endpoints import free_port

    common = [str(model), "--port", "0", "--device", args.device, *options]
    common += ["--nnodes", "2", "--dist-init-addr", f"127.0.0.1:{free_port()}", *layout.split()]
    environment = {**os.environ, **SOCKETS, "HPCSERVE_DIST_SECRET": secrets.token_hex(8)}
    started, half, nodes, files = time.perf_counter(), args.gpus // 2, [], []
    try:
        for rank in (1, 0):
            gpus = ",".join(visible_gpus(args.gpus)[rank * half : (rank + 1) * half])
            file = logs / f"node{rank}-{layout.replace(' ', '')}.log"
            files.append(file)
            with file.open("wb") as log:
                command = [sys.executable, "-m", "hpcserve", "serve", *common]
                nodes.append(
                    subprocess.Popen(
                        [*command, "--node-rank", str(rank)],
                        stdout=log,
                        stderr=log,
                        env={**environment, "CUDA_VISIBLE_DEVICES": gpus},
                    )
                )
        url = _url(nodes[1], files[1])
        yield Served(url, time.perf_counter() - started)
    finally:
        nodes[-1].terminate()
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(30)
            node.kill()
            node.wait()


def visible_gpus(count: int) -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(count)]


def _url(node: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + 600
    while (found := re.search(r"http://127.0.0.1:\d+", log.read_text(errors="replace"))) is None:
        if node.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(log.read_text(errors="replace")[-3000:])
        time.sleep(0.2)
    return found.group()


def generate(url: str, prompt: list[int], num_tokens: int) -> list[int]:
    params = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": params}).encode()
    request = urllib.request.Request(
        f"{url}/generate", body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        ids: list[int] = json.load(answer)["output_ids"]
    return ids


def socket_layouts(gpus: int) -> list[str]:
    half = gpus // 2
    return [f"--tp {gpus}", f"--tp {half} --pp 2", f"--tp {half} --dp 2"]


def sockets(
    args: argparse.Namespace, note: Note, model: Path, expected: list[list[int]], prompts: list
) -> None:
    """Right answers of a small model, and the throughput of a large shape, over sockets."""
    with tempfile.TemporaryDirectory() as temporary:
        logs = Path(temporary)
        small = ["--dtype", "float32", "--max-total-tokens", "16384", "--context-length", "512"]
        small += ["--max-running-requests", "16"]
        shape = shape_folder(args.shape, logs, args.device)
        large = ["--load-format", "dummy", "--max-running-requests", "256"]
        if args.device == "cpu":
            large = ["--load-format", "dummy", "--max-total-tokens", "8192"]
            large += ["--max-running-requests", "16", "--context-length", "1024"]
        for layout in socket_layouts(args.gpus):
            if not wanted(args, layout):
                continue
            with two_launchers(model, args, layout, small, logs) as served:
                found = _all(served.url, prompts, len(expected[0]))
                same = sum(a == b for a, b in zip(found, expected, strict=True))
                note({"layout": layout, "equal": same, "of": len(expected)})
            with two_launchers(shape, args, layout, large, logs) as served:
                note({"layout": layout, "shape": args.shape, **_load(served, args)})


def _all(url: str, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    with ThreadPoolExecutor(min(len(prompts), 128)) as threads:
        return list(threads.map(lambda prompt: generate(url, prompt, num_tokens), prompts))


def _load(served: Served, args: argparse.Namespace) -> dict:
    """Output tokens per second of requests of 256 tokens in and 128 out, 128 at once."""
    length, num_tokens = (256, 128) if args.device == "cuda" else (32, 8)

    def prompts(first: int, count: int) -> list[list[int]]:
        return [
            [(31 * n + 7 * i) % 500 for i in range(length)] for n in range(first, first + count)
        ]

    _all(served.url, prompts(0, 16), num_tokens)
    started = time.perf_counter()
    count = min(args.requests, 512)
    found = _all(served.url, prompts(1000, count), num_tokens)
    seconds = time.perf_counter() - started
    tokens = sum(map(len, found))
    return {
        "requests": count,
        "output_tok_s": round(tokens / seconds, 1),
        "start_s": round(served.start_s, 1),
    }
