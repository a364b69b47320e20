"""The same prompts through the engine's offline benchmark and through `hpcserve batch`.

    python benchmarks/batch_offline.py --rows 2000 --repeats 5

Each repeat starts an engine for each side, in turn, warms it up, and gives it all the prompts:
`LLM.generate`, which `hpcserve bench offline` measures, and a whole batch run over a file of them,
with journals, commits and the merge. Prints one JSON object: output tokens a second by the clock
from the first prompt to the last answer, and processor seconds of this process and the engine's in
that time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import platform
import random
import statistics
import tempfile
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psutil

from hpcserve.batch.client_engine import ClientBackend
from hpcserve.batch.run import run_batch
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.llm import LLM
from hpcserve.sampling_params import SamplingParams

WARM_ROWS = 64


def cpu_s() -> float:
    """Of this process and of all that it started and that still run."""
    me = psutil.Process()
    used = [one.cpu_times() for one in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in used)


class Stopwatch:
    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._wall
        self.cpu_s = cpu_s() - self._cpu


def prompts_of(options: argparse.Namespace, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    sizes = range(options.input_tokens // 2, options.input_tokens * 3 // 2)
    return [
        [draw.randrange(300, 1000) for _ in range(draw.choice(sizes))] for _ in range(options.rows)
    ]


def offline(config: EngineConfig, prompts: list[list[int]], num_tokens: int) -> Stopwatch:
    """What `hpcserve bench offline` does."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    with LLM(**config.to_options()) as llm:
        llm.generate(warm_prompts(), params)
        with Stopwatch() as watch:
            llm.generate(prompts, params)
    return watch


def warm_prompts() -> list[list[int]]:
    return [[200 + n] * 50 for n in range(WARM_ROWS)]


class WarmBackend(ClientBackend):
    """Warms the engine up before the run gets it, and times it from then to the last answer."""

    def __init__(self, config: EngineConfig, num_tokens: int) -> None:
        super().__init__(config)
        self.watch = Stopwatch()
        self._num_tokens = num_tokens

    @asynccontextmanager
    async def open(self):
        params = SamplingParams(max_tokens=self._num_tokens, temperature=0.0, ignore_eos=True)
        async with super().open() as engine:
            client = engine._client
            await asyncio.gather(*(client.complete(one, params) for one in warm_prompts()))
            with self.watch:
                yield engine


def batch(
    config: EngineConfig, prompts: list[list[int]], num_tokens: int, folder: Path
) -> Stopwatch:
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    with source.open("w") as stream:
        for prompt in prompts:
            stream.write(json.dumps({"prompt": prompt}) + "\n")
    backend = WarmBackend(config, num_tokens)
    files = BatchConfig(inputs=(str(source),), output=str(output), fresh=True)
    defaults = RowDefaults(max_tokens=num_tokens, temperature=0.0, sampling=("ignore_eos=true",))
    result = run_batch(backend, files, defaults, stream=io.StringIO())
    if result.num_ok != len(prompts):
        raise SystemExit(f"{result.num_failed} rows failed: {result.errors}")
    return backend.watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--input-tokens", type=int, default=64, help="on average")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--max-running-requests", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help="default: the bundled tiny-chat")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    chosen = {"max_running_requests": options.max_running_requests, "device": options.device}
    if options.device == "cpu":
        chosen["cpu_threads"] = 1
    if options.model:
        chosen["model"] = options.model
    config = EngineConfig.from_options(chosen)
    pairs = []
    for repeat in range(options.repeats):
        prompts = prompts_of(options, repeat)
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            asked = (config, prompts, options.output_tokens)
            sides = {
                "offline": partial(offline, *asked),
                "batch": partial(batch, *asked, Path(folder)),
            }
            for name in sorted(sides, reverse=repeat % 2 == 0):
                found[name] = sides[name]()
        pairs.append(found)
    print(json.dumps(summary(options, pairs), indent=1))


def summary(options: argparse.Namespace, pairs: list[dict[str, Stopwatch]]) -> dict:
    num_tokens = options.rows * options.output_tokens

    def both(value) -> dict:
        values = {name: [value(pair[name]) for pair in pairs] for name in ("offline", "batch")}
        ratios = [b / a for a, b in zip(*values.values(), strict=True)]
        medians = {name: round(statistics.median(one), 2) for name, one in values.items()}
        return {**medians, "batch / offline": [round(one, 4) for one in ratios]}

    return {
        "rows": options.rows,
        "input_tokens": options.input_tokens,
        "output_tokens": options.output_tokens,
        "max_running_requests": options.max_running_requests,
        "output_tok_s": both(lambda watch: num_tokens / watch.wall_s),
        "processor_s": both(lambda watch: watch.cpu_s),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
