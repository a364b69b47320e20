"""What the process of one rank runs: join the others, build the worker, run steps as they come.

Started by WorkerProcess, never by hand. Three threads: this one issues steps, one waits for their
results and sends them, one gives signs of life.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.distributed.topology import Place, Topology
from hpcserve.engine import lifeline
from hpcserve.engine.executor import StepHandle
from hpcserve.errors import EngineError, HpcserveError
from hpcserve.ipc.endpoints import Endpoint
from hpcserve.ipc.messages import (
    CompileGrammar,
    GrammarCompiled,
    LockstepOutput,
    ProfileReply,
    SchedulerOutput,
    StartProfile,
    StopProfile,
    StopWorker,
    StoreAddress,
    WorkerBeat,
    WorkerFailed,
    WorkerHello,
    WorkerReady,
)
from hpcserve.ipc.worker_channel import BEATS, RESULTS, STEPS, WorkerSocket
from hpcserve.log import get_logger, setup_logging

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

    from hpcserve.engine.step_profiler import StepProfiler

logger = get_logger(__name__)

_BEAT_S = 0.5
#: So many signs of life in a row that the core does not answer mean that its node is lost.
_MOST_UNANSWERED = 20
#: In the paths of what runs while a rank waits for others, and before those of our own files.
_COLLECTIVES = "torch/distributed/"
_PACKAGE = f"{Path(__file__).resolve().parents[1]}/"


@dataclass(frozen=True)
class Order:
    config: EngineConfig
    rank: int
    endpoint: Endpoint

    @property
    def place(self) -> Place:
        return Topology(self.config.parallel).place(self.rank)


class Progress:
    """What the main thread is at; written by it, read by another one.

    step_id: the newest step that was taken up.  busy: whether it is being issued, or the rank is
    not ready yet.
    """

    step_id = 0
    busy = True

    def beat(self, rank: int) -> WorkerBeat:
        if not self.busy:
            return WorkerBeat(rank, self.step_id)
        return WorkerBeat(rank, self.step_id, *_doing())


def main() -> None:
    parent = os.getppid()
    lifeline.end_with_parent_thread()
    lifeline.leave_signals_to_parent()
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("no order came: this program is started by hpcserve itself")
    lifeline.hold(parent)
    order = _order(json.loads(line))
    place = order.place
    setup_logging(role=f"dp{place.dp_rank} pp{place.pp_rank} tp{place.tp_rank}")
    steps = WorkerSocket(order.endpoint, order.rank, STEPS)
    try:
        _run(order, steps)
    except Exception as error:  # noqa: BLE001 (whatever it is, the core must hear of it)
        _report(order, steps, error)
        os._exit(1)  # threads of the collectives may hang on ranks that are gone
    steps.close()
    os._exit(0)


def _order(told: dict[str, object]) -> Order:
    options = told["options"]
    assert isinstance(options, dict)
    config = replace(EngineConfig.from_options(options), dp_rank=int(str(told["dp_rank"])))
    return Order(config, int(str(told["rank"])), Endpoint.parse(str(told["endpoint"])))


def _report(order: Order, steps: WorkerSocket, error: Exception) -> None:
    known = isinstance(error, HpcserveError)
    if not known:
        logger.exception("%s failed", order.place)
    reason = str(error) if known else f"{type(error).__name__}: {_one_line(error)}"
    code = error.exit_code if isinstance(error, HpcserveError) else 1
    # Lost peers show as errors of the collectives, which torch raises as these.
    own = known or not isinstance(error, RuntimeError) or "memory" in reason
    steps.send(WorkerFailed(order.rank, socket.gethostname(), reason, code, own))
    steps.close()


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "(no message)"


def _run(order: Order, steps: WorkerSocket) -> None:
    progress = Progress()
    threading.Thread(target=_beat, args=(order, progress), name="beat", daemon=True).start()
    from hpcserve.distributed import process_group
    from hpcserve.engine.device import resolve_device
    from hpcserve.engine.step_profiler import StepProfiler
    from hpcserve.engine.worker import Worker

    config, place = order.config, order.place
    device = resolve_device(config.backend, place.local_rank)
    _use(device)
    steps.send(WorkerHello(order.rank, socket.gethostname()))
    store = _meet(order, steps)
    state = process_group.join(
        config.parallel,
        order.rank,
        store,
        device,
        secret=order.endpoint.token,
        timeout_s=config.parallel.watchdog_timeout + envs.HPCSERVE_START_TIMEOUT_S.get(),
    )
    worker = Worker(config, state)
    profiler = StepProfiler(place)
    progress.busy = False
    steps.send(WorkerReady(order.rank, worker.info))
    answers = order.rank == Topology(config.parallel).output_rank(place.dp_rank)
    results: queue.SimpleQueue[StepHandle | GrammarCompiled] = queue.SimpleQueue()
    if answers:
        threading.Thread(
            target=_answer, args=(order, device, results), name="results", daemon=True
        ).start()
    while not isinstance(message := steps.receive(-1), StopWorker):
        if isinstance(message, CompileGrammar) and place.pp_rank == config.parallel.pp_size - 1:
            worker.compile_grammar(message.grammar, results.put if answers else None)
        if isinstance(message, LockstepOutput):
            message = message.steps[place.dp_rank]
        if isinstance(message, SchedulerOutput):
            progress.step_id, progress.busy = message.step_id, True
            handle = worker.submit(message)
            progress.busy = False
            if answers:
                results.put(handle)
        if isinstance(message, StartProfile | StopProfile):
            progress.busy = True
            steps.send(_profile(order.rank, profiler, message))
            progress.busy = False
    worker.finish()
    process_group.leave(state)


def _profile(
    rank: int, profiler: StepProfiler, message: StartProfile | StopProfile
) -> ProfileReply:
    path = ""
    try:
        if isinstance(message, StartProfile):
            profiler.start(Path(message.folder))
        elif message.moment:
            path = str(profiler.stop(message.moment))
            logger.info("wrote %s", path)
        else:
            profiler.discard()
    except EngineError as error:
        return ProfileReply(rank, error=str(error))
    return ProfileReply(rank, path)


def _meet(order: Order, steps: WorkerSocket) -> Store:
    """The store at which the ranks meet: the replica's first rank hosts it and says where."""
    from hpcserve.distributed import process_group

    config, place = order.config, order.place
    timeout_s = envs.HPCSERVE_START_TIMEOUT_S.get()
    if order.rank == Topology(config.parallel).companions(place.dp_rank)[0]:
        address = process_group.own_address(config.parallel, place.dp_rank)
        store, port = process_group.host_store(address, timeout_s)
        steps.send(StoreAddress(address, port))
        return store
    message = steps.receive(int(timeout_s * 1000))
    if not isinstance(message, StoreAddress):
        raise EngineError("it was not told where the ranks meet")
    return process_group.join_store(message.address, message.port, timeout_s)


