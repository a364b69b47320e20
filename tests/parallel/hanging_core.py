"""A core whose rank 1 never ends the step in which a prompt of HANG tokens or more begins."""

from hpcserve.engine import worker_process
from hpcserve.engine.core_main import main

if __name__ == "__main__":
    worker_process.WORKER_MODULE = "hanging_worker"
    main()
