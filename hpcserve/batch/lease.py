"""Which worker takes which shard. An optimisation: two who take the same one still commit it once.

A lease is a file that its maker touches now and then. No clock is compared with another's: a
lease is stale when a watcher has seen it unchanged for long by its own clock, or when its owner is
a process of this node that is gone, or an earlier run of this very job.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from hpcserve.batch.durable import publish, read_json, sweep, temporary_name
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.run_dir import RunDir, numbers_in
from hpcserve.batch.scan import Shard
from hpcserve.log import get_logger

log = get_logger(__name__)

BEAT_S = 5.0
#: NFS may show a change up to a minute late.
STALE_S = 90.0
#: A shard that another one has for so many times as long as ours take is taken as well.
_STRAGGLER_FACTOR = 4.0
_STRAGGLER_S = 60.0
#: What a shard is taken to need by a worker that has finished none.
_UNKNOWN_S = 300.0
#: When a process started is told in time of day, which moves when a node's clock is set.
_CLOCK_STEP_S = 30.0


@dataclass(frozen=True)
class Owner:
    """One process of one run of a job. started_s: tells it from a later process of the same id.

    pids: where its process id counts: a container may have ids of its own, and its host's name.
    """

    name: str
    host: str
    pid: int
    started_s: float
    job_id: str = ""
    restart: str = ""
    pids: str = ""

    @classmethod
    def here(cls, environ: Mapping[str, str] | None = None) -> Owner:
        environ = os.environ if environ is None else environ
        host = socket.gethostname()
        pid = os.getpid()
        job = environ.get("SLURM_JOB_ID", "")
        task = environ.get("SLURM_ARRAY_TASK_ID")
        return cls(
            name=f"{host}-{pid}-{secrets.token_hex(3)}",
            host=host,
            pid=pid,
            started_s=psutil.Process(pid).create_time(),
            job_id=f"{job}_{task}" if task else job,
            restart=environ.get("SLURM_RESTART_COUNT", "0"),
            pids=process_ids(),
        )


@dataclass(frozen=True)
class Claim:
    """shard: to work on now.  shared: another one is at it too, and must keep its files."""

    shard: Shard
    number: int
    shared: bool = False


class Claims:
    """The shards that this worker has, and those that it may take. `next` is for one thread."""

    def __init__(
        self, run_dir: RunDir, manifest: Manifest, owner: Owner, *, stale_s: float = STALE_S
    ) -> None:
        self._dir = run_dir
        self._shards = manifest.shards
        self._owner = owner
        self._stale_s = stale_s
        self._seen: dict[int, tuple[int, float, float]] = {}
        self._held: dict[int, float] = {}
        self._ever: set[int] = set()
        self._durations: list[float] = []
        self._done: set[int] = set()
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)
        self._heart.start()

    def next(self) -> Claim | None:
        """A shard to work on; None where there is none just now. Raises OSError."""
        self._done = self._dir.committed()
        open_now = [n for n in range(len(self._shards)) if n not in self._done]
        taken = numbers_in(self._dir.leases)
        mine = set(self._held)
        for number in open_now:
            if number in mine or (number in taken and not self._drop_stale(number)):
                continue
            if not self._take(number):
                continue
            if not self._dir.shard(number).exists():
                return Claim(self._shards[number], number)
            # Its owner committed it and let go between our two looks.
            self._forget(number)
            self._ever.discard(number)
        if self.has_shards:
            return None
        for number in open_now:
            # One helper is enough.
            if self._is_straggler(number) and self.take(self._helper_of(number)):
                log.info("shard %d takes another worker long; answering it here as well", number)
                self._held[number] = time.monotonic()
                self._ever.add(number)
                return Claim(self._shards[number], number, shared=True)
        return None

    @property
    def mine(self) -> set[int]:
        """Every shard that was ever taken here."""
        return self._ever

    @property
    def has_shards(self) -> bool:
        """Whether a shard that is ours is not finished."""
        return any(number < len(self._shards) for number in list(self._held))

    @property
    def num_open(self) -> int:
        """Shards that were not finished at the last look."""
        return len(self._shards) - len(self._done)

    def stand_by(self) -> bool:
        """Whether this is the one worker that stays for what others may leave. Raises OSError."""
        return self._spare in self._held or self.take(self._spare)

    def stand_down(self) -> None:
        """There is work again."""
        if self._spare in self._held:
            self.release(self._spare)

    def others_live(self) -> bool:
        """Whether all that is left to do is in the hands of workers that were seen to be alive, and
        so is who stands by: each has touched its lease since we first saw it."""
        left = [n for n in range(len(self._shards)) if n not in self._done] or [self._merge]
        seen = [self._seen.get(number) for number in (*left, self._spare)]
        return all(one is not None and one[1] > one[2] for one in seen)

    @property
    def _merge(self) -> int:
        return len(self._shards)

    @property
    def _spare(self) -> int:
        return len(self._shards) + 1

    def _helper_of(self, number: int) -> int:
        return len(self._shards) + 2 + number

    def take_merge(self) -> bool:
        """Whether the output is ours to write. Raises OSError."""
        return self.take(self._merge)

    def take(self, number: int) -> bool:
        """Whether this shard is ours from now on. Raises OSError."""
        return self._take(number) or (self._drop_stale(number) and self._take(number))

    def all_committed(self) -> bool:
        """Whether every shard of the run is finished. Raises OSError."""
        if len(self._done) < len(self._shards):
            self._done = self._dir.committed()
        return len(self._done) == len(self._shards)

    def only_mine_left(self) -> bool:
        """Whether every shard that is not finished is ours: no other worker to wait for."""
        return all(n in self._done or n in self._held for n in range(len(self._shards)))

    def release(self, number: int) -> None:
        """It is committed, or given up."""
        since = self._held.get(number)
        if since is not None and number < len(self._shards):
            self._durations.append(time.monotonic() - since)
        self._forget(number)
        if self._helper_of(number) in self._held:
            self._forget(self._helper_of(number))

    def _forget(self, number: int) -> None:
        self._held.pop(number, None)
        try:
            lease = read_json(self._dir.lease(number))
        except OSError as error:  # it becomes stale by itself
            log.debug("lease of shard %d: %s", number, error)
            return
        if lease is not None and lease.get("name") == self._owner.name:
            sweep(self._dir.lease(number))

    def close(self) -> None:
        """Give up all that is held, so that the next one need not wait."""
        self._stop.set()
        self._heart.join()
        for number in list(self._held):
            self.release(number)

    def _take(self, number: int) -> bool:
        path = self._dir.lease(number)
        temporary = temporary_name(path)
        # Never seen empty: whoever finds it can tell at once whether its owner is gone.
        temporary.write_bytes(msgspec.json.encode(self._owner))
        won = publish(temporary, path, durable=False)
        if won:
            self._held[number] = time.monotonic()
            self._ever.add(number)
        return won

    def _drop_stale(self, number: int) -> bool:
        """Whether the lease is free now. One of those who find it stale takes it away."""
        path = self._dir.lease(number)
        lease = read_json(path)
        try:
            changed_ns = path.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        now = time.monotonic()
        last, since, first = self._seen.get(number, (changed_ns, now, now))
        if last != changed_ns:
            since = now
        self._seen[number] = (changed_ns, since, first)
        if now - since < self._stale_s and not (lease and self._is_gone(lease)):
            return False
        aside = path.with_name(f".stale-{number:06d}-{secrets.token_hex(4)}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return True
        self._seen.pop(number)
        if read_json(aside) != lease:
            # Another one was quicker with it, and this is the lease that it has taken since.
            publish(aside, path, durable=False)
            return False
        aside.unlink(missing_ok=True)
        return True

    def _is_gone(self, lease: dict[str, object]) -> bool:
        if lease.get("job_id") and lease.get("job_id") == self._owner.job_id:
            return lease.get("restart") != self._owner.restart or not _lives(lease, self._owner)
        return not _lives(lease, self._owner)

    def _is_straggler(self, number: int) -> bool:
        if number not in self._seen:
            return False
        usual = _UNKNOWN_S
        if self._durations:
            usual = sorted(self._durations)[len(self._durations) // 2]
        waited = time.monotonic() - self._seen[number][2]
        return waited > max(_STRAGGLER_S, _STRAGGLER_FACTOR * usual)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            for number in list(self._held):
                _touch(self._dir.lease(number))


def _lives(lease: dict[str, object], owner: Owner) -> bool:
    """Whether the process that made a lease runs, as far as this process can tell."""
    if (lease.get("host"), lease.get("pids", "")) != (owner.host, owner.pids):
        return True
    try:
        started_s = psutil.Process(int(str(lease.get("pid")))).create_time()
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True
    return abs(started_s - float(str(lease.get("started_s")))) < _CLOCK_STEP_S


def process_ids() -> str:
    """The name of this process's own set of process ids; "" where the system has but one."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError as error:
        log.debug("lease %s: %s", path, error)
