"""Which ranks show signs of life. Judged by our own clock: nodes' clocks may differ."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from hpcserve.launcher.files import changed_at, read_json
from hpcserve.launcher.job_dir import JobDir

#: A node writes its file this often.
BEAT_S = 2.0
#: Who has not looked for this long, at least, was held up: by a file system that did not answer, or
#: because SLURM suspended the job. What did not come in that time says nothing.
HELD_UP_S = 5.0


@dataclass
class _Seen:
    beat: tuple[int, int] = (-1, 0)
    at: float = 0.0
    host: str = ""
    ended: bool = False


@dataclass
class Liveness:
    """Follows the heartbeats of `num_nodes` ranks of one run of the job."""

    job_dir: JobDir
    incarnation: str
    num_nodes: int
    timeout_s: float
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _looked: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Read every rank's file; files of earlier runs do not count."""
        now = time.monotonic()
        for rank in range(self.num_nodes):
            content = read_json(self.job_dir.node(rank))
            if content is None or content.get("incarnation") != self.incarnation:
                continue
            seen = self._seen.setdefault(rank, _Seen())
            # A node whose disk is full can only touch its file.
            beat = (int(content.get("beat", 0)), changed_at(self.job_dir.node(rank)))
            if beat != seen.beat:
                seen.beat, seen.at = beat, now
                seen.host = str(content.get("host", ""))
                seen.ended = content.get("phase") == "ended"
        self._forgive_what_we_missed()

    def _forgive_what_we_missed(self) -> None:
        """The nodes get their time again where we ourselves did not look for long."""
        before, self._looked = self._looked, time.monotonic()
        if self._looked - before > max(HELD_UP_S, self.timeout_s / 2):
            for seen in self._seen.values():
                seen.at = self._looked

    def all_alive(self) -> bool:
        return len(self._seen) == self.num_nodes and not self.lost()

    def lost(self) -> list[tuple[int, str, float]]:
        """(rank, host, seconds of silence) of ranks that were there and are silent.

        One that said that it ended is not lost: srun tells how it ended.
        """
        now = time.monotonic()
        return [
            (rank, seen.host, now - seen.at)
            for rank, seen in sorted(self._seen.items())
            if now - seen.at > self.timeout_s and not seen.ended
        ]

    def missing(self) -> list[int]:
        """Ranks that have never shown up."""
        return [rank for rank in range(self.num_nodes) if rank not in self._seen]
