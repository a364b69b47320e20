"""A worker without a model: deterministic text, and a check of every page it is told to read.

Its next token is a hash of all tokens before it, so the text of a request does not depend on how
it was scheduled, and `expected_tokens` says what it must be. Where a real worker keeps keys and
values, it keeps the hash of the prefix that ends there; with `verify` it reads all of a row's
history in every step and raises when a page holds another prefix, or nothing. It also raises
when a slot is given to two requests, or used or released by none.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from hpcserve.engine.executor import Executor, StepHandle
from hpcserve.errors import EngineError
from hpcserve.grammar import Grammar
from hpcserve.ipc.messages import (
    GrammarCompiled,
    Int32Array,
    LockstepOutput,
    ModelRunnerOutput,
    SchedulerOutput,
    WorkerInfo,
)

_UNKNOWN = -1
_POISON = np.uint64(0xDEADBEEFDEADBEEF)


def _weights(length: int) -> npt.NDArray[np.uint64]:
    """One odd random number per position; a prefix's hash is the weighted sum of its tokens."""
    generator = np.random.default_rng(20250101)
    drawn: npt.NDArray[np.uint64] = generator.integers(0, 2**63, length, dtype=np.uint64)
    return drawn * np.uint64(2) + np.uint64(1)


def _prefix_hashes(
    tokens: npt.NDArray[np.int32], weights: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """uint64[n]: the hash of tokens[: i + 1] for each i."""
    hashes: npt.NDArray[np.uint64] = np.cumsum(
        (tokens.astype(np.uint64) + np.uint64(1)) * weights[: len(tokens)], dtype=np.uint64
    )
    return hashes


def _next_token(prefix_hash: int, vocab_size: int) -> int:
    mixed = (prefix_hash ^ (prefix_hash >> 31)) * 0x9E3779B97F4A7C15 % 2**64
    return (mixed >> 33) % vocab_size


def expected_tokens(
    prompt: list[int], max_tokens: int, *, vocab_size: int, stop_ids: frozenset[int] = frozenset()
) -> list[int]:
    """What the fake model generates after `prompt`, computed on its own."""
    tokens = list(prompt)
    weights = _weights(len(prompt) + max_tokens)
    for _ in range(max_tokens):
        last = _prefix_hashes(np.array(tokens, np.int32), weights)[-1]
        tokens.append(_next_token(int(last), vocab_size))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


class _Done(StepHandle):
    def __init__(self, output: ModelRunnerOutput) -> None:
        self._output = output

    def done(self) -> bool:
        return True

    def result(self) -> ModelRunnerOutput:
        return self._output


class FakeExecutor(Executor):
    """Takes real SchedulerOutputs.

    step_time_s: how long each step pretends to take.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        max_slots: int,
        context_length: int,
        vocab_size: int = 1024,
        eos_token_ids: tuple[int, ...] = (),
        verify: bool = True,
        step_time_s: float = 0.0,
    ) -> None:
        self.info = WorkerInfo(
            num_pages=num_pages,
            vocab_size=vocab_size,
            context_length=context_length,
            eos_token_ids=list(eos_token_ids),
            device="fake",
            timings_s={},
        )
        self._page_size = page_size
        self._verify = verify
        self._step_time_s = step_time_s
        self._weights = _weights(context_length + 1)
        self._pool = np.full(num_pages * page_size, _POISON, np.uint64)
        self._tokens = np.full((max_slots, context_length + 1), _UNKNOWN, np.int32)
        max_pages = -(-context_length // page_size)
        self._page_table = np.full((max_slots, max_pages), _UNKNOWN, np.int32)
        self._compiled: list[GrammarCompiled] = []
        self._taken = np.zeros(max_slots, np.bool_)
        self.num_steps = 0
        self.num_computed_tokens = 0

    def submit(self, step: SchedulerOutput | LockstepOutput) -> StepHandle:
        assert isinstance(step, SchedulerOutput), "it is one replica"
        if self._step_time_s:
            time.sleep(self._step_time_s)
        self._apply(step)
        ends = step.num_computed + step.num_scheduled
        # As in a real step, all rows write before any of them reads.
        hashes = [
            self._write(int(slot), int(start), int(end))
            for slot, start, end in zip(step.slots, step.num_computed, ends, strict=True)
        ]
        if self._verify:
            for slot, end, expected in zip(step.slots, ends, hashes, strict=True):
                self._check_history(int(slot), int(end), expected)
        sampled = np.full(len(step.slots), -1, np.int32)
        for row in np.flatnonzero(step.samples):
            slot, end = int(step.slots[row]), int(ends[row])
            sampled[row] = _next_token(int(hashes[row][-1]), self.info.vocab_size)
            self._tokens[slot, end] = sampled[row]
        self.num_steps += 1
        self.num_computed_tokens += int(step.num_scheduled.sum())
        return _Done(ModelRunnerOutput(step_id=step.step_id, sampled_token_ids=sampled))

    def compile_grammar(self, grammar: Grammar) -> None:
        """Takes any and ignores it: its tokens are hashes."""
        self._compiled.append(GrammarCompiled(grammar))

    def compiled_grammars(self) -> list[GrammarCompiled]:
        compiled, self._compiled = self._compiled, []
        return compiled

    def start_profile(self, folder: str) -> None:
        raise EngineError("a worker without a model takes no profile")

    def stop_profile(self, moment: str) -> list[str]:
        raise EngineError("no profile is being taken")

    def discard_profile(self) -> None:
        return  # none is ever taken

    def shutdown(self) -> None:
        pass

    def _apply(self, step: SchedulerOutput) -> None:
        for slot in step.released_slots:
            if not self._taken[slot]:
                raise AssertionError(f"slot {slot} is released, but no request has it")
            self._taken[slot] = False
            self._tokens[slot] = _UNKNOWN
            self._page_table[slot] = _UNKNOWN
        for new in step.new_requests:
            if self._taken[new.slot]:
                raise AssertionError(f"slot {new.slot} is given out, but a request has it")
            self._taken[new.slot] = True
            self._tokens[new.slot, : len(new.token_ids)] = new.token_ids
            self._page_table[new.slot, : len(new.page_ids)] = new.page_ids
        used = np.concatenate((step.slots, step.new_page_slots))
        if (used < 0).any() or not self._taken[used].all():
            raise AssertionError("the step has rows or pages for a slot that no request has")
        if len(set(step.slots.tolist())) != len(step.slots):
            raise AssertionError("two rows of the step have one slot")
        self._page_table[step.new_page_slots, step.new_page_indices] = step.new_page_ids

    def _slots_of(self, slot: int, start: int, end: int) -> npt.NDArray[np.int64]:
        """Where the pool keeps positions start..end of a slot."""
        positions = np.arange(start, end)
        pages = self._page_table[slot, positions // self._page_size].astype(np.int64)
        if (pages == _UNKNOWN).any():
            raise AssertionError(f"slot {slot} has no page for a position in {start}..{end}")
        return pages * self._page_size + positions % self._page_size

    def _write(self, slot: int, start: int, end: int) -> npt.NDArray[np.uint64]:
        tokens: Int32Array = self._tokens[slot, :end]
        if (tokens == _UNKNOWN).any():
            raise AssertionError(f"slot {slot}: a token before position {end} is not known")
        hashes = _prefix_hashes(tokens, self._weights)
        self._pool[self._slots_of(slot, start, end)] = hashes[start:end]
        return hashes

    def _check_history(self, slot: int, end: int, hashes: npt.NDArray[np.uint64]) -> None:
        found = self._pool[self._slots_of(slot, 0, end)]
        wrong = np.flatnonzero(found != hashes)
        if len(wrong):
            raise AssertionError(f"slot {slot}: position {wrong[0]} of {end} holds another prefix")
