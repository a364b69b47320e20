"""Ready means ready: the server answers over HTTP, and has made a token."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from hpcserve.launcher.network import url_host
from hpcserve.log import get_logger

log = get_logger(__name__)

_PAUSE_S = 0.5


@dataclass(frozen=True)
class Server:
    """Where the HTTP server of a job listens.  host: an address, as others reach it."""

    host: str
    port: int
    api_key: str | None = None

    @property
    def url(self) -> str:
        return f"http://{url_host(self.host)}:{self.port}"


class Probe:
    """Asks a server whether it is ready, in a thread of its own.

    A server that loads takes connections and lets them wait, and a first token can take a minute
    of compiling; the supervisor has signals to obey meanwhile.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._found = False

    def is_ready(self, server: Server) -> bool:
        """Whether it was found ready; asks anew where the last question has its answer."""
        if not self._found and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._ask, args=(server,), daemon=True)
            self._thread.start()
        return self._found

    def _ask(self, server: Server) -> None:
        if is_healthy(server):
            problem = makes_tokens(server)
            self._found = problem is None
            if problem:
                log.warning("the server is up, but makes no token yet: %s", problem)
        if not self._found:
            time.sleep(_PAUSE_S)


def is_healthy(server: Server, timeout_s: float = 5.0) -> bool:
    """Whether /health answers 200."""
    return _ask(server, "GET", "/health", None, timeout_s)[0] == 200


def makes_tokens(server: Server, timeout_s: float = 60.0) -> str | None:
    """Ask for one token. None if it came, else what went wrong, in words."""
    status, body = _ask(server, "GET", "/v1/models", None, timeout_s)
    names = [model.get("id") for model in body.get("data", [])] if status == 200 else []
    if not names:
        return f"/v1/models answered {status}: {_short(body)}"
    question = {"model": names[0], "prompt": "1", "max_tokens": 1, "temperature": 0}
    status, body = _ask(server, "POST", "/v1/completions", question, timeout_s)
    if status != 200 or not body.get("choices"):
        return f"/v1/completions answered {status}: {_short(body)}"
    return None


def _ask(
    server: Server, method: str, path: str, content: dict[str, Any] | None, timeout_s: float
) -> tuple[int, dict[str, Any]]:
    """Status and JSON body; status 0 where nobody answers."""
    headers = {"Content-Type": "application/json"}
    if server.api_key:
        headers["Authorization"] = f"Bearer {server.api_key}"
    connection = http.client.HTTPConnection(server.host, server.port, timeout=timeout_s)
    try:
        body = None if content is None else json.dumps(content)
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        text = answer.read(1 << 20).decode("utf-8", errors="replace")
        parsed = json.loads(text) if text.lstrip().startswith("{") else {"text": text}
        return answer.status, parsed
    except (OSError, http.client.HTTPException, ValueError) as error:
        return 0, {"error": f"{type(error).__name__}: {error}"}
    finally:
        connection.close()


def _short(body: dict[str, Any]) -> str:
    return json.dumps(body)[:300]
