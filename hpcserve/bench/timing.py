"""The latencies of one request, from its record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcserve.bench.record import UNKNOWN, RequestRecord
from hpcserve.bench.request import BenchRequest


@dataclass(frozen=True)
class RequestTiming:
    """A successful request. Streaming times are None where it did not stream, and tpot_s also
    where it gave one token.

    chunk_s: when each streamed chunk came, seconds after the start of the run.
    num_output: the server's count; else max_tokens where EOS is ignored; else the chunks.
    """

    group: str | int | None
    sent_s: float
    end_s: float
    lag_s: float
    chunk_s: npt.NDArray[np.float64]
    num_prompt: int
    num_output: int
    num_cached: int | None
    is_short: bool

    @classmethod
    def of(cls, record: RequestRecord, request: BenchRequest) -> RequestTiming:
        chunks = np.frombuffer(record.chunk_times, dtype=np.float64)
        counted = record.output_tokens
        if counted == UNKNOWN:
            counted = request.max_tokens if request.ignore_eos else len(chunks)
        prompt = record.prompt_tokens
        if prompt == UNKNOWN:
            prompt = len(request.prompt_token_ids or ())
        return cls(
            group=request.group,
            sent_s=record.sent_s,
            end_s=record.end_s,
            lag_s=max(0.0, record.sent_s - record.scheduled_s),
            chunk_s=chunks,
            num_prompt=prompt,
            num_output=counted,
            num_cached=None if record.cached_tokens == UNKNOWN else record.cached_tokens,
            is_short=request.ignore_eos and counted < request.max_tokens,
        )

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.sent_s

    @property
    def ttft_s(self) -> float | None:
        return float(self.chunk_s[0]) - self.sent_s if len(self.chunk_s) else None

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return float(self.chunk_s[-1] - self.chunk_s[0]) if len(self.chunk_s) else 0.0

    @property
    def tpot_s(self) -> float | None:
        if len(self.chunk_s) < 2 or self.num_output < 2:
            return None
        return self.decode_s / (self.num_output - 1)

    @property
    def gaps_s(self) -> npt.NDArray[np.float64]:
        gaps: npt.NDArray[np.float64] = np.diff(self.chunk_s)
        return gaps

    @property
    def itl_p99_s(self) -> float | None:
        return float(np.percentile(self.gaps_s, 99)) if len(self.chunk_s) > 1 else None
