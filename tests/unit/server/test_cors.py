"""Web pages of other origins: only those that the operator names."""

ASKS = {
    "origin": "https://page.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}
BODY = {"prompt": "abc", "stream": True}


def test_none_by_default(serve):
    async def scenario(served):
        assert (await served.http.options("/v1/completions", headers=ASKS)).status_code == 405
        answer = await served.http.post("/v1/completions", json=BODY, headers=ASKS)
        assert "access-control-allow-origin" not in answer.headers

    serve(scenario)


def test_those_that_are_named_also_with_a_key(serve):
    async def scenario(served):
        asked = await served.http.options("/v1/completions", headers=ASKS)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://page.example"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        key = {"authorization": "Bearer secret"}
        for headers, status in ((ASKS, 401), ({**ASKS, **key}, 200)):
            answer = await served.http.post("/v1/completions", json=BODY, headers=headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = {**ASKS, **key, "origin": "https://other.example"}
        answer = await served.http.post("/v1/completions", json=BODY, headers=other)
        assert "access-control-allow-origin" not in answer.headers

    origins = "https://elsewhere.example, https://page.example"
    serve(scenario, server={"allowed_origins": origins, "api_key": "secret"})


def test_streams_reach_them_on_the_real_server(serve):
    async def scenario(served):
        answer = await served.http.post("/v1/completions", json=BODY, headers=ASKS)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.text.rstrip().endswith("data: [DONE]")

    serve(scenario, real=True, server={"allowed_origins": "*"})
