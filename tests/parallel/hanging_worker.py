"""A rank that goes on giving signs of life, and as rank 1 hangs in the step of a long prompt."""

import threading
from typing import Any

from hpcserve.engine import worker_main

HANG = 20


def hang() -> None:
    threading.Event().wait()


if __name__ == "__main__":
    from hpcserve.engine.worker import Worker

    submit = Worker.submit

    def submit_or_hang(worker: Worker, step: Any) -> Any:
        if worker.setup.ranks.place.rank == 1 and step.num_scheduled.max(initial=0) >= HANG:
            hang()
        return submit(worker, step)

    Worker.submit = submit_or_hang  # type: ignore[method-assign]
    worker_main.main()
