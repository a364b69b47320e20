"""What the engine runs on."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError

DEVICES = ("auto", "cuda", "cpu")
GRAMMAR_BACKENDS = ("xgrammar", "none")


@dataclass(frozen=True)
class BackendConfig:
    device: str = option(
        "auto", "--device", choices=DEVICES, help="auto: a GPU if there is one, else the CPU"
    )
    attention_backend: str = option(
        "auto",
        "--attention-backend",
        help="a module of hpcserve/attention; auto: the fastest that works here",
        metavar="NAME",
    )
    prefill_attention_backend: str | None = option(
        None,
        "--prefill-attention-backend",
        help="another attention backend for steps that hold a prompt",
        metavar="NAME",
    )
    decode_attention_backend: str | None = option(
        None,
        "--decode-attention-backend",
        help="another attention backend for steps of decodes alone",
        metavar="NAME",
    )
    grammar_backend: str = option(
        "xgrammar",
        "--grammar-backend",
        choices=GRAMMAR_BACKENDS,
        help="what holds answers to a JSON schema, a regex or an EBNF; none: refuse such requests",
    )
    enable_cuda_graph: bool = option(
        True,
        "--enable-cuda-graph",
        off_flags=("--disable-cuda-graph", "--enforce-eager"),
        help="replay decode steps as CUDA graphs",
    )
    cuda_graph_max_bs: int | None = option(
        None,
        "--cuda-graph-max-bs",
        help="largest decode step that is a CUDA graph; default: --max-running-requests",
    )
    cpu_threads: int | None = option(
        None,
        "--cpu-threads",
        help="torch threads on a CPU; default: all cores but one, at least one",
    )

    def __post_init__(self) -> None:
        if self.cuda_graph_max_bs is not None and self.cuda_graph_max_bs < 1:
            raise ConfigError(
                f"cuda_graph_max_bs is {self.cuda_graph_max_bs}; it must be at least 1 "
                "(--disable-cuda-graph for none)"
            )
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ConfigError(f"cpu_threads is {self.cpu_threads}; it must be at least 1")
