from pathlib import Path

import pytest

from hpcserve.errors import EngineError


@pytest.fixture
def asked(monkeypatch):
    """The folders that the engine was asked to write to."""
    found = []

    async def start(_, folder):
        found.append(folder)

    async def stop(_):
        return [f"{found[-1]}/a.trace.json.gz"]

    monkeypatch.setattr("hpcserve.engine.client.EngineClient.start_profile", start)
    monkeypatch.setattr("hpcserve.engine.client.EngineClient.stop_profile", stop)
    return found


def test_folder_and_files_pass_through(serve, tmp_path, asked):
    root = tmp_path / "profiles"

    async def scenario(served):
        assert (await served.http.post("/start_profile")).json() == {"output_dir": str(root)}
        for given, folder in [
            ("run1", root / "run1"),
            ("a/../run2", root / "run2"),
            (str(root / "run3"), root / "run3"),
            (str(root), root),
        ]:
            answer = await served.post("/start_profile", {"output_dir": given})
            assert answer == {"output_dir": str(folder)}
            assert asked[-1] == str(folder)
        files = await served.post("/stop_profile", {})
        assert files == {"files": [f"{root}/a.trace.json.gz"]}

    serve(scenario, server={"profile_dir": str(root)})


def test_no_client_leads_out_of_the_folder(serve, tmp_path, asked):
    root = tmp_path / "profiles"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")

    async def scenario(served):
        for given in (
            *("..", "../other", "a/../../other", "/", "/etc", str(tmp_path)),
            *(f"{root}-beside", f"{root}/../other", "link", "link/inner", "a\0b", "~/x/../../.."),
        ):
            answer = await served.post("/start_profile", {"output_dir": given}, expect=400)
            assert answer["error"]["param"] == "output_dir"
        assert asked == []

    serve(scenario, server={"profile_dir": str(root)})


def test_without_a_folder_of_the_operators_there_is_no_profile(serve, tmp_path, asked):
    async def scenario(served):
        for body in ({}, {"output_dir": str(tmp_path)}):
            answer = await served.post("/start_profile", body, expect=403)
            assert "--profile-dir" in answer["error"]["message"]
        assert asked == []

    serve(scenario)


def test_a_folder_behind_a_link_is_where_the_link_leads(serve, tmp_path, asked):
    (tmp_path / "real").mkdir()
    (tmp_path / "named").symlink_to(tmp_path / "real")

    async def scenario(served):
        await served.post("/start_profile", {"output_dir": str(tmp_path / "named" / "a")})
        assert asked == [str(Path(tmp_path / "real" / "a").resolve())]

    serve(scenario, server={"profile_dir": str(tmp_path / "named")})


def test_a_refusal_is_an_answer(serve, monkeypatch):
    async def scenario(served):
        async def stop():
            raise EngineError("stop_profile: no profile is being taken")

        monkeypatch.setattr(served.client, "stop_profile", stop)
        answer = await served.post("/stop_profile", {}, expect=503)
        assert "no profile" in answer["error"]["message"]

    serve(scenario)
