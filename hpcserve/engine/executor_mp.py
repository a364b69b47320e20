"""The executor of several GPUs: one process per rank, each step broadcast to all of them.

The ranks meet without us; we only pass on where. Rank 0 of the last stage answers. A rank that
dies, falls silent or makes no progress ends the replica with an error that names it.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import numpy as np

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.distributed.topology import Topology
from hpcserve.engine.executor import Executor, StepHandle
from hpcserve.engine.rank_profiles import RankProfiles
from hpcserve.engine.worker_process import WorkerProcess
from hpcserve.errors import EngineDeadError, EngineStartError, HpcserveError
from hpcserve.grammar import Grammar
from hpcserve.ipc.endpoints import Endpoint, OwnedEndpoint, create_endpoint
from hpcserve.ipc.messages import (
    CompileGrammar,
    FromWorker,
    GrammarCompiled,
    LockstepOutput,
    ModelRunnerOutput,
    ProfileReply,
    SchedulerOutput,
    StartProfile,
    StopProfile,
    StopWorker,
    StoreAddress,
    TokenLogprobs,
    WorkerBeat,
    WorkerFailed,
    WorkerHello,
    WorkerInfo,
    WorkerReady,
)
from hpcserve.ipc.worker_channel import BEATS, ExecutorChannel
from hpcserve.log import get_logger

logger = get_logger(__name__)

#: A rank whose signs of life stop for so long counts as gone: it was halted, or its node is lost.
SILENCE_S = 8.0
_POLL_MS = 100
#: Ranks that end in order are given this long; after a failure they are killed.
_STOP_S = 10.0
#: After the first sign of a fault: time for those of the others, to tell cause from effect.
_BLAME_S = 0.5
#: A rank that beats twice a second and has not for so long is suspect.
_MISSED_S = 1.5
#: Who has not looked for so long was halted itself, as SLURM does with a job that it suspends: the
#: ranks were as well, and had no chance to be heard.
_AWAY_S = 3.0
#: Of the time to become ready: whoever waits for the whole engine must not give up before us, who
#: know which rank is late.
_START_SHARE = 0.9
#: To begin a profile, or to write its trace: less than a frontend waits for it. torch holds the
#: interpreter for most of that time, so that a rank gives no signs of life meanwhile.
_PROFILE_S = 540.0


class RemoteStep(StepHandle):
    """A step that is on its way through the ranks."""

    def __init__(self, executor: MpExecutor, step_id: int) -> None:
        self._executor = executor
        self._step_id = step_id

    def done(self) -> bool:
        return self._executor.has_result(self._step_id)

    def result(self) -> ModelRunnerOutput:
        return self._executor.wait_result(self._step_id)


class MpExecutor(Executor):
    """Raises on construction what its ranks raised, or EngineStartError.

    folder: where the socket's file goes, so that whoever owns the folder can remove it.
    """

    def __init__(self, config: EngineConfig, *, folder: Path | None = None) -> None:
        self._topology = Topology(config.parallel)
        self._ranks = self._topology.companions(config.dp_rank)
        dp_ranks = dict.fromkeys(self._topology.place(rank).dp_rank for rank in self._ranks)
        self._output_ranks = [self._topology.output_rank(dp_rank) for dp_rank in dp_ranks]
        # Of replicas that step together: the results of the oldest step, until all are here.
        self._parts: dict[int, list[ModelRunnerOutput]] = {}
        self._compiled: list[GrammarCompiled] = []
        self._profiles = RankProfiles(self._ask_profile, self._name)
        self._profile_replies: dict[int, ProfileReply] = {}
        self._watchdog_s = config.parallel.watchdog_timeout
        self._results: deque[ModelRunnerOutput] = deque()
        self._issued: deque[tuple[int, float]] = deque()
        self._ready: dict[int, WorkerInfo] = {}
        self._beats: dict[int, tuple[float, WorkerBeat]] = {}
        self._nodes: dict[int, str] = {}
        self._store: StoreAddress | None = None
        self._serving = False
        self._looked_s = 0.0
        self._failure: HpcserveError | None = None
        self._complaints: list[WorkerFailed] = []
        self._owned: OwnedEndpoint | None = None
        if config.worker_endpoint is not None:
            endpoint = Endpoint.parse(config.worker_endpoint)
        else:
            self._owned = create_endpoint(folder, name="workers.sock")
            endpoint = self._owned.endpoint
        self._channel = ExecutorChannel(endpoint)
        self._processes: dict[int, WorkerProcess] = {}
        try:
            node = config.parallel.node_rank
            for rank in self._ranks:
                if self._topology.place(rank).node_rank == node:
                    self._processes[rank] = WorkerProcess.spawn(config, rank, endpoint)
            self.info = self._wait_ready()
        except BaseException:  # a signal as well: no rank may be left behind
            self.shutdown()
            raise

    # ------------------------------------------------------------ steps

    def submit(self, step: SchedulerOutput | LockstepOutput) -> StepHandle:
        self.check()
        self._channel.broadcast(self._ranks, step)
        self._issued.append((step.step_id, time.monotonic()))
        return RemoteStep(self, step.step_id)

    def has_result(self, step_id: int) -> bool:
        self._receive(0)
        return bool(self._results) and self._results[0].step_id == step_id

    def wait_result(self, step_id: int) -> ModelRunnerOutput:
        """Results come, and are taken, in the order of the steps."""
        while not self._results:
            self._receive(_POLL_MS)
            self.check()
        output = self._results.popleft()
        if output.step_id != step_id:
            raise EngineDeadError(f"step {step_id} was answered by step {output.step_id}")
        self._issued.popleft()
        if self._issued:
            # The next one has the device from now on.
            self._issued[0] = (self._issued[0][0], time.monotonic())
        return output

    # ------------------------------------------------------------ grammars

    def compile_grammar(self, grammar: Grammar) -> None:
        self._channel.broadcast(self._ranks, CompileGrammar(grammar))

    def compiled_grammars(self) -> list[GrammarCompiled]:
        compiled, self._compiled = self._compiled, []
        return compiled

    # ------------------------------------------------------------ profiles

    def start_profile(self, folder: str) -> None:
        self._profiles.start(folder)

    def stop_profile(self, moment: str) -> list[str]:
        return self._profiles.stop(moment)

    def discard_profile(self) -> None:
        self._profiles.discard()

    def _ask_profile(self, message: StartProfile | StopProfile) -> list[ProfileReply]:
        """Each rank answers when it is through with the steps before; none is issued meanwhile."""
        self.check()
        self._profile_replies = {}
        self._channel.broadcast(self._ranks, message)
        deadline = time.monotonic() + _PROFILE_S
        while missing := [rank for rank in self._ranks if rank not in self._profile_replies]:
            self._receive(_POLL_MS)
            self._check_ends()
            if time.monotonic() > deadline:
                what = "begin a profile" if isinstance(message, StartProfile) else "end its profile"
                raise self._dead(missing[0], f"it did not {what} in {_PROFILE_S:.0f} s")
        self._leave_out()
        return [self._profile_replies[rank] for rank in self._ranks]

    # ------------------------------------------------------------ health

    def check(self) -> None:
        self._check_ends()
        if self._serving:
            self._forgive_own_absence()
            self._check_silence()
            self._check_progress()

    def _check_ends(self) -> None:
        self._receive(0)
        if self._failure is not None:
            raise self._failure
        ended = any(not process.is_alive for process in self._processes.values())
        if ended or self._complaints:
            raise self._culprit()

    def _culprit(self) -> HpcserveError:
        """The rank that is to blame: ranks that lost a peer fail as well, and may say so first."""
        remote = len(self._processes) < len(self._ranks)
        deadline = time.monotonic() + (_MISSED_S + _BLAME_S if remote else _BLAME_S)
        while (left := deadline - time.monotonic()) > 0:
            self._receive(int(left * 1000) + 1)
        ended = [rank for rank, process in self._processes.items() if not process.is_alive]
        killed = [rank for rank in ended if self._processes[rank].was_killed]
        aborted = [rank for rank in killed if self._processes[rank].was_aborted]
        is_known = any(one.is_own_fault for one in self._complaints)
        if len(killed) > len(aborted):
            first_killed = next(rank for rank in killed if rank not in aborted)
            return self._dead(first_killed, self._processes[first_killed].end_reason())
        lost = self._lost_ranks()
        if lost and not is_known:
            return self._dead(lost[0], "it is gone; the log of its node says why")
        if aborted and not is_known:
            return self._dead(aborted[0], self._processes[aborted[0]].end_reason())
        if self._complaints:
            first = min(self._complaints, key=lambda one: not one.is_own_fault)
            error = self._dead(first.rank, first.reason)
            error.exit_code = first.exit_code
            return error
        return self._dead(ended[0], self._processes[ended[0]].end_reason())

    def _lost_ranks(self) -> list[int]:
        """Ranks of other nodes that have stopped giving signs of life."""
        complaining = {one.rank for one in self._complaints}
        now = time.monotonic()
        return [
            rank
            for rank, (seen, _) in self._beats.items()
            if rank not in self._processes and rank not in complaining and now - seen > _MISSED_S
        ]

    def _forgive_own_absence(self) -> None:
        away_s = time.monotonic() - self._looked_s
        if away_s > _AWAY_S:
            logger.warning("this engine was halted for %.0f s, and goes on", away_s)
            self._leave_out()
        else:
            self._looked_s += away_s

    def _leave_out(self) -> None:
        """Count nothing of the time since the last look against the ranks."""
        now = time.monotonic()
        away_s, self._looked_s = now - self._looked_s, now
        self._beats = {rank: (now, beat) for rank, (_, beat) in self._beats.items()}
        self._issued = deque((step_id, since + away_s) for step_id, since in self._issued)

    def _check_silence(self) -> None:
        now = time.monotonic()
        for rank, (seen, _) in self._beats.items():
            if now - seen > SILENCE_S:
                raise self._dead(rank, f"it gave no sign of life for {now - seen:.0f} s")

    def _check_progress(self) -> None:
        if not self._issued:
            return
        step_id, since = self._issued[0]
        waited = time.monotonic() - since
        if waited < self._watchdog_s:
            return
        # Ranks that wait for others in a step are not to blame for it.
        beats = [beat for _, beat in self._beats.values()]
        behind = min(beats, key=lambda beat: (beat.last_step, beat.waits, not beat.doing))
        raise self._dead(
            behind.rank,
            f"step {step_id} did not end in {waited:.0f} s (--watchdog-timeout), and this rank is "
            f"the one furthest behind: at step {behind.last_step} {behind.doing}".rstrip(),
        )

    def _name(self, rank: int) -> str:
        return f"{self._topology.place(rank)} on {self._nodes.get(rank, 'an unknown node')}"

    def _dead(self, rank: int, reason: str) -> HpcserveError:
        kind = EngineDeadError if self._serving else EngineStartError
        self._failure = kind(f"{self._name(rank)}: {reason}")
        return self._failure

    # ------------------------------------------------------------ messages

    def _receive(self, timeout_ms: int) -> None:
        for message in self._channel.receive(timeout_ms):
            self._handle(message)

    def _handle(self, message: FromWorker) -> None:
        if isinstance(message, ModelRunnerOutput):
            self._take(message)
        elif isinstance(message, WorkerBeat):
            self._beats[message.rank] = (time.monotonic(), message)
            self._channel.send(message.rank, WorkerBeat(-1), BEATS)
        elif isinstance(message, GrammarCompiled):
            self._compiled.append(message)
        elif isinstance(message, ProfileReply):
            self._profile_replies[message.rank] = message
        elif isinstance(message, WorkerReady):
            self._ready[message.rank] = message.info
        elif isinstance(message, WorkerHello):
            self._nodes[message.rank] = message.node
            self._introduce()
        elif isinstance(message, StoreAddress):
            self._store = message
            self._introduce()
        else:
            self._nodes[message.rank] = message.node
            self._complaints.append(message)

    def _take(self, part: ModelRunnerOutput) -> None:
        parts = self._parts.setdefault(part.step_id, [])
        parts.append(part)
        if len(parts) == len(self._output_ranks):
            del self._parts[part.step_id]
            self._results.append(joined(parts))

    def _introduce(self) -> None:
        """Tell the ranks where they meet, once all of them can be reached."""
        if self._store is not None and len(self._nodes) == len(self._ranks):
            self._channel.broadcast(self._ranks[1:], self._store)

    def _wait_ready(self) -> WorkerInfo:
        limit_s = _START_SHARE * envs.HPCSERVE_START_TIMEOUT_S.get()
        deadline = time.monotonic() + limit_s
        while len(self._ready) < len(self._ranks):
            self._receive(_POLL_MS)
            self.check()
            if time.monotonic() > deadline:
                raise self._late(limit_s)
        self._serving = True
        now = self._looked_s = time.monotonic()
        self._beats = {rank: (now, WorkerBeat(rank)) for rank in self._ranks}
        return self._ready[self._output_ranks[0]]

    def _late(self, limit_s: float) -> HpcserveError:
        missing = [rank for rank in self._ranks if rank not in self._nodes]
        if missing:
            return self._dead(missing[0], f"it did not join in {limit_s:g} s")
        late = [rank for rank in self._ranks if rank not in self._ready]
        now = time.monotonic()
        silent_s = {rank: now - self._beats[rank][0] for rank in late if rank in self._beats}
        halted = [rank for rank, for_s in silent_s.items() if for_s > SILENCE_S]
        if halted:
            what = f"no sign of life for {silent_s[halted[0]]:.0f} s"
            return self._dead(halted[0], f"it was not ready in {limit_s:g} s, and gave {what}")
        # Ranks that wait for others are not to blame.
        first = min(late, key=lambda rank: rank in silent_s and self._beats[rank][1].waits)
        doing = self._beats[first][1].doing if first in silent_s else ""
        at = f"; it is at {doing}" if doing else ""
        return self._dead(first, f"it was not ready in {limit_s:g} s{at}")

    def shutdown(self) -> None:
        if self._failure is None and len(self._ready) == len(self._ranks):
            self._stop_ranks()
        for process in self._processes.values():
            process.kill()
        self._channel.close()
        if self._owned is not None:
            self._owned.remove()

    def _stop_ranks(self) -> None:
        """Let them end by themselves: each when all are through with their steps."""
        started = time.monotonic()
        self._channel.broadcast(self._ranks, StopWorker())
        for process in self._processes.values():
            process.stop(max(0.0, started + _STOP_S - time.monotonic()))
        took_s = time.monotonic() - started
        for rank, process in self._processes.items():
            if process.is_alive:
                logger.warning("rank %d did not end in %.0f s; it is killed", rank, _STOP_S)
            elif not process.ended_in_order:
                logger.warning("rank %d did not end in order: %s", rank, process.end_reason())
        logger.info("told to stop, %d ranks ended in %.1f s", len(self._processes), took_s)


def joined(parts: list[ModelRunnerOutput]) -> ModelRunnerOutput:
    """The results of replicas that stepped together: one's rows after another's."""
    if len(parts) == 1:
        return parts[0]
    parts.sort(key=lambda part: part.dp_rank)
    logprobs: dict[int, TokenLogprobs] = {}
    prompts: dict[int, list[TokenLogprobs]] = {}
    first = 0
    for part in parts:
        logprobs |= {first + row: entry for row, entry in (part.logprobs or {}).items()}
        prompts |= {first + row: entry for row, entry in (part.prompt_logprobs or {}).items()}
        first += len(part.sampled_token_ids)
    sampled = np.concatenate([part.sampled_token_ids for part in parts])
    return ModelRunnerOutput(parts[0].step_id, sampled, logprobs or None, prompts or None)
