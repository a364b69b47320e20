"""Which requests a benchmark sends: a preset, a workload with parameters, or a trace file."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcserve.bench.presets import Preset, find_preset
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.trace import load_trace
from hpcserve.bench.workloads.base import Workload, make_workload
from hpcserve.errors import InputError, UsageError

DEFAULT_WORKLOAD = "random"


@dataclass(frozen=True)
class Selection:
    """Either a workload or the requests of a trace."""

    name: str
    workload: Workload | None
    trace: list[BenchRequest] | None
    preset: Preset | None

    @property
    def has_arrivals(self) -> bool:
        if self.workload is not None:
            return self.workload.has_arrivals
        return any(request.arrival_s > 0 for request in self.trace or ())

    def drawer(self, *, seed: int, vocab_size: int) -> Callable[[int], list[BenchRequest]]:
        """Run number -> requests. A trace gives the same ones each time.

        Two drawers of one seed give the same lengths and other ids: a server that runs on between
        two commands may have those of the first in its cache.
        """
        workload, trace = self.workload, self.trace
        if workload is None:
            return lambda run: list(trace or ())
        nonce = secrets.randbits(32)
        return lambda run: workload.build(
            TokenSource.make(seed=seed, run=run, vocab_size=vocab_size, nonce=nonce)
        )

    def describe(self, *, seed: int, vocab_size: int) -> dict[str, Any]:
        if self.workload is None:
            return {"name": self.name, "num_requests": len(self.trace or ())}
        described = {"seed": seed, "vocab_size": vocab_size, **self.workload.describe()}
        return {"name": self.name, **described}


def select(
    *, workload: str | None, preset: str | None, trace: Path | None, values: dict[str, Any]
) -> Selection:
    """What the command line asks for; `values` are parameters of the workload that it sets.

    Raises UsageError for what does not fit together.
    """
    if sum(one is not None for one in (workload, preset, trace)) > 1:
        raise UsageError("give one of --workload, --preset and --trace")
    if trace is not None:
        if values:
            raise UsageError(f"a trace has its own lengths: leave out {', '.join(sorted(values))}")
        return Selection(trace.name, None, load_trace(trace), None)
    if preset is not None:
        chosen = find_preset(preset)
        made = make_workload(chosen.workload, {**chosen.values, **values})
        return Selection(chosen.workload, made, None, chosen)
    name = workload or DEFAULT_WORKLOAD
    return Selection(name, make_workload(name, values), None, None)


def as_text(requests: list[BenchRequest], folder: Path) -> list[BenchRequest]:
    """The same prompts as text of the model's tokenizer (whose length in tokens may then differ).

    Raises InputError where the folder has no tokenizer.json.
    """
    import msgspec
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"--text needs a tokenizer, and there is no {file}")
    tokenizer = Tokenizer.from_file(str(file))
    texts = tokenizer.decode_batch([one.prompt_token_ids or [] for one in requests])
    return [
        one
        if one.prompt is not None
        else msgspec.structs.replace(one, prompt_token_ids=None, prompt=text)
        for one, text in zip(requests, texts, strict=True)
    ]