def _use(device: torch.device) -> None:
    """Make it this thread's GPU: a thread that was told of none takes memory on the first one."""
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)


def _answer(
    order: Order,
    device: torch.device,
    results: queue.SimpleQueue[StepHandle | GrammarCompiled],
) -> None:
    """Send the results of steps, in their order, as they come, and what became of grammars."""
    out = WorkerSocket(order.endpoint, order.rank, RESULTS)
    try:
        _use(device)
        while True:
            found = results.get()
            if isinstance(found, GrammarCompiled):
                out.send(found)
                continue
            output = found.result()
            output.dp_rank = order.place.dp_rank
            out.send(output)
    except Exception as error:  # noqa: BLE001 (a fault of the device shows here)
        _report(order, out, error)
        os._exit(1)


def _beat(order: Order, progress: Progress) -> None:
    out = WorkerSocket(order.endpoint, order.rank, BEATS)
    unanswered = 0
    while unanswered < _MOST_UNANSWERED:
        out.send(progress.beat(order.rank))
        unanswered += 1
        until = time.monotonic() + _BEAT_S
        while (left := until - time.monotonic()) > 0:
            if out.receive(max(1, int(left * 1000))) is not None:
                unanswered = 0
    logger.error("%s: its core does not answer; this rank ends", order.place)
    os._exit(1)


def _doing() -> tuple[str, bool]:
    """(file, line and function of ours that the main thread is in, whether in a collective)."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    waits = False
    while frame is not None:
        path = frame.f_code.co_filename
        waits = waits or _COLLECTIVES in path
        if path.startswith(_PACKAGE):
            place = f"{path.removeprefix(_PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}"
            return place, waits
        frame = frame.f_back
    return "", waits


if __name__ == "__main__":
    main()
