"""What a server says of itself, and the few things one may ask of it between runs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcserve.errors import EngineError

_TIMEOUT_S = 30.0
#: Stopping a profile writes large files first.
_PROFILE_TIMEOUT_S = 600.0
_NOT_OFFERED = (404, 405, 501)


@dataclass(frozen=True)
class Server:
    """base_url without /v1 and without a slash at its end."""

    base_url: str
    headers: dict[str, str] = field(default_factory=dict)

    def call(
        self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> Any:
        """GET, or POST where there is a body. Returns parsed JSON or text, None where the server
        does not offer this (404, 405, 501). Raises EngineError for all else that goes wrong.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(self.base_url + path, data, headers)
        # No proxy: the load does not go through one either.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                text = answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _NOT_OFFERED:
                    return None
                detail = _message(error.read().decode(errors="replace"))
            raise EngineError(f"{self.base_url}{path} answered {error.code}: {detail}") from error
        except OSError as error:
            raise EngineError(
                f"no server answers at {self.base_url} ({error}); start one, or name another "
                "with --base-url"
            ) from error
        try:
            return json.loads(text)
        except ValueError:
            return text

    def model(self) -> dict[str, Any]:
        """The first entry of /v1/models."""
        listed = self.call("/v1/models")
        try:
            entry: dict[str, Any] = listed["data"][0]
            entry["id"]
        except (LookupError, TypeError) as error:
            raise EngineError(f"{self.base_url}/v1/models names no model: {listed}") from error
        return entry

    def model_folder(self, entry: dict[str, Any]) -> Path | None:
        """The model's folder where the server names one that this machine has."""
        named = self.call("/get_model_info")  # SGLang's way of asking; others do not have it
        candidates = [named.get("model_path")] if isinstance(named, dict) else []
        candidates += [entry.get("root"), entry.get("id")]
        for candidate in candidates:
            if isinstance(candidate, str) and (Path(candidate) / "config.json").is_file():
                return Path(candidate)
        return None

    def info(self) -> dict[str, Any]:
        """Versions and settings, from whichever endpoint the server has; {} where none."""
        for path in ("/get_server_info", "/server_info", "/version"):
            found = self.call(path)
            if isinstance(found, dict):
                return found
        return {}

    def flush_cache(self) -> bool:
        """Empty the prefix cache; False where the server offers no way."""
        ways = ("/flush_cache", "/reset_prefix_cache")
        return any(self.call(path, {}) is not None for path in ways)

    def start_profile(self, folder: Path) -> bool:
        """Ask for a torch profiler trace in `folder`; False where the server offers none."""
        body = {"output_dir": str(folder.resolve())}
        return self.call("/start_profile", body, timeout_s=_PROFILE_TIMEOUT_S) is not None

    def stop_profile(self) -> list[str]:
        """The paths of the traces, one a rank, where the server names them; else []."""
        answer = self.call("/stop_profile", {}, timeout_s=_PROFILE_TIMEOUT_S)
        files = answer.get("files") if isinstance(answer, dict) else None
        return [str(one) for one in files] if isinstance(files, list) else []


def _message(answer: str) -> str:
    """What an error says in the form that OpenAI gives it; of others, their beginning."""
    try:
        return str(json.loads(answer)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return answer[:300]
