from hpcserve.errors import EngineError


def test_folder_and_files_pass_through(serve, monkeypatch, tmp_path):
    async def scenario(served):
        asked = []

        async def start(folder):
            asked.append(folder)

        async def stop():
            return [f"{asked[-1]}/a.trace.json.gz"]

        monkeypatch.setattr(served.client, "start_profile", start)
        monkeypatch.setattr(served.client, "stop_profile", stop)
        await served.post("/start_profile", {"output_dir": str(tmp_path)})
        assert await served.post("/stop_profile", {}) == {"files": [f"{tmp_path}/a.trace.json.gz"]}
        monkeypatch.setenv("HPCSERVE_STATE_DIR", str(tmp_path / "state"))
        assert (await served.http.post("/start_profile")).json() == {
            "output_dir": str(tmp_path / "state" / "profiles")
        }

    serve(scenario)


def test_a_refusal_is_an_answer(serve, monkeypatch):
    async def scenario(served):
        async def stop():
            raise EngineError("stop_profile: no profile is being taken")

        monkeypatch.setattr(served.client, "stop_profile", stop)
        answer = await served.post("/stop_profile", {}, expect=503)
        assert "no profile" in answer["error"]["message"]

    serve(scenario)
