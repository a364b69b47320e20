"""A core whose ranks sum as ranks on GPUs do, on a CPU."""

from hpcserve.engine import worker_process
from hpcserve.engine.core_main import main

if __name__ == "__main__":
    worker_process.WORKER_MODULE = "sum_worker"
    main()
