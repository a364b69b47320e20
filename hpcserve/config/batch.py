"""`hpcserve batch`: which rows, where the answers go, and how rows are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError

ERROR_MODES = ("inline", "file", "fail")


@dataclass(frozen=True)
class BatchConfig:
    """Inputs and output are file names; `-` is stdin or stdout."""

    inputs: tuple[str, ...] = option(
        (),
        "-i",
        "--input-file",
        "--input",
        help="file, folder or glob of rows; - is stdin",
        metavar="FILE",
    )
    output: str = option(
        "",
        "-o",
        "--output",
        "--output-file",
        help="file of answers (.jsonl, .parquet, .gz, .zst); - is stdout",
        metavar="FILE",
    )
    fresh: bool = option(
        False,
        "--fresh",
        "--overwrite",
        off_flags=("--no-fresh",),
        help="start over: forget finished rows, replace the output",
    )
    input_format: str = option(
        "auto", "--input-format", help="format of the input, whatever its ending: jsonl, csv, ..."
    )
    prompt_column: str | None = option(
        None, "--prompt-column", help="column that holds the prompt", metavar="NAME"
    )
    messages_column: str | None = option(
        None, "--messages-column", help="column that holds the conversation", metavar="NAME"
    )
    id_column: str | None = option(
        None,
        "--id-column",
        help="column that names rows; none: number them; default: custom_id, or id",
        metavar="NAME",
    )
    prompt_template: str | None = option(
        None, "--template", help="jinja file that makes the prompt of a row's columns"
    )
    system_prompt: str | None = option(
        None, "--system-prompt", help="system message for rows without one", metavar="TEXT"
    )
    apply_chat_template: bool = option(
        False, "--apply-chat-template", help='ask a plain "prompt" as the message of a user'
    )
    keep_columns: bool = option(
        False, "--keep-columns", help="repeat the input's columns in the output"
    )
    unordered: bool = option(
        False,
        "--unordered",
        off_flags=("--ordered",),
        help="output in the order in which shards were finished",
    )
    errors: str = option(
        "inline",
        "--errors",
        choices=ERROR_MODES,
        help="failed rows: in the output, in a file beside it, or the end of the run",
    )
    max_error_rate: float = option(
        1.0, "--max-error-rate", help="end the run where more of its rows fail, 0 to 1"
    )
    retries: int = option(3, "--retry", help="tries more for an error that may pass")
    row_timeout_s: float | None = option(
        None, "--row-timeout", help="seconds after which a row is given up"
    )
    stall_timeout_s: float = option(
        600.0, "--stall-timeout", help="seconds without a step after which an engine is restarted"
    )
    deadline: float | None = option(
        None,
        "--deadline",
        help="end of the time, in seconds since the epoch; default: the SLURM job's",
        metavar="SECONDS",
    )
    deadline_margin_s: float = option(
        30.0, "--deadline-margin", help="seconds before the end at which everything is on the disk"
    )
    drain_s: float = option(
        15.0, "--row-drain", help="seconds that rows in flight get after a signal to end"
    )
    jobs: int = option(
        1,
        "--jobs",
        help="workers that share the rows, each with an engine; on SLURM a job array of so many",
    )
    idle_timeout_s: float | None = option(
        None,
        "--idle-timeout",
        help="seconds without rows to take after which one of several workers ends, where others "
        "finish the rest and one more stands by; 0: never; default: 120 with --jobs, else never",
        metavar="SECONDS",
    )
    shard_rows: int = option(2048, "--shard-rows", help="rows that are committed together")
    max_rows_in_flight: int | None = option(
        None,
        "--max-inflight",
        "--max-rows-in-flight",
        help="rows given to the engine at a time; default: 4 times --max-running-requests",
    )
    prepare_processes: int | None = option(
        None,
        "--prepare-processes",
        help="processes that parse, fill templates and tokenise ahead of the engine; 0: threads; "
        "default: one for 4 cores, 4 at most, for files that are worth it",
    )
    log_interval_s: float = option(
        10.0, "--log-interval", help="seconds between lines of progress in a log"
    )

    def __post_init__(self) -> None:
        if self.errors not in ERROR_MODES:
            raise ConfigError(f"errors is {self.errors!r}; choose one of {', '.join(ERROR_MODES)}")
        if not 0 <= self.max_error_rate <= 1:
            raise ConfigError(f"max_error_rate is {self.max_error_rate}; from 0 to 1")
        for name in ("max_rows_in_flight", "jobs", "shard_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; at least 1")
        for name in ("log_interval_s", "stall_timeout_s", "row_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if self.prepare_processes is not None and self.prepare_processes < 0:
            raise ConfigError(f"prepare_processes is {self.prepare_processes}; 0 is threads only")
        for name in ("retries", "deadline_margin_s", "drain_s", "idle_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if self.prompt_template is not None and (self.prompt_column or self.messages_column):
            raise ConfigError("--template makes the prompt; leave out the column options")
        if self.prompt_column and self.messages_column:
            raise ConfigError("--prompt-column and --messages-column: a row has one of them")


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
