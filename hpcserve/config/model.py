"""Which model, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option

LOAD_FORMATS = ("auto", "safetensors", "dummy")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class ModelConfig:
    """The user's choice of model; what the checkpoint itself says is in `checkpoint.py`."""

    model: str = option(
        "",
        "--model",
        "--model-path",
        help="folder (or cached hub name) of the model",
        metavar="PATH",
    )
    tokenizer: str | None = option(
        None, "--tokenizer", "--tokenizer-path", help="folder of the tokenizer, if another"
    )
    revision: str | None = option(None, "--revision", help="hub revision of the model")
    dtype: str = option(
        "auto", "--dtype", choices=DTYPES, help="auto: the checkpoint's on a GPU, float32 on a CPU"
    )
    context_length: int | None = option(
        None,
        "--context-length",
        "--max-model-len",
        help="most tokens of prompt and output together; default: the checkpoint's",
    )
    load_format: str = option(
        "auto",
        "--load-format",
        choices=LOAD_FORMATS,
        help="dummy fills the weights with seeded random numbers and reads no file but config.json",
    )
    overlap_loading: bool = option(
        True,
        "--overlap-loading",
        off_flags=("--no-overlap-loading",),
        help="read the weights while kernels and graphs are prepared",
    )
    chat_template: str | None = option(
        None, "--chat-template", help="jinja file that replaces the checkpoint's chat template"
    )
    generation_config: str = option(
        "auto",
        "--generation-config",
        "--sampling-defaults",
        help="sampling defaults: auto takes the model's generation_config.json, none no file, "
        "else a folder that has one",
        metavar="auto|none|FOLDER",
    )
    trust_remote_code: bool = option(
        False, "--trust-remote-code", help="let the tokenizer run code that the checkpoint carries"
    )
