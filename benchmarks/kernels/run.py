"""Check and time every kernel: `python benchmarks/kernels/run.py [--only FAMILY ...] [--out FILE]`.

On a GPU: each kernel against its reference, then beside torch, flashinfer (if it can be imported)
and the roofline. `--dry-run` goes through the same code without a GPU, in Triton's interpreter,
on tiny shapes. Exit status 1 if a check failed. The table comes last, the JSON goes to --out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

FAMILIES = ("elementwise", "sampling", "attention", "gemm")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU needed")
    parser.add_argument("--tune", action="store_true", help="time other attention tiles as well")
    parser.add_argument("--no-flashinfer", action="store_true", help="it may compile for minutes")
    return parser.parse_args()


def _rivals(arguments: argparse.Namespace) -> Any:
    if arguments.dry_run or arguments.no_flashinfer:
        return None
    try:
        return importlib.import_module("flashinfer")
    except ImportError:
        return None


def _results(arguments: argparse.Namespace) -> list[Any]:
    import torch
    from harness import run_case

    device = "cpu" if arguments.dry_run else "cuda"
    rivals = _rivals(arguments)
    results = []
    for family in arguments.only:
        started = time.perf_counter()
        module = importlib.import_module(f"bench_{family}")
        if family == "gemm":
            found = module.run(device, torch.bfloat16, arguments.dry_run)
        else:
            extra = {"tune": arguments.tune} if family == "attention" else {}
            cases = module.cases(device, torch.bfloat16, arguments.dry_run, rivals, **extra)
            found = [run_case(case, arguments.dry_run) for case in cases]
        results += found
        seconds = time.perf_counter() - started
        wrong = sum(not result.ok for result in found)
        print(f"{family}: {len(found)} cases, {wrong} failed, {seconds:.0f} s", flush=True)
    return results


def main() -> int:
    arguments = _arguments()
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(Path(__file__).parent)]
    import torch
    import triton
    from harness import print_table

    if not arguments.dry_run and not torch.cuda.is_available():
        print("no CUDA device; use --dry-run to check the script without one", file=sys.stderr)
        return 2
    results = _results(arguments)
    print_table(results)
    if arguments.out:
        name = "dry run" if arguments.dry_run else torch.cuda.get_device_name()
        versions = {"torch": torch.__version__, "triton": triton.__version__}
        numbers = [result.to_dict() for result in results]
        document = {"device": name, **versions, "host": platform.machine(), "results": numbers}
        arguments.out.write_text(json.dumps(document, indent=1))
    return int(any(not result.ok for result in results))


if __name__ == "__main__":
    sys.exit(main())
