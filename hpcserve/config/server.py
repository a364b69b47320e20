"""The HTTP side of `hpcserve serve`."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class ServerConfig:
    host: str = option("127.0.0.1", "--host", help="address to listen on")
    port: int = option(30000, "--port", help="port to listen on; 0 takes a free one")
    api_key: str | None = option(
        None, "--api-key", help="key that clients must send; better set HPCSERVE_API_KEY"
    )
    served_model_name: str | None = option(
        None,
        "--served-model-name",
        help="the name clients use; default: the model's folder or hub name",
    )
    api_workers: int = option(
        1,
        "--api-workers",
        "--api-server-count",
        help="HTTP processes that share the port and the engine; more than 1 need --dp 1",
    )
    drain_timeout_s: float = option(
        30.0, "--drain-timeout", help="seconds that running requests get after Ctrl-C or SIGTERM"
    )

    max_body_bytes: int = option(
        32 << 20, "--max-body-bytes", help="largest body of a request; more is answered with 413"
    )
    profile_dir: str | None = option(
        None,
        "--profile-dir",
        help="folder where /start_profile may write; without one it is refused",
    )
    allowed_origins: str | None = option(
        None,
        "--allowed-origins",
        help="origins of web pages that may call (CORS), separated by commas; * is any",
    )

    def __post_init__(self) -> None:
        if self.api_workers < 1:
            raise ConfigError(f"api_workers is {self.api_workers}; it must be at least 1")
        if self.max_body_bytes < 1:
            raise ConfigError(f"max_body_bytes is {self.max_body_bytes}; it must be at least 1")
        # The resolver takes a port modulo 65,536 without a word.
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}; it must be from 0 to 65535")
        if not self.drain_timeout_s >= 0:
            raise ConfigError(f"drain_timeout_s is {self.drain_timeout_s}; it cannot be negative")
