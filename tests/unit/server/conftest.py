import asyncio
import inspect
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn

from hpcserve.config.engine import EngineConfig
from hpcserve.config.server import ServerConfig
from hpcserve.engine.client import EngineClient
from hpcserve.fake_engine import FakeCore, fake_engine, write_byte_tokenizer
from hpcserve.server.app import create_app
from hpcserve.server.http import uvicorn_config
from hpcserve.server.run import bind
from hpcserve.tokenizer.tokenizer import Tokenizer

SERVE = """
import sys
from hpcserve.config.engine import EngineConfig
from hpcserve.config.server import ServerConfig
from hpcserve.errors import HpcserveError
from hpcserve.log import setup_logging
from hpcserve.server.run import run_server

setup_logging()
engine = EngineConfig.from_options({"model": sys.argv[1], "random_seed": int(sys.argv[2])})
workers = int(sys.argv[4])
server = ServerConfig(port=0, drain_timeout_s=float(sys.argv[3]), api_workers=workers)
try:
    code = run_server(engine, server, core_module="hpcserve.fake_engine")
except HpcserveError as error:
    print(error, file=sys.stderr)
    code = error.exit_code
sys.exit(code)
"""


#: What a test waits for at most. None depends on how fast the machine is.
PATIENCE_S = 60


class ServerProcess:
    """A server of its own, over a fake core of the given life."""

    def __init__(self, folder, life=0, drain_s=10.0, workers=1):
        write_byte_tokenizer(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(folder), str(life), str(drain_s), str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._said, self._news = [], threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.line = self.process.stdout.readline()
        self.url = self.line.split()[-1] if self.line else ""

    def _listen(self):
        for line in self.process.stderr:
            with self._news:
                self._said.append(line)
                self._news.notify_all()

    def wait_said(self, text):
        """Until its log has it."""
        with self._news:
            if not self._news.wait_for(lambda: text in "".join(self._said), PATIENCE_S):
                pytest.fail(f"not said: {text}; but {self._said}")

    def get(self, path):
        return httpx.get(self.url + path, timeout=PATIENCE_S)

    def post(self, path, **body):
        return httpx.post(self.url + path, json=body, timeout=PATIENCE_S)

    def stream(self, path, **body):
        return httpx.stream("POST", self.url + path, json=body, timeout=PATIENCE_S)

    def end(self):
        """Its exit code, what else it printed, and its log."""
        self.process.wait(PATIENCE_S)
        self._listener.join(PATIENCE_S)
        return self.process.returncode, self.process.stdout.read(), "".join(self._said)

    def free(self):
        """Whatever a test left of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._listener.join(PATIENCE_S)
        self.process.stdout.close()
        self.process.stderr.close()


async def _until(is_so):
    """Poll a condition, plain or async."""
    deadline = time.monotonic() + PATIENCE_S
    while not (await found if inspect.isawaitable(found := is_so()) else found):
        assert time.monotonic() < deadline, "it did not come to be"
        await asyncio.sleep(0.01)


class Served:
    """A server under test: `http` talks to it, `client` and `core` are what is behind."""

    def __init__(self, http, client, core, url):
        self.http, self.client, self.core, self.url = http, client, core, url

    async def post(self, path, body, expect=200):
        response = await self.http.post(path, json=body)
        assert response.status_code == expect, response.text
        return response.json()

    async def emptied(self):
        async def none_runs():
            return self.client.num_open == 0 and (await self.client.stats()).num_running == 0

        await _until(none_runs)


@asynccontextmanager
async def _serve(folder, core, real, **options):
    folder.mkdir(exist_ok=True)
    config = EngineConfig.from_options({"model": str(folder)})
    async with fake_engine(core, folder, config) as client:
        app = create_app(client, ServerConfig(**options))
        if not real:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                yield Served(http, client, core, "http://test")
            return
        listener = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn_config(app))
        # Not on the main thread: uvicorn must leave the signals of the test run alone.
        server.capture_signals = threading.RLock
        task = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            yield Served(http, client, core, url)
        server.should_exit = True
        await task


@pytest.fixture
def serve(tmp_path):
    """Run `scenario(served)` against a server over a fake core."""

    def run(scenario, *, real=False, server=None, **core_options):
        async def main():
            core = FakeCore(**core_options)
            async with _serve(tmp_path / "byte-model", core, real, **(server or {})) as served:
                await asyncio.wait_for(scenario(served), 2 * PATIENCE_S)

        asyncio.run(main())

    return run


@pytest.fixture
def with_replicas(tmp_path):
    """Run `scenario(served)` against a server over two cores, processes of the given life."""

    def run(scenario, life=0, dp=2):
        async def main():
            options = {"model": str(tmp_path), "dp": dp, "random_seed": life}
            tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))
            client = await EngineClient.start(
                EngineConfig.from_options(options), tokenizer, module="hpcserve.fake_engine"
            )
            async with client:
                transport = httpx.ASGITransport(create_app(client))
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                    served = Served(http, client, None, "http://test")
                    await asyncio.wait_for(scenario(served), 2 * PATIENCE_S)

        asyncio.run(main())

    return run


@pytest.fixture
def server_process(tmp_path):
    """Start a server as a process: `server_process(life=..., workers=...)`; it is gone afterwards."""
    begun = []

    def start(**options):
        begun.append(ServerProcess(tmp_path, **options))
        return begun[-1]

    yield start
    for one in begun:
        one.free()


@pytest.fixture
def until():
    """`await until(condition)`: poll it, plain or async, as long as it may take."""
    return _until


@pytest.fixture
def server_script():
    return SERVE
