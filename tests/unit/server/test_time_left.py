"""Requests that the job's end would cut off are refused, with the time that is left."""

from __future__ import annotations

import json
import math
import time

import pytest

from hpcserve.errors import OutOfTimeError
from hpcserve.server.time_left import TimeLeft


def test_no_file_is_no_end(tmp_path):
    TimeLeft(None).check(1e9)
    path = tmp_path / "deadline.json"
    TimeLeft(path).check(1e9)
    for text in ("", "{", "{}", '{"finish_by": null}', "[]"):
        path.write_text(text)
        assert TimeLeft(path).seconds() == math.inf


def test_what_takes_longer_than_is_left_is_refused(tmp_path):
    path = tmp_path / "deadline.json"
    path.write_text(json.dumps({"finish_by": time.time() + 3600}))
    left = TimeLeft(path)
    left.check(1800.0)
    with pytest.raises(OutOfTimeError, match=r"ends in \d+ s.*takes about 3700 s") as caught:
        left.check(3700.0)
    assert caught.value.retry_after_s == pytest.approx(caught.value.left_s + 30)
    assert 1800 < caught.value.left_s <= 3600


def test_an_extended_limit_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcserve.server.time_left._REREAD_S", 0.0)
    path = tmp_path / "deadline.json"
    path.write_text(json.dumps({"finish_by": time.time() - 5}))
    left = TimeLeft(path)
    with pytest.raises(OutOfTimeError, match="ends in 0 s"):
        left.check(0.0)
    path.write_text(json.dumps({"finish_by": time.time() + 3600}))
    left.check(1800.0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "abc"}),
        ("/v1/completions", {"prompt": "abc", "stream": True}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 3},
        ),
        ("/generate", {"text": "abc"}),
    ],
)
def test_every_endpoint_refuses_with_503_and_when_to_come_back(
    serve, tmp_path, monkeypatch, path, body
):
    deadline = tmp_path / "deadline.json"
    monkeypatch.setenv("HPCSERVE_DEADLINE_FILE", str(deadline))
    monkeypatch.setattr("hpcserve.server.time_left._REREAD_S", 0.0)
    many = {"sampling_params": {"max_new_tokens": 900, "ignore_eos": True}}
    long = many if path == "/generate" else {"max_tokens": 900, "ignore_eos": True}

    async def scenario(served):
        assert (await served.http.post(path, json=body)).status_code == 200  # measures the pace
        served.client.pace.add(4000.0, 1000)
        deadline.write_text(json.dumps({"finish_by": time.time() + 2000}))
        assert (await served.http.post(path, json=body)).status_code == 200  # short enough
        refused = await served.http.post(path, json={**body, **long})
        assert refused.status_code == 503
        assert 1000 < int(refused.headers["retry-after"]) <= 2030
        assert refused.json()["error"]["code"] == "out_of_time"
        assert "job ends in" in refused.json()["error"]["message"]
        assert (await served.http.get("/health")).status_code == 200

    serve(scenario)
