"""Clients that leave in the middle of a request's body, and errors that nobody foresaw."""

import asyncio
import logging

from hpcserve.server import chat


async def send(url, data):
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    return reader, writer


def test_leaving_within_the_body_is_no_error(serve, caplog):
    async def scenario(served):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        _, writer = await send(served.url, head + b'{"messages":')
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.sleep(0.1)
        assert (await served.http.get("/health")).status_code == 200

    with caplog.at_level(logging.WARNING):
        serve(scenario, real=True)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_bug_is_an_error_in_openais_form(serve, monkeypatch, caplog):
    def fails(*_):
        raise ZeroDivisionError("oops")

    async def scenario(served):
        body = {"messages": [{"role": "user", "content": "hi"}]}
        response = await served.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 500
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", None)
        assert "oops" not in error["message"]

    monkeypatch.setattr(chat, "chat_response", fails)
    with caplog.at_level(logging.ERROR):
        serve(scenario, real=True)
    assert "ZeroDivisionError" in caplog.text
