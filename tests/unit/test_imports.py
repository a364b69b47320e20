"""Who may import whom, and that nothing light pulls in anything heavy."""

from __future__ import annotations

import ast
import json
import pkgutil
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpcserve

ROOT = Path(hpcserve.__file__).parent

#: Row 0: every package may import these.
GROUND = {
    "errors",
    "grammar",
    "envs",
    "log",
    "registry",
    "sampling_params",
    "outputs",
    "config",
    "_version",
}

#: engine/client.py is the door; beside it stand what it is opened with and what it hands out.
_DOOR = {"engine.client", "engine.model_folder", "engine.request_stream", "engine.supervisor"}

#: Package -> what it may import beside itself and the ground, as in docs/architecture.md.
#: A dotted name allows that module only.
MAY_IMPORT = {
    "errors": set(),
    "_version": set(),
    "ipc": set(),
    "tokenizer": set(),
    "launcher": set(),
    "protocol": {"tokenizer"},
    "distributed": {"ipc"},
    "ops": {"kernels"},
    "attention": {"ops", "distributed", "ipc.messages"},
    "kvcache": {"ops", "distributed", "ipc.messages"},
    "scheduler": {"kvcache", "ipc.messages", "ipc.lockstep"},
    "layers": {"attention.base", "ops", "distributed"},
    "models": {"layers", "attention.base", "ops", "distributed"},
    "weights": {"distributed"},
    "engine": {
        *("scheduler", "kvcache", "models", "layers", "attention", "weights", "ops"),
        *("distributed", "ipc", "tokenizer", "demo"),
    },
    "batch": {*_DOOR, "engine.lifeline", "protocol", "tokenizer", "ipc"},
    "server": {*_DOOR, "engine.process_age", "protocol", "tokenizer", "ipc"},
    "demo": set(),
    "bench": {"engine", "ipc"},
}

#: Importing these must not import torch, nor transformers: ∅T in docs/architecture.md.
TORCH_FREE = (
    *("cli", "server", "batch", "scheduler", "launcher", "ipc", "protocol", "tokenizer", "config"),
    *("errors", "grammar", "envs", "log", "registry", "sampling_params", "outputs"),
    *("engine.client", "kvcache.base", "kvcache.radix", "kvcache.no_reuse"),
    *("kvcache.page_allocator", "bench"),
)

#: Row 6, and what stands in for lower rows in tests: they may import everything.
FREE = {"cli", "__init__", "__main__", "fake_engine", "fake_worker", "testing"}

_LINKS = {"kernels", "sbatch", "configs"}


def _sources() -> list[Path]:
    found = sorted(ROOT.rglob("*.py"))
    return [path for path in found if path.relative_to(ROOT).parts[0] not in _LINKS]


def _package(module: str) -> str:
    return module.split(".")[0]


def _imports(path: Path) -> Iterator[str]:
    """hpcserve's modules that a file imports, at its top or inside a function; not for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _allowed(importer: str, imported: str) -> bool:
    if importer in FREE or _package(imported) in GROUND | {importer}:
        return True
    allowed = MAY_IMPORT[importer]
    return any(imported == name or imported.startswith(f"{name}.") for name in allowed)


def _violations(path: Path) -> list[str]:
    importer = path.relative_to(ROOT).with_suffix("").parts[0]
    if importer in GROUND - {"config"}:
        importer_rules = {"errors", "envs", "grammar", "sampling_params", "_version"}
    else:
        importer_rules = None
    found = []
    for name in _imports(path):
        if not name.startswith("hpcserve."):
            continue
        imported = name.removeprefix("hpcserve.")
        if importer_rules is not None:
            ok = _package(imported) in importer_rules
        else:
            ok = _allowed(importer, imported)
        if not ok:
            found.append(f"{path.relative_to(ROOT.parent)} imports {name}")
    return found


def test_lower_packages_never_import_upper_ones() -> None:
    assert [line for path in _sources() for line in _violations(path)] == []


def test_every_package_has_a_row_in_the_table() -> None:
    packages = {path.relative_to(ROOT).with_suffix("").parts[0] for path in _sources()}
    assert packages - GROUND - FREE - set(MAY_IMPORT) == set()


def test_the_rule_sees_imports_inside_functions(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from hpcserve.server import app\n", encoding="utf-8")
    assert list(_imports(path)) == ["hpcserve.server.app"]
    assert not _allowed("batch", "server.app")
    assert not _allowed("scheduler", "engine.core")
    assert not _allowed("layers", "attention.torch_sdpa")
    assert _allowed("layers", "attention.base.AttentionBackend")


def _torch_free_modules() -> list[str]:
    names = ["hpcserve"]
    for dotted in TORCH_FREE:
        path = ROOT.joinpath(*dotted.split("."))
        if path.is_dir():
            names.append(f"hpcserve.{dotted}")
            walked = pkgutil.walk_packages([str(path)], f"hpcserve.{dotted}.")
            names += [module.name for module in walked]
        elif path.with_suffix(".py").is_file():
            names.append(f"hpcserve.{dotted}")
    return names


def test_light_modules_leave_torch_and_transformers_alone() -> None:
    code = (
        "import importlib, json, sys\n"
        "found = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "    heavy = [n for n in ('torch', 'transformers') if n in sys.modules]\n"
        "    if heavy:\n"
        "        found[name] = heavy\n"
        "        break\n"
        "print(json.dumps(found))\n"
    )
    modules = _torch_free_modules()
    assert len(modules) > 30
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(modules)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize(
    "args",
    [["--help"], ["batch", "--help"], ["serve", "--help"], ["bench", "serving", "--help"]],
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from hpcserve.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'tokenizers', 'pyarrow', 'fastapi', 'rich', 'zmq',\n"
        "        'prometheus_client'}\n"
        "    print('heavy', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy []"


def test_help_answers_in_half_a_second() -> None:
    """User time, the best of five: a busy machine must not fail it, a slow import must."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run(
            [sys.executable, "-m", "hpcserve", "--help"], check=True, capture_output=True
        )
        times.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    assert min(times) < 0.5
