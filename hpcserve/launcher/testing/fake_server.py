"""An HTTP server that stands in for the engine in tests of the launcher: fast to start, no torch.

    python -m hpcserve.launcher.testing.fake_server --host H --port P [any option of `hpcserve serve`]

It answers /health (with the number of requests that run), /v1/models and /v1/completions, drains on
SIGTERM as the real one does, and misbehaves as FAKE_ENGINE says, a comma-separated list of:

    load=S        answers only after S seconds
    slow=S        each completion takes S seconds
    stubborn      ignores SIGTERM
    exit=CODE     ends with CODE instead of loading;  fail=TEXT  prints TEXT on stderr before that
    rank=R        only the engine of this node rank ends so
    once          only in the first run of the job
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType

from hpcserve import envs
from hpcserve.launcher.files import write_json

MODEL = "fake"


def behaviour(rank: str) -> dict[str, str]:
    """What FAKE_ENGINE says for this rank and run of the job."""
    pairs = [one.partition("=") for one in os.environ.get("FAKE_ENGINE", "").split(",") if one]
    asked = {name: value for name, _, value in pairs}
    first_run = os.environ.get("HPCSERVE_INCARNATION", ".0").endswith(".0")
    if "once" in asked and not first_run:
        return {}
    if asked.get("rank", rank) != rank:
        asked.pop("exit", None)
        asked.pop("fail", None)
    return asked


def option(arguments: list[str], flag: str, default: str) -> str:
    return arguments[arguments.index(flag) + 1] if flag in arguments else default


class Handler(BaseHTTPRequestHandler):
    slow_s = 0.0
    running = 0
    draining = False

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(503 if Handler.draining else 200, {"running": Handler.running})
        elif self.path == "/v1/models":
            self._if_allowed({"data": [{"id": MODEL}]})
        else:
            self._answer(404, {"error": self.path})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length))
        Handler.running += 1
        time.sleep(Handler.slow_s)
        text = f"{body.get('prompt', '')} and so on"
        self._if_allowed({"choices": [{"text": text, "finish_reason": "length"}]})
        Handler.running -= 1

    def _if_allowed(self, content: dict[str, object]) -> None:
        key = os.environ.get(envs.HPCSERVE_API_KEY.name)
        if key and self.headers.get("Authorization") != f"Bearer {key}":
            self._answer(401, {"error": "wrong key"})
        else:
            self._answer(200, content)

    def _answer(self, status: int, content: dict[str, object]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        return


def main(arguments: list[str]) -> int:
    rank = option(arguments, "--node-rank", "0")
    asked = behaviour(rank)

    def on_term(_number: int, _frame: FrameType | None) -> None:
        Handler.draining = True

    if "stubborn" in asked:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, on_term)
    print(f"fake engine: {' '.join(arguments)}", flush=True)
    faulthandler.dump_traceback_later(float(asked.get("load", 0)) + 10.0)
    if "fail" in asked:
        print(asked["fail"], file=sys.stderr, flush=True)
    if "exit" in asked:
        return int(asked["exit"])
    if told_to_stop_within(float(asked.get("load", 0))):
        return 0
    Handler.slow_s = float(asked.get("slow", 0))
    if rank != "0":
        faulthandler.cancel_dump_traceback_later()
        told_to_stop_within(float("inf"))
        return 0
    return serve(arguments)


def told_to_stop_within(seconds: float) -> bool:
    """Not by an Event: setting one in a signal handler can wait for the lock that it interrupts."""
    deadline = time.monotonic() + seconds
    while not Handler.draining and time.monotonic() < deadline:
        time.sleep(0.02)
    return Handler.draining


class Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        # http.server would look its own name up, which can take half a minute.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def serve(arguments: list[str]) -> int:
    host = option(arguments, "--host", "127.0.0.1")
    server = Server((host, int(option(arguments, "--port", "0"))), Handler)
    bound = envs.HPCSERVE_ENDPOINT_FILE.get()
    if bound:
        write_json(bound, {"host": host, "port": server.server_address[1]})
    faulthandler.cancel_dump_traceback_later()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told_to_stop_within(float("inf"))
    while Handler.running:
        time.sleep(0.02)
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
