"""From the port that the head's engine bound to the address that others reach it by."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hpcserve.launcher.files import read_json, write_json
from hpcserve.launcher.job_dir import JobDir

_EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass
class ServerAddress:
    """address: the head's, for an engine that listens on all of its own."""

    job_dir: JobDir
    incarnation: str
    address: str
    _published: bool = field(default=False, init=False)

    @property
    def bound_file(self) -> Path:
        """Where the engine itself writes host and port, in this run of the job."""
        return self.job_dir.path / f".bound-{self.incarnation}.json"

    def clear(self) -> None:
        """Before the engine starts. The head alone may: it lies in the folder of all nodes, and
        the engine may have written it by the time that a slower node comes here."""
        self.bound_file.unlink(missing_ok=True)

    def publish(self) -> None:
        """Write server.json as soon as the engine is bound, over that of any other run."""
        if self._published:
            return
        bound = read_json(self.bound_file)
        if bound is None:
            return
        content = {
            "address": self.address if bound["host"] in _EVERYWHERE else bound["host"],
            "port": bound["port"],
            "incarnation": self.incarnation,
        }
        write_json(self.job_dir.server, content)
        self._published = True
