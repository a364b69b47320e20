"""The HTTP side of `hpcserve serve`."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option


@dataclass(frozen=True)
class ServerConfig:
    host: str = option("127.0.0.1", "--host", help="address to listen on")
    port: int = option(30000, "--port", help="port to listen on; 0 takes a free one")
    api_key: str | None = option(
        None, "--api-key", help="key that clients must send; better set HPCSERVE_API_KEY"
    )
    served_model_name: str | None = option(
        None, "--served-model-name", help="the name clients use; default: the model's folder name"
    )
    drain_timeout_s: float = option(
        30.0, "--drain-timeout", help="seconds that running requests get after Ctrl-C or SIGTERM"
    )
