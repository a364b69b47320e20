"""The way of a step's results from the device to the host."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from hpcserve.engine.executor import StepHandle
from hpcserve.engine.sampler import Logprobs
from hpcserve.ipc.messages import ModelRunnerOutput, TokenLogprobs


@dataclass(frozen=True)
class StepTensors:
    """What a step made.  token_ids: int64, one for each of sample_rows, rows of the step."""

    step_id: int
    num_rows: int
    sample_rows: npt.NDArray[np.int64]
    token_ids: torch.Tensor | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: dict[int, Logprobs] = field(default_factory=dict)

    def to_host(self) -> StepTensors:
        """Copies in pinned memory, which are complete once the current stream is."""
        return replace(
            self,
            token_ids=None if self.token_ids is None else _pinned(self.token_ids),
            logprobs=None if self.logprobs is None else _logprobs_to_host(self.logprobs),
            prompt_logprobs={
                row: _logprobs_to_host(held) for row, held in self.prompt_logprobs.items()
            },
        )

    def to_output(self) -> ModelRunnerOutput:
        """The message; every tensor must be on the host."""
        token_ids = np.full(self.num_rows, -1, dtype=np.int32)
        if self.token_ids is not None:
            token_ids[self.sample_rows] = self.token_ids.numpy()
        logprobs = None
        if self.logprobs is not None:
            rows = self.sample_rows[self.logprobs.rows].tolist()
            logprobs = dict(zip(rows, _entries(self.logprobs), strict=True))
        prompts = {row: _entries(held) for row, held in self.prompt_logprobs.items()}
        return ModelRunnerOutput(self.step_id, token_ids, logprobs, prompts or None)


class FinishedStep(StepHandle):
    """A step on a CPU: done when it was issued."""

    def __init__(self, tensors: StepTensors) -> None:
        self._output = tensors.to_output()

    def done(self) -> bool:
        return True

    def result(self) -> ModelRunnerOutput:
        return self._output


class CudaStep(StepHandle):
    """A step on a GPU: its results are copied on `copy_stream` once the step is through.

    The tensors on the device are held until the copy is done, so that nobody gets their memory.
    """

    def __init__(self, tensors: StepTensors, copy_stream: torch.cuda.Stream) -> None:
        self._device_tensors: StepTensors | None = tensors
        copy_stream.wait_stream(torch.cuda.current_stream(copy_stream.device))
        with torch.cuda.stream(copy_stream):
            self._host_tensors = tensors.to_host()
            self._copied = torch.cuda.Event()
            self._copied.record(copy_stream)

    def done(self) -> bool:
        return bool(self._copied.query())

    def result(self) -> ModelRunnerOutput:
        self._copied.synchronize()
        self._device_tensors = None
        return self._host_tensors.to_output()


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def _logprobs_to_host(held: Logprobs) -> Logprobs:
    return replace(
        held,
        chosen=_pinned(held.chosen),
        top_ids=_pinned(held.top_ids),
        top_values=_pinned(held.top_values),
    )


def _entries(held: Logprobs) -> list[TokenLogprobs]:
    columns = (
        held.num_top,
        held.chosen.tolist(),
        held.top_ids.tolist(),
        held.top_values.tolist(),
    )
    return [
        TokenLogprobs(chosen, ids[:count], values[:count])
        for count, chosen, ids, values in zip(*columns, strict=True)
    ]
