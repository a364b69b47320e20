"""A server as a SLURM job, from the login node to the answer."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_submit_wait_ask_and_cancel_on_two_nodes(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2", "-J", "chat")
    job.wait()
    assert job.ask()[0] == 200
    assert job.ask(key=False)[0] == 401
    assert stat.S_IMODE((job.run_dir / "api_key").stat().st_mode) == 0o600
    endpoint = json.loads(job.hpc("endpoint", "--json").stdout)
    assert endpoint["state"] == "ready"
    assert endpoint["restart_count"] == 0
    exported = job.hpc("endpoint", "--env").stdout
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'{exported}curl -sf -H "Authorization: Bearer $OPENAI_API_KEY" '
            '"$OPENAI_BASE_URL/models"',
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "fake" in done.stdout
    listed = json.loads(site.hpc("ps", "--json").stdout)
    assert [one["state"] for one in listed if one["name"] == "chat"] == ["ready"]
    where = site.hpc("exec", "chat", "--all-nodes", "--", "printenv", "SLURMD_NODENAME")
    assert sorted(where.stdout.split()) == ["n1", "n2"]
    ranks = {n: job.hpc("logs", "--rank", str(n)).stdout for n in (0, 1)}
    assert "--node-rank 0" in ranks[0]
    assert "--node-rank 1" in ranks[1]
    site.hpc("cancel", "chat")
    assert job.until("finished")["cause"].startswith("cancelled")
    assert "has ended: cancelled" in job.hpc("wait", check=False).stderr
    job.eventually(lambda: site.squeue(job.job_id) == "CANCELLED", "SLURM's word on it")


def test_head_binds_before_it_publishes_and_other_ranks_read_it(site):
    job = site.submit("--nodes", "2", "--tp", "2")
    job.wait()
    meet = job.read("rendezvous.json")
    assert stat.S_IMODE((job.run_dir / "rendezvous.json").stat().st_mode) == 0o600
    assert f"--dist-init-addr 127.0.0.1:{meet['port']}" in job.hpc("logs", "--rank", "1").stdout
    assert job.read("nodes/rank-1.json")["host"] == "n2"


def test_job_is_named_by_id_name_and_run_directory(site):
    job = site.submit("-J", "by name")
    job.wait()
    for reference in (job.job_id, "by name", str(job.run_dir)):
        said = json.loads(site.hpc("status", reference, "--json").stdout)
        assert (said["job_id"], said["state"]) == (job.job_id, "ready")
    missing = site.hpc("status", "no such job", check=False)
    assert missing.returncode == 2
    assert "no job" in missing.stderr


def test_array_gives_independent_servers(site, nothing_left):
    job = site.submit("--replicas", "2", "-J", "pair")
    tasks = [f"{job.job_id}_{task}" for task in (0, 1)]
    assert len(job.wait().splitlines()) == 2
    records = json.loads(site.hpc("endpoint", "pair", "--json").stdout)
    assert len({one["port"] for one in records}) == 2
    assert len({Path(one["api_key_file"]).read_text() for one in records}) == 1
    said = job.status()
    assert (said["state"], said["message"]) == ("ready", "2 of 2 servers are ready")
    assert [one["job_id"] for one in said["tasks"]] == tasks
    refused = site.hpc("endpoint", "pair", "--env", check=False)
    assert refused.returncode == 1
    assert f"array of 2 servers; name one of them: {', '.join(tasks)}" in refused.stderr
    assert str(records[0]["port"]) in site.hpc("endpoint", tasks[0], "--env").stdout
    assert "1 rank-0 | fake engine" in job.hpc("logs").stdout
    site.hpc("cancel", tasks[0])
    site.job(tasks[0]).until("finished")
    assert site.job(tasks[1]).status()["state"] == "ready"
    assert job.status()["message"] == "1 of 2 servers are ready"
    assert json.loads(job.hpc("endpoint", "--json").stdout)[0]["port"] == records[1]["port"]
    job.hpc("cancel")
    job.until("finished")


def test_one_address_in_front_of_an_array(site, nothing_left):
    job = site.submit("--replicas", "2", "-J", "pair")
    job.wait()
    key = (job.run_dir / "api_key").read_text().strip()

    def answers(url):
        request = urllib.request.Request(
            f"{url}/models", headers={"Authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return "fake" in answer.read().decode()

    words = [sys.executable, "-m", "hpcserve", "route", "pair", "--port", "0"]
    with subprocess.Popen(words, env=site.env(), stdout=subprocess.PIPE, text=True) as route:
        try:
            url = route.stdout.readline().strip()
            assert all(answers(url) for _ in range(4))
            site.hpc("cancel", f"{job.job_id}_0")
            site.job(f"{job.job_id}_0").until("finished")
            assert all(answers(url) for _ in range(4))
        finally:
            route.send_signal(signal.SIGINT)
        assert route.wait(60) == 0


def test_two_servers_share_a_node(site):
    jobs = [site.submit("--nodelist", "n1") for _ in range(2)]
    for job in jobs:
        job.wait()
        assert job.ask()[0] == 200
    assert len({job.read("endpoint.json")["port"] for job in jobs}) == 2


def test_plain_sbatch_with_the_shipped_script(site, tmp_path):
    env = site.env(
        HPCSERVE_ENGINE_COMMAND=f"{sys.executable} -m hpcserve.launcher.testing.fake_server"
    )
    env = site.with_command({**env, "HPCSERVE_IFNAME": "lo"})
    done = subprocess.run(
        [
            "sbatch",
            "--parsable",
            "--time=5",
            "--gpus-per-node=8",
            ROOT / "sbatch/serve.sbatch",
            "--model",
            "a b's $x",
            "--tp",
            "16",
            "--host",
            "127.0.0.1",
        ],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    job_id = done.stdout.strip()
    deadline = time.monotonic() + 60
    while site.hpc("status", job_id, check=False).returncode == 2 and time.monotonic() < deadline:
        time.sleep(0.3)
    site.hpc("wait", job_id, "--timeout", "60")
    said = json.loads(site.hpc("endpoint", job_id, "--json").stdout)
    assert said["state"] == "ready"
    assert "--model a b's $x --tp 16" in site.hpc("logs", job_id, "--rank", "1").stdout
    assert "ready at" in site.hpc("logs", job_id).stdout  # sbatch's own log file


def test_names_with_spaces_quotes_and_dollars_survive(site):
    model = site.home / 'it\'s a "model" $HOME'
    model.mkdir()
    job = site.submit("-J", 'it\'s "$HOME"', "--comment", "a $b 'c'", model=str(model))
    job.wait()
    assert str(model) in job.hpc("logs", "--rank", "0").stdout
    assert job.status()["name"] == 'it\'s "$HOME"'
    assert "Comment=a $b 'c'" in site.slurm.run("scontrol", "show", "job", job.job_id)


def test_slurm_variables_of_an_outer_job_do_not_leak(site):
    leaking = {"SLURM_NODEID": "7", "SLURM_NTASKS_PER_NODE": "9", "SBATCH_TIMELIMIT": "7"}
    job = site.submit(env=leaking)
    job.wait()
    shown = site.slurm.run("scontrol", "show", "job", job.job_id)
    assert "TimeLimit=00:10:00" in shown  # the command line wins over SBATCH_TIMELIMIT
    assert "NumTasks=1" in shown


def test_uneven_gpus_are_refused_by_the_node_that_lacks_them(site):
    (site.home / "cluster.yaml").write_text(
        (site.home / "cluster.yaml").read_text().replace("gpu-request: none\ndevice: cpu\n", "")
    )
    job = site.submit("--nodes", "2", "--tp", "8", "--gres", "none", "--sbatch", "gpus=5")
    failed = job.hpc("wait", "--timeout", "60", check=False)
    assert failed.returncode == 1
    assert "GPUs" in failed.stderr
    assert "--gpus-per-node" in failed.stderr
