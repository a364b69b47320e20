"""`hpcserve batch`: which rows, where the answers go, and how rows are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class BatchConfig:
    """Input and output are file names; `-` is stdin or stdout."""

    input: str = option(
        "", "-i", "--input-file", "--input", help="file of rows; - is stdin", metavar="FILE"
    )
    output: str = option(
        "",
        "-o",
        "--output",
        "--output-file",
        help="file of answers, one line per row of the input, in its order; - is stdout",
        metavar="FILE",
    )
    overwrite: bool = option(False, "--overwrite", help="replace an output that exists")
    apply_chat_template: bool = option(
        False, "--apply-chat-template", help='ask a plain "prompt" as the message of a user'
    )
    max_rows_in_flight: int | None = option(
        None,
        "--max-inflight",
        "--max-rows-in-flight",
        help="rows given to the engine at a time; default: 4 times --max-running-requests",
    )
    log_interval_s: float = option(
        10.0, "--log-interval", help="seconds between lines of progress in a log"
    )

    def __post_init__(self) -> None:
        if self.max_rows_in_flight is not None and self.max_rows_in_flight < 1:
            raise ConfigError(f"max_rows_in_flight is {self.max_rows_in_flight}; at least 1")
        if not self.log_interval_s > 0:
            raise ConfigError(f"log_interval_s is {self.log_interval_s}; it must be above 0")


@dataclass(frozen=True)
class RowDefaults:
    """Sampling of rows that do not say it themselves."""

    max_tokens: int | None = option(None, "--max-tokens", help="most tokens of an answer")
    temperature: float | None = option(None, "--temperature", help="0 is greedy")
    top_p: float | None = option(None, "--top-p", help="sample from the likeliest tokens only")
    top_k: int | None = option(None, "--top-k", help="sample from so many tokens; -1 is all")
    min_p: float | None = option(None, "--min-p", help="least share of the likeliest token's odds")
    stop: tuple[str, ...] = option((), "--stop", help="text that ends an answer", metavar="TEXT")
    sampling: tuple[str, ...] = option(
        (),
        "--sampling",
        help="any other sampling parameter, such as presence_penalty=0.5",
        metavar="KEY=VALUE",
    )
