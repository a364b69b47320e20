"""How far a run is, from its files: the same from any node, while it runs or later."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from hpcserve.batch import journal
from hpcserve.batch.ledger import summarize
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.progress import duration, worker_line
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verbs import manifest_of
from hpcserve.batch.worker_status import WorkerStatus, read_all

_SUMS = (
    *("num_ok", "num_failed", "num_quarantined"),
    *("num_prompt_tokens", "num_output_tokens", "num_cached_tokens"),
)


def of_run(run_dir: RunDir) -> dict[str, Any]:
    """state: complete, running, cancelled or resumable; counts of rows that are kept; workers.

    Raises InputError where there is no such run.
    """
    manifest = manifest_of(run_dir)
    counts, errors = _counts(run_dir, manifest)
    workers = read_all(run_dir)
    alive = [one for one in workers if one.is_alive]
    num_done = counts["num_ok"] + counts["num_failed"]
    speed = sum(one.num_rows / one.wall_s for one in alive)
    left_s = (manifest.num_rows - num_done) / speed if speed else None
    return {
        "run": str(run_dir.path),
        "output": manifest.output,
        "state": _state(run_dir, manifest, alive),
        "num_rows": manifest.num_rows,
        "num_finished": num_done,
        **counts,
        "errors": dict(errors),
        "num_shards": len(manifest.shards),
        "num_shards_committed": len(run_dir.committed()),
        "rows_per_s": speed,
        "output_tokens_per_s": sum(one.num_output_tokens / one.wall_s for one in alive),
        "prompt_tokens_per_s": sum(one.num_prompt_tokens / one.wall_s for one in alive),
        "cache_hit_rate": counts["num_cached_tokens"] / max(counts["num_prompt_tokens"], 1),
        "seconds_left": left_s if num_done < manifest.num_rows else 0.0,
        "workers": [{**msgspec.to_builtins(one), "alive": one in alive} for one in workers],
    }


def as_text(found: dict[str, Any]) -> str:
    """For people."""
    share = found["num_finished"] / max(found["num_rows"], 1)
    lines = [
        f"{found['run']}: {found['state']}",
        f"rows      {found['num_finished']:,} of {found['num_rows']:,} ({share:.1%}), "
        f"{found['num_failed']:,} failed",
        f"shards    {found['num_shards_committed']:,} of {found['num_shards']:,} committed",
        f"tokens    {found['num_prompt_tokens']:,} in ({found['cache_hit_rate']:.0%} cached), "
        f"{found['num_output_tokens']:,} out",
    ]
    lines += [f"  {code}: {count:,}" for code, count in found["errors"].items()]
    if found["rows_per_s"]:
        lines.append(
            f"speed     {found['rows_per_s']:,.1f} rows/s, {found['prompt_tokens_per_s']:,.0f} "
            f"tokens/s in, {found['output_tokens_per_s']:,.0f} out"
        )
    if found["seconds_left"]:
        lines.append(f"time left {duration(found['seconds_left'])}")
    for one in found["workers"]:
        word = "runs" if one["alive"] else "ended" if one["ended"] else "gone"
        lines.append(f"  {word:5} {worker_line(msgspec.convert(one, WorkerStatus, strict=False))}")
    return "\n".join(lines)


def _counts(run_dir: RunDir, manifest: Manifest) -> tuple[dict[str, int], Counter[str]]:
    """Of finished shards by their summaries, of others by their journals."""
    counts = dict.fromkeys(_SUMS, 0)
    errors: Counter[str] = Counter()
    committed = run_dir.committed()
    for number in committed:
        summary = _summary(run_dir.shard(number), manifest, number)
        for name in _SUMS:
            counts[name] += summary.get(name, 0)
        errors.update(summary.get("errors", {}))
    in_work = {int(path.name.split(".")[0]) for path in run_dir.journals.glob("[0-9]*")}
    for number in in_work - committed:
        _add_journals(run_dir, manifest, number, counts, errors)
    return counts, errors


def _summary(path: Path, manifest: Manifest, number: int) -> dict[str, Any]:
    first = next(journal.records(path, manifest.run_id_bytes, number), None)
    if first is None or first.status != journal.SUMMARY:
        return {}
    found: dict[str, Any] = msgspec.json.decode(first.payload)
    return found


def _add_journals(
    run_dir: RunDir, manifest: Manifest, number: int, counts: dict[str, int], errors: Counter[str]
) -> None:
    rows: dict[int, journal.RowRecord] = {}
    for path in run_dir.journals_of(number):
        for record in journal.records(path, manifest.run_id_bytes, number):
            if record.status != journal.CUT_SHORT:
                rows.setdefault(record.row, record)
    summary = summarize(iter(rows.values()))
    for name in _SUMS:
        counts[name] += summary[name]
    errors.update(summary["errors"])


def _state(run_dir: RunDir, manifest: Manifest, alive: list[WorkerStatus]) -> str:
    if run_dir.report.exists() and Path(manifest.output).exists():
        return "complete"
    if run_dir.cancelled.exists():
        return "cancelled"
    return "running" if alive else "resumable"
