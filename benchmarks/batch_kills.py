"""`hpcserve batch` with the bundled model, killed with SIGKILL again and again, then verified.

    python benchmarks/batch_kills.py --rows 20000 --kills 3

The command is started anew after each kill, as a user would. Prints one JSON object: at how many
finished rows it was killed, what the next start found kept, what was left running, and what
`batch verify` says. Exit code 1 where a row is lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.status import of_run
from hpcserve.batch.verify import verify_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the points at which it is killed")
    parser.add_argument("words", nargs="*", help="more options of `hpcserve batch`, behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = storm(options, Path(folder))
    print(json.dumps(found, indent=1))
    sys.exit(0 if not found["problems"] and found["answered"] == options.rows else 1)


def storm(options: argparse.Namespace, folder: Path) -> dict:
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    write_rows(source, options.rows)
    words = [str(source), "-o", str(output), "--launcher", "local", "--device", "cpu"]
    words += ["--max-tokens", str(options.max_tokens), "--log-interval", "60", *options.words]
    command = [sys.executable, "-m", "hpcserve", "batch", *words]
    draw, started = random.Random(options.seed), time.perf_counter()
    step = options.rows // (options.kills + 1)
    killed_at, left_running = [], 0
    for number in range(options.kills):
        wanted = step * number + draw.randrange(step // 2, step)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while num_finished(output) < wanted and process.poll() is None:
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=10)
        left_running += len(alive)
        killed_at.append(num_finished(output))
    exit_code = subprocess.run(command, check=False).returncode
    lines = [json.loads(line) for line in output.read_bytes().splitlines()]
    return {
        "rows": options.rows,
        "killed_at_finished_rows": killed_at,
        "processes_left_after_a_kill": left_running,
        "exit_code": exit_code,
        "answered": sum(line["error"] is None for line in lines),
        "distinct_ids": len({line["id"] for line in lines}),
        "problems": verify_run(RunDir.of_output(output)).problems,
        "wall_s": round(time.perf_counter() - started, 1),
    }


def write_rows(path: Path, num_rows: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for n in range(num_rows):
            messages = [{"role": "user", "content": f"What is {n} plus {n % 97}?"}]
            stream.write(json.dumps({"custom_id": f"id-{n}", "messages": messages}) + "\n")


def num_finished(output: Path) -> int:
    run_dir = RunDir.of_output(output)
    return of_run(run_dir)["num_finished"] if run_dir.manifest.is_file() else 0


if __name__ == "__main__":
    main()
