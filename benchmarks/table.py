"""The README's table for one GPU, every row three times: medians with their ranges.

    python benchmarks/table.py --out-dir benchmarks/results --label h200-llama-8b

Starts one server with dummy weights of the shape and runs the presets against it with
`hpcserve bench serving`, then times starts with `hpcserve bench startup`. Writes a JSON file for
each and prints the table last. `--model FOLDER --presets bs1 --repeats 1` rehearses it without a
GPU, with any small model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

HPCSERVE = [sys.executable, "-m", "hpcserve"]
#: Preset -> (what the table shows of its summary, unit, digits).
SHOWN = {
    "bs1": [("tpot_ms.p50", "ms per output token", 2)],
    "c256": [
        ("output_tok_s", "output tok/s", 0),
        ("ttft_ms.p50", "TTFT p50, ms", 0),
        ("tpot_ms.p50", "TPOT p50, ms", 1),
    ],
    "sharegpt": [("output_tok_s", "output tok/s", 0)],
    "prefix": [("duration_s", "s", 2)],
}


@contextlib.contextmanager
def serving(model: Path, port: int, extra: list[str], log: Path, wait_s: float) -> Iterator[str]:
    """The URL of a server of dummy weights that has answered /health_generate."""
    url = f"http://127.0.0.1:{port}"
    command = [*HPCSERVE, "serve", "--model", str(model), "--load-format", "dummy"]
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--port", str(port), *extra], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        limit = time.monotonic() + wait_s
        while not answers(f"{url}/health_generate"):
            if server.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"the server does not answer; its log: {log}\n{log.read_text()}")
            time.sleep(0.2)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except (urllib.error.URLError, OSError):
        return False


def bench(what: str, model: Path, arguments: list[str], out: Path) -> dict[str, Any]:
    """The JSON that `hpcserve bench WHAT` writes; its report goes to the terminal."""
    command = [*HPCSERVE, "bench", what, "--output", str(out), *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    print("\n".join(done.stdout.splitlines()[:-1]), flush=True)  # the last line is the JSON
    # A result is about a shape, not about the folders of one machine.
    text = out.read_text().replace(f"{sys.executable} -m hpcserve", "hpcserve")
    out.write_text(text.replace(f"{model.resolve().parent}/", ""))
    return dict(json.loads(text))


def shown(figures: dict[str, float], digits: int) -> str:
    low, mid, high = (f"{figures[name]:,.{digits}f}" for name in ("min", "median", "max"))
    return mid if low == high else f"{mid} ({low} to {high})"


def preset_rows(url: str, options: argparse.Namespace, model: Path) -> list[tuple[str, str, str]]:
    rows = []
    for preset in options.presets:
        arguments = ["--preset", preset, "--model", str(model), "--base-url", url]
        arguments += ["--repeats", str(options.repeats), "--flush-cache"]
        result = bench("serving", model, arguments, result_file(options, preset))
        summary = result["cells"][0]["summary"]
        for key, unit, digits in SHOWN[preset]:
            rows.append((preset, unit, shown(summary[key], digits)))
    return rows


def start_rows(options: argparse.Namespace, model: Path) -> list[tuple[str, str, str]]:
    rows = []
    for name, flags in (("cold", ["--cold"]), ("warm", [])):
        arguments = ["--repeats", str(options.repeats), *flags, "--"]
        arguments += ["--model", str(model), "--load-format", "dummy", *options.serve]
        result = bench("startup", model, arguments, result_file(options, f"start-{name}"))
        times = sorted(run["first_answer_s"] for run in result["runs"])
        figures = {"min": times[0], "median": times[len(times) // 2], "max": times[-1]}
        rows.append(("start", f"{name} kernel cache, s", shown(figures, 1)))
    return rows


def result_file(options: argparse.Namespace, name: str) -> Path:
    return Path(options.out_dir, f"{date.today()}-{options.label}-{name}.json")


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-3.1-8b", help="of `hpcserve bench make-model`")
    parser.add_argument("--model", type=Path, help="a folder, instead of a shape")
    parser.add_argument("--presets", nargs="*", default=list(SHOWN), choices=list(SHOWN))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-start", action="store_true", help="do not time starts")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--wait", type=float, default=600.0, help="seconds for the server to start")
    parser.add_argument("--out-dir", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--label", required=True, help="in the names of the result files")
    parser.add_argument("serve", nargs="*", help="after --: options of `hpcserve serve`")
    options = parser.parse_args()
    if options.model is None and not has_gpu():
        print("error: torch sees no GPU here; rehearse with --model FOLDER", file=sys.stderr)
        return 2
    options.out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder, options.shape)
        if options.model is None:
            subprocess.run([*HPCSERVE, "bench", "make-model", options.shape, model], check=True)
        rows = [] if options.no_start else start_rows(options, model)
        if options.presets:
            log = Path(folder, "server.log")
            with serving(model, options.port, options.serve, log, options.wait) as url:
                rows += preset_rows(url, options, model)
    print(f"| {model.name} | | median (range) of {options.repeats} |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
