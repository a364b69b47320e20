"""The real engine and its bundled model on SLURM: what the README's section says, as it says it."""

from __future__ import annotations

import json
import subprocess

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def real(site):
    """A cluster file without the stand-in."""
    (site.home / "cluster.yaml").write_text(
        "gpu-request: none\ndevice: cpu\nifname: lo\ncpu-threads: 1\n"
    )


def test_submit_wait_curl_logs_cancel(site, nothing_left):
    real(site)
    job = site.submit("-J", "tiny", model="", env=ONE_THREAD)
    job.wait(timeout=100)
    exported = job.hpc("endpoint", "--env").stdout
    question = {
        "model": "tiny_chat",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    }
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'{exported}curl -sf -H "Authorization: Bearer $OPENAI_API_KEY" '
            f"-H 'Content-Type: application/json' \"$OPENAI_BASE_URL/chat/completions\" -d @-",
        ],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert "hpcserve serves" in job.hpc("logs", "--rank", "0").stdout
    job.hpc("cancel")
    assert job.until("finished")["cause"].startswith("cancelled")


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
    site.hpc("wait", done.stdout.split()[1], "--timeout", "100")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == 5
    assert all(line["error"] is None for line in lines)


def test_a_layout_that_the_engine_cannot_run_is_refused_by_name(site, nothing_left):
    real(site)
    job = site.submit("--nodes", "2", "--tp", "2", model="", env=ONE_THREAD)
    failed = job.hpc("wait", "--timeout", "100", check=False)
    assert failed.returncode == 1
    assert "2 GPUs are asked for" in failed.stderr
