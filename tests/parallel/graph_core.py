"""A core whose ranks take the path of captured graphs on a CPU."""

from hpcserve.engine import worker_process
from hpcserve.engine.core_main import main

if __name__ == "__main__":
    worker_process.WORKER_MODULE = "graph_worker"
    main()
