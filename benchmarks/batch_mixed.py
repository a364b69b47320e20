"""`hpcserve batch` with the bundled model over a file of good and bad lines.

    python benchmarks/batch_mixed.py --lines 2000 --out results.json

Every fifth line is bad, in one of four ways. Runs the command as a user does, in a folder of its
own, counts what came out against what went in, and prints one JSON object: seconds of the whole
command, start included, output tokens a second in that time, and the most memory that its processes
had. Exits with 1 where a line is missing, doubled or out of order.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import psutil

BAD = (
    "no JSON at all",
    '{"custom_id": "cut off", "body": {"messages": [',
    '{"method": "POST", "url": "/v1/chat/completions", "body": {"messages": 5}}',
    '{"method": "POST", "url": "/v1/chat/completions", "body": {"max_tokens": 8}}',
)
COUNTRIES = ("France", "Peru", "Canada", "Greece", "Japan", "Kenya", "Norway", "Egypt")
WORDS = ("garden", "planet", "window", "silver", "market", "bridge")


def question(draw: random.Random) -> str:
    asked = (
        f"What is the capital of {draw.choice(COUNTRIES)}?",
        f"{draw.randrange(10, 99)} + {draw.randrange(10, 99)} = ?",
        f"Spell the word {draw.choice(WORDS)}.",
    )
    return draw.choice(asked)


def write_input(path: Path, num_lines: int) -> list[str | None]:
    """Returns each line's custom_id; None for a bad line."""
    draw, ids, lines = random.Random(0), [], []
    for number in range(num_lines):
        if number % 5 == 4:
            ids.append(None)
            lines.append(BAD[number // 5 % len(BAD)])
            continue
        ids.append(f"row {number}")
        body = {"messages": [{"role": "user", "content": question(draw)}], "max_tokens": 64}
        row = {"method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps({"custom_id": ids[-1], **row}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ids


def run(source: Path, output: Path) -> dict[str, Any]:
    """The command to its end, watched from outside."""
    words = ["batch", str(source), "-o", str(output), "--launcher", "local"]
    started, peak = time.monotonic(), 0
    with psutil.Popen([sys.executable, "-m", "hpcserve", *words]) as process:
        while process.poll() is None:
            peak = max(peak, _memory_of(process))
            time.sleep(0.1)
    if process.returncode != 3:  # some rows failed
        sys.exit(f"hpcserve batch ended with {process.returncode}, not 3")
    return {"seconds": round(time.monotonic() - started, 2), "peak_mib": peak >> 20}


def _memory_of(process: psutil.Popen) -> int:
    """Bytes that it and its children have to themselves or share."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def count(output: Path, ids: list[str | None]) -> dict[str, int]:
    """Answers and errors; ends the program where they are not the input's lines in their order."""
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    if len(rows) != len(ids):
        sys.exit(f"{len(ids)} lines went in, {len(rows)} came out")
    num_tokens = 0
    for row, custom_id in zip(rows, ids, strict=True):
        answered = bool(row["response"]) and row["response"]["status_code"] == 200
        if answered != (custom_id is not None) or (answered and row["custom_id"] != custom_id):
            sys.exit(f"the line of {custom_id or 'a bad row'} came out as {row}")
        num_tokens += row["response"]["body"]["usage"]["completion_tokens"] if answered else 0
    good = sum(one is not None for one in ids)
    return {"lines": len(rows), "answers": good, "errors": len(rows) - good, "tokens": num_tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    runs = []
    for _ in range(words.repeats):
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder, "mixed.jsonl"), Path(folder, "answers.jsonl")
            ids = write_input(source, words.lines)
            watched = run(source, output)
            runs.append({**watched, **count(output, ids)})
            runs[-1]["output_tok_s"] = round(runs[-1]["tokens"] / watched["seconds"])
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    found = {"date": str(date.today()), "machine": platform.machine(), "cores": cores, "runs": runs}
    print(json.dumps(found))
    if words.out:
        words.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
