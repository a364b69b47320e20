"""Replicas over HTTP: seen, drained, and taken back. Their cores are fakes."""

import asyncio

from hpcserve.sampling_params import SamplingParams

#: A fake's life in which a step takes 20 ms.
SLOW = 3


def test_a_replica_is_drained_and_taken_back(with_replicas):
    async def scenario(served):
        client, http = served.client, served.http
        params = SamplingParams(temperature=0.0, max_tokens=4000, ignore_eos=True)
        prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
        running = [asyncio.ensure_future(client.complete(one, params)) for one in prompts]
        await asyncio.sleep(0)
        answer = await http.post("/replicas/1/drain")
        assert answer.status_code == 200
        assert answer.json()["state"] == "draining" and answer.json()["num_open"] == 2
        # What comes meanwhile goes to the other; what runs there runs on to its end.
        later = [asyncio.ensure_future(client.complete(one, params)) for one in prompts]
        await asyncio.sleep(0)
        states = (await http.get("/replicas")).json()["replicas"]
        assert [one["num_open"] for one in states] == [6, 2]
        client.abort_all()
        outputs = await asyncio.gather(*running, *later)
        assert {one.outputs[0].finish_reason for one in outputs} == {"abort"}
        states = (await http.get("/replicas")).json()["replicas"]
        assert [one["state"] for one in states] == ["ready", "drained"]
        # The last one is not given up.
        refused = await http.post("/replicas/0/drain")
        assert refused.status_code == 503 and "only one" in refused.json()["error"]["message"]
        assert (await http.post("/replicas/1/resume")).json()["state"] == "ready"
        assert (await http.post("/replicas/0/drain")).json()["state"] == "drained"

    with_replicas(scenario, life=SLOW)


def test_one_that_there_is_not(with_replicas):
    async def scenario(served):
        http = served.http
        for path in ("/replicas/2/drain", "/replicas/-1/resume"):
            answer = await http.post(path)
            assert answer.status_code == 400
            assert "valid: 0 to 1" in answer.json()["error"]["message"]

    with_replicas(scenario, life=SLOW)


def test_a_dead_replica_is_shown_and_stays_drained_when_it_is_back(with_replicas):
    async def scenario(served):
        client, http = served.client, served.http
        client.drain_replica(0)
        client.replicas[0].lost("a test said so")
        first, second = (await http.get("/server_info")).json()["replicas"]
        assert (first["state"], first["num_restarts"], first["load"]) == ("dead", 1, None)
        assert (second["state"], second["num_restarts"]) == ("ready", 0)
        assert second["load"]["num_running"] == 0
        while client.replicas[0].state != "drained":
            await asyncio.sleep(0.02)
        assert (await http.get("/replicas")).json()["replicas"][0]["num_restarts"] == 1

    with_replicas(scenario, life=SLOW)
