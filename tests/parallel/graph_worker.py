"""A rank that takes the path of captured graphs on a CPU: a replay runs the captured code again.

Everything is as on a GPU but the capture: sizes, padding, turns, parts of logits, replicas in step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hpcserve.engine import worker_main


class EagerRecorder:
    def __init__(self, device: Any) -> None:
        assert device.type == "cpu"

    def capture(self, run: Callable[[], Any]) -> Any:
        outputs = run()

        def replay() -> None:
            new = run()
            outputs.hidden.copy_(new.hidden)
            outputs.positions.copy_(new.positions)
            if outputs.logits is not None:
                outputs.logits.logits.copy_(new.logits.logits)

        return outputs, replay


if __name__ == "__main__":
    from hpcserve.attention.torch_sdpa import TorchSDPABackend
    from hpcserve.engine import decode_graphs, worker

    def capture_plan(backend: TorchSDPABackend, meta: Any, variant: int = 0) -> None:
        """Lengths come from the step itself; padding attends to one token of anybody's."""
        lengths = np.maximum(meta.seq_lens.numpy().astype(np.int32), 1)
        backend.plan(replace(meta, host_seq_lens=lengths, host_query_lens=np.ones_like(lengths)))

    TorchSDPABackend.caps = replace(TorchSDPABackend.caps, cuda_graph=True)
    TorchSDPABackend.capture_plan = capture_plan
    TorchSDPABackend.replay_plan = lambda *_: None
    decode_graphs.make_recorder = EagerRecorder
    worker.captures_on = lambda device: True
    run = decode_graphs.DecodeGraphs.run

    def say_so(*args: Any, **options: Any) -> Any:
        worker_main.logger.info("replayed")
        return run(*args, **options)

    decode_graphs.DecodeGraphs.run = say_so
    worker_main.main()
