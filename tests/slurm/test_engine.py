"""The real engine and its bundled model on SLURM: what the README's section says, as it says it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from hpcserve.demo import tiny_chat_path

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def real(site):
    """A cluster file without the stand-in."""
    (site.home / "cluster.yaml").write_text(
        "gpu-request: none\ndevice: cpu\nifname: lo\ncpu-threads: 1\n"
    )


def ask(job, question):
    """The answer's text, through curl as a user would."""
    exported = job.hpc("endpoint", "--env").stdout
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'{exported}curl -sf -H "Authorization: Bearer $OPENAI_API_KEY" '
            f"-H 'Content-Type: application/json' \"$OPENAI_BASE_URL/chat/completions\" -d @-",
        ],
        input=json.dumps(
            {
                "model": "tiny_chat",
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
            }
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, job.story()
    return json.loads(done.stdout)["choices"][0]["message"]["content"]


@contextlib.contextmanager
def stream(job, seconds):
    """The lines of an answer that takes about so long on this machine."""
    begun = time.monotonic()
    assert job.ask("/completions", max_tokens=20, ignore_eos=True)[0] == 200
    num_tokens = min(800, max(30, int(20 * seconds / (time.monotonic() - begun))))
    key = (job.run_dir / "api_key").read_text().strip()
    content = {"prompt": "Count:", "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"{job.read('endpoint.json')['url']}/completions",
        data=json.dumps({"model": "default", **content}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=100) as answer:
        yield io.TextIOWrapper(answer, encoding="utf-8")


def commands_of_readme():
    """The commands of the README's SLURM section, one each."""
    section = (ROOT / "README.md").read_text().partition("as a SLURM job**")[2]
    return section.partition("```bash\n")[2].partition("```")[0].splitlines()


def test_the_readme_as_written(site, nothing_left):
    real(site)
    env = site.with_command(site.env(HPCSERVE_HOST="127.0.0.1", **ONE_THREAD))
    submit, *rest = commands_of_readme()
    assert submit.startswith("hpcserve submit")
    verbs = [line.split()[1] for line in rest if line.startswith("hpcserve")]
    assert verbs == ["wait", "logs", "cancel"]

    def run(lines, job_id=""):
        text = "\n".join(lines).replace("JOB", job_id)
        words = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    said = run([submit.replace("/models/Llama-3.1-8B-Instruct", str(tiny_chat_path()))])
    job_id = re.search(r"^job (\d+) ", said)[1]
    said = run(rest, job_id)
    assert '"object":"list"' in said.replace(" ", "")  # what curl got
    assert "ready at" in said  # the logs
    assert site.job(job_id).until("finished")["cause"].startswith("cancelled")


def test_batch_to_a_finished_file(site, nothing_left):
    real(site)
    rows = site.home / "questions.jsonl"
    rows.write_text('{"prompt": "What is the capital of Italy?"}\n' * 5)
    answers = site.home / "answers.jsonl"
    done = site.hpc(
        *("batch", str(rows), "-o", str(answers), "--launcher", "slurm", "--time", "10"),
        *("--max-tokens", "8"),
        env=ONE_THREAD,
    )
    site.hpc("wait", done.stdout.split()[1], "--timeout", "200")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == 5
    assert all(line["error"] is None for line in lines)


#: Python imports this first: the machine's own name means 127.0.1.1, as on many Debian hosts.
MISLEADING_NAME = """
import socket
ours, ask = socket.gethostname(), socket.getaddrinfo
def lie(host, *words, **more):
    return ask("127.0.1.1" if host == ours else host, *words, **more)
socket.getaddrinfo = lie
socket.gethostbyname = lambda host: lie(host, None)[0][4][0]
"""


def test_tp_over_two_nodes_where_the_host_name_misleads(site, nothing_left):
    real(site)
    (site.home / "misled").mkdir()
    (site.home / "misled" / "sitecustomize.py").write_text(MISLEADING_NAME)
    env = {**ONE_THREAD, "PYTHONPATH": f"{site.home}/misled:{ROOT}"}
    job = site.submit("--nodes", "2", "--tp", "2", "--drain", "30", model="", env=env)
    job.wait(timeout=200)
    assert "is 127.0.1.1" in job.hpc("logs", "--rank", "1").stdout  # told, and not relied on
    assert job.status()["nodes"] == ["n1", "n2"]
    assert "Paris" in ask(job, "What is the capital of France?")
    with stream(job, seconds=4.0) as answer:
        assert answer.readline().startswith("data: ")  # it runs
        site.slurm.run("scancel", job.job_id)  # sends SIGTERM to every process of the job
        *_, last, end = (line for line in answer if line.strip())
    assert (json.loads(last[6:])["choices"][0]["finish_reason"], end) == (
        "length",
        "data: [DONE]\n",
    )
    assert job.until("finished")["cause"].startswith("cancelled")


def test_a_layout_that_the_model_cannot_have_is_refused_by_name(site, nothing_left):
    real(site)
    job = site.submit("--nodes", "3", "--tp", "3", model="", env=ONE_THREAD)
    failed = job.hpc("wait", "--timeout", "200", check=False)
    assert failed.returncode == 1
    assert "tp_size 3" in failed.stderr or "--tp" in failed.stderr, failed.stderr


def test_near_its_end_a_server_refuses_what_it_could_not_finish(site, nothing_left):
    real(site)
    job = site.submit(model="", env=ONE_THREAD)
    job.wait(timeout=200)
    ask(job, "What is the capital of France?")  # measures how fast it is
    deadline = job.read("deadline.json")
    assert deadline["end_time"] - deadline["finish_by"] == pytest.approx(15, abs=0.1)
    assert 400 < deadline["end_time"] - time.time() < 600
    # As if the end were near: the supervisor writes this file only when SLURM's end changes.
    (job.run_dir / "deadline.json").write_text(json.dumps({"finish_by": time.time() + 4}))
    time.sleep(2.5)  # it is read again every two seconds
    status, body = job.ask("/completions", max_tokens=1500, ignore_eos=True)
    assert status == 503
    assert "out_of_time" in body
    assert "job ends in" in body


def test_batch_across_a_requeue(site, nothing_left):
    """Warned in the middle it stops with what it has, goes on in its next run, and loses no row."""
    real(site)
    num_rows = 40
    rows, answers = site.home / "questions.jsonl", site.home / "answers.jsonl"
    rows.write_text("".join(f'{{"prompt": "Count to {number}:"}}\n' for number in range(num_rows)))
    done = site.hpc(
        *("batch", str(rows), "-o", str(answers), "--launcher", "slurm", "--time", "10"),
        *("--continue-with", "requeue", "--drain", "6", "--max-running-requests", "2"),
        *("--max-tokens", "80", "--sampling", "ignore_eos=true"),
        env=ONE_THREAD,
    )
    job = site.job(done.stdout.split()[1])

    def num_finished():
        said = site.hpc("batch", "status", str(answers), "--json", check=False).stdout
        return json.loads(said)["num_finished"] if said else 0

    job.eventually(lambda: num_finished() > 0, "a finished row", 200.0)
    site.slurm.run("scancel", "--batch", "--signal=USR1", job.job_id)
    site.slurm.release(job.job_id)
    assert 0 < num_finished() < num_rows
    job.wait(timeout=200)
    assert job.status()["restart_count"] == 1
    site.hpc("batch", "verify", str(answers))
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == num_rows
    assert all(line["error"] is None for line in lines)
