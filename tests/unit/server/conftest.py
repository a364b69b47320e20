import asyncio
import threading
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn

from hpcserve.config.engine import EngineConfig
from hpcserve.fake_engine import FakeCore, fake_engine
from hpcserve.server.app import create_app
from hpcserve.server.run import bind, uvicorn_config


class Served:
    """A server under test: `http` talks to it, `client` and `core` are what is behind."""

    def __init__(self, http, client, core, url):
        self.http, self.client, self.core, self.url = http, client, core, url

    async def post(self, path, body, expect=200):
        response = await self.http.post(path, json=body)
        assert response.status_code == expect, response.text
        return response.json()

    async def emptied(self):
        for _ in range(300):
            if self.client.num_open == 0 and (await self.client.stats()).num_running == 0:
                return
            await asyncio.sleep(0.01)
        pytest.fail("requests run on")


@asynccontextmanager
async def _serve(folder, core, real, **options):
    folder.mkdir(exist_ok=True)
    config = EngineConfig.from_options({"model": str(folder)})
    async with fake_engine(core, folder, config) as client:
        app = create_app(client, **options)
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
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
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
                await asyncio.wait_for(scenario(served), 60)

        asyncio.run(main())

    return run
