"""What a run is: its rows and what they are asked. Kept in the run directory; never changes."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpcserve._version import __version__
from hpcserve.batch.durable import publish, storage, temporary_name, write_file
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.scan import Scan, Shard, scan_inputs, sha256_of, stat_of
from hpcserve.errors import InputError, OutputError

VERSION = 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """content: what answers depend on, part by part (model, template, sampling, ...): a run goes
    on only with the same. Where the engine runs, and on how much, is no part of it.

    output: where the answers go.  argv, cwd: the command that began the run.
    """

    version: int = VERSION
    run_id: str
    hpcserve: str = __version__
    created_s: float
    scan: Scan
    span_rows: int
    content: dict[str, dict[str, Any]]
    output: str
    errors: str = "inline"
    ordered: bool = True
    argv: list[str] = []
    cwd: str = ""

    @property
    def shards(self) -> list[Shard]:
        return self.scan.shards

    @property
    def num_rows(self) -> int:
        last = self.scan.shards[-1]
        return last.first + last.span.num_rows

    @property
    def run_id_bytes(self) -> bytes:
        return bytes.fromhex(self.run_id)

    @property
    def id_column(self) -> str | None:
        given = self.content["columns"].get("id_column")
        return None if given is None else str(given)

    def input_files(self) -> list[InputFile]:
        return [InputFile(Path(one.path), one.format) for one in self.scan.files]


def new_manifest(
    inputs: Sequence[InputFile],
    content: Mapping[str, Mapping[str, Any]],
    *,
    span_rows: int,
    output: Path,
    errors: str,
    ordered: bool,
    argv: Sequence[str],
) -> Manifest:
    """Scan the inputs and describe the run. Raises InputError."""
    return Manifest(
        run_id=secrets.token_hex(16),
        created_s=time.time(),
        scan=scan_inputs(inputs, span_rows=span_rows, id_column=content["columns"]["id_column"]),
        span_rows=span_rows,
        content=plain(content),
        output=str(output.absolute()),
        errors=errors,
        ordered=ordered,
        argv=list(argv),
        cwd=str(Path.cwd()),
    )


def plain(content: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """As it comes back from JSON, so that what was read can be compared with what is new."""
    found: dict[str, dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(content))
    return found


def load(path: Path) -> Manifest | None:
    """None where there is none. Raises OutputError for one that cannot be understood."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise OutputError(f"{path} is no manifest of a batch run: {error}") from error
    if found.version != VERSION:
        raise OutputError(f"{path} was written by hpcserve {found.hpcserve}: use that, or --fresh")
    return found


def store(manifest: Manifest, path: Path) -> Manifest:
    """Write it once; returns the one that counts, where another process was quicker."""
    with storage(path):
        temporary = temporary_name(path)
        write_file(temporary, [msgspec.json.encode(manifest)])
        if publish(temporary, path):
            return manifest
    return load(path) or manifest


def moved(manifest: Manifest, output: Path) -> Manifest:
    """The same run, whose output is called `output` now: inputs that are no longer where they were
    are looked for as far from it as they were then."""
    old = Path(manifest.output)
    if output == old:
        return manifest
    files = []
    for facts in manifest.scan.files:
        now = Path(os.path.normpath(output.parent / os.path.relpath(facts.path, old.parent)))
        is_moved = now.exists() and not Path(facts.path).exists()
        files.append(msgspec.structs.replace(facts, path=str(now)) if is_moved else facts)
    scan = msgspec.structs.replace(manifest.scan, files=files)
    return msgspec.structs.replace(manifest, scan=scan, output=str(output))


def located(manifest: Manifest, inputs: Sequence[InputFile]) -> Manifest:
    """The same run, with its input files where they are now: they may have been moved."""
    files = [
        msgspec.structs.replace(facts, path=str(now.path.absolute()))
        for facts, now in zip(manifest.scan.files, inputs, strict=True)
    ]
    scan = msgspec.structs.replace(manifest.scan, files=files)
    return msgspec.structs.replace(manifest, scan=scan)


def refuse_changes(
    old: Manifest, inputs: Sequence[InputFile], content: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise InputError that names what is no longer what the run began with."""
    changed = _changed_inputs(old, inputs)
    for part, now in plain(content).items():
        before = old.content.get(part, {})
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                changed.append(
                    f"{part}: {name} was {_shown(before.get(name))}, is {_shown(now.get(name))}"
                )
    if changed:
        raise InputError(
            f"the run for {old.output} was begun with other content, and its answers would not "
            f"fit: {'; '.join(changed)}. Restore it to go on, or pass --fresh to start over"
        )


def _changed_inputs(old: Manifest, inputs: Sequence[InputFile]) -> list[str]:
    before = old.scan.files
    if len(before) != len(inputs):
        return [f"input: {len(before)} files then, {len(inputs)} now"]
    changed = []
    for facts, now in zip(before, inputs, strict=True):
        if Path(facts.path).name != now.path.name or facts.format != now.format:
            changed.append(f"input: {facts.path} then, {now.path} now")
        elif (
            # Copied or touched: the bytes decide.
            stat_of(now.path) != (facts.size, facts.mtime_ns)
            and sha256_of(now.path) != facts.sha256
        ):
            changed.append(f"input: the content of {now.path} is another")
    return changed


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode() if value is not None else "not set"
    return text if len(text) <= 60 else f"{text[:40]}... ({digest_of(text)[:8]})"


def digest_of(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()
