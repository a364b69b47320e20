"""The cache of compiled code, over a made-up flashinfer."""

import importlib.metadata
import re
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from hpcserve import registry
from hpcserve.cli.main import main
from hpcserve.engine import attention_choice, flashinfer_modules, kernel_build, kernel_cache
from hpcserve.errors import ConfigError, EngineError, OutputError

HEADS = {"head_dim": 128, "dtype": torch.bfloat16, "hopper": True}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An installation with a flashinfer package of files alone, and a cache folder."""
    package = tmp_path / "site" / "flashinfer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("HPCSERVE_CACHE_DIR", str(tmp_path / "cache"))
    for name in (*kernel_cache.VARIABLES, "FLASHINFER_CUDA_ARCH_LIST", "MAX_JOBS"):
        # Set before it is deleted, so that what the tests set is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    versions = {"flashinfer-python": "0.6.15", "torch": "2.11.0", "triton": "3.6.0"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    return SimpleNamespace(root=tmp_path, bundled=package / "data" / "aot")


def write(folder, name):
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}.so").write_bytes(name.encode())


def test_folders_are_named_by_what_code_depends_on(place, monkeypatch):
    hopper = kernel_cache.kernel_folder("9.0a")
    assert hopper.parent == place.root / "cache" / "kernels"
    assert "torch-2.11.0" in hopper.name and "flashinfer-0.6.15" in hopper.name
    assert len({hopper, kernel_cache.kernel_folder("8.0"), kernel_cache.kernel_folder(None)}) == 3
    monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9")
    assert kernel_cache.kernel_folder("9.0a") != hopper


def test_every_compiler_is_told_but_the_user_first(place):
    environment = {"TRITON_CACHE_DIR": "/mine"}
    folder = kernel_cache.use_kernel_folder("9.0a", environment)
    kernel_cache.use_driver_cache(environment)
    assert environment == {
        "TRITON_CACHE_DIR": "/mine",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "FLASHINFER_WORKSPACE_BASE": str(folder / "flashinfer"),
        "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
        "CUDA_CACHE_PATH": str(place.root / "cache" / "kernels" / "cuda"),
    }


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 0), "8.0"), ((9, 0), "9.0a"), ((10, 0), "10.0a")]
)
def test_arch(capability, arch):
    assert kernel_cache.gpu_arch(capability) == arch


def test_modules_are_found_wherever_flashinfer_looks(place, monkeypatch):
    kernel_cache.use_kernel_folder("9.0a")
    fa2, fa3 = needed = flashinfer_modules.needed_modules(**HEADS)
    assert fa3 == f"{fa2}_sm90"

    def missing():
        return flashinfer_modules.missing_modules(needed, flashinfer_modules.module_folders())

    assert missing() == needed
    write(place.bundled, fa2)
    assert missing() == [fa3]
    assert flashinfer_modules.jit_folder().parts[-3:] == ("0.6.15", "90a", "cached_ops")
    write(flashinfer_modules.jit_folder(), fa3)
    assert missing() == []
    # Once there is a folder of our own, flashinfer is told to look there instead of in its own.
    write(flashinfer_modules.own_aot_folder(), "page")
    assert missing() == [fa2]
    env = SimpleNamespace(FLASHINFER_AOT_DIR=place.bundled)
    flashinfer_modules.use_own_aot_folder(env)
    assert flashinfer_modules.own_aot_folder() == env.FLASHINFER_AOT_DIR


def test_shapes_without_modules():
    assert flashinfer_modules.needed_modules(**{**HEADS, "dtype": torch.float32}) == []
    assert flashinfer_modules.needed_modules(**{**HEADS, "head_dim": 32}) == []
    assert len(flashinfer_modules.needed_modules(**{**HEADS, "head_dim": 256})) == 1
    assert len(flashinfer_modules.needed_modules(**{**HEADS, "hopper": False})) == 1


def test_auto_never_waits_for_a_compiler(place, monkeypatch):
    kernel_cache.use_kernel_folder("9.0a")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    loaded = []

    def load(name):
        loaded.append(name)
        caps = SimpleNamespace(
            devices={"cuda"}, page_sizes={16}, head_dims={128}, dtypes={torch.bfloat16}
        )
        return SimpleNamespace(caps=caps, name=name)

    monkeypatch.setattr(attention_choice, "_load", load)
    said = []
    monkeypatch.setattr(attention_choice._log, "info", lambda text, *args: said.append(text % args))
    shape = {"device": torch.device("cuda"), "page_size": 16, "head_dim": 128}

    def choose(name="auto"):
        return attention_choice.choose_attention(name, dtype=torch.bfloat16, **shape).name

    assert choose() == "triton"
    assert loaded == ["triton"]
    [line] = said
    assert "flashinfer is left out: 2 of its modules" in line
    assert "hpcserve kernels build" in line
    assert choose("flashinfer") == "flashinfer"
    for name in flashinfer_modules.needed_modules(**HEADS):
        write(place.bundled, name)
    assert choose() == "flashinfer"


@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name 'fast_decode_plan'"),
        RuntimeError("flashinfer-jit-cache version (1) does not match flashinfer version (2)"),
        PermissionError("flashinfer_jit.log"),
    ],
)
def test_a_flashinfer_that_cannot_be_loaded_is_left_out(place, monkeypatch, error):
    kernel_cache.use_kernel_folder("9.0a")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for name in flashinfer_modules.needed_modules(**HEADS):
        write(place.bundled, name)

    def load(name):
        if name == "flashinfer":
            raise error
        return registry.load("hpcserve.attention", name).EntryClass

    monkeypatch.setattr(attention_choice, "_load", load)

    def choose(name):
        return attention_choice.choose_attention(
            name, device=torch.device("cuda"), page_size=16, head_dim=128, dtype=torch.bfloat16
        )

    assert choose("auto").__name__ == "TritonAttention"
    with pytest.raises(ConfigError, match=re.escape(str(error))):
        choose("flashinfer")


def test_a_flashinfer_without_a_version_is_left_out(place, monkeypatch):
    """A checkout on the path, say: its folder of compiled modules has no name."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    chosen = attention_choice.choose_attention(
        "auto", device=torch.device("cuda"), page_size=16, head_dim=128, dtype=torch.bfloat16
    )
    assert chosen.__name__ == "TritonAttention"


class FakeJit(ModuleType):
    """Stands in for flashinfer.jit: its "compiler" writes the name into the library."""

    def __init__(self, root, fails=False):
        super().__init__("flashinfer.jit")
        self.root, self.fails, self.built = root, fails, []

    def gen_batch_prefill_module(self, backend, q, kv, o, idx, head_dim, head_dim_vo, *flags):
        assert (q, kv, o, idx) == (torch.bfloat16,) * 3 + (torch.int32,)
        assert flags == (0, False, False, False)
        name = flashinfer_modules.needed_modules(head_dim=head_dim, dtype=q, hopper=False)[0]
        name += "_sm90" if backend == "fa3" else ""
        return SimpleNamespace(name=name, jit_library_path=self.root / name / f"{name}.so")

    def build_jit_specs(self, specs, verbose):
        if self.fails:
            raise RuntimeError("Ninja build failed: nvcc is not there")
        for spec in specs:
            write(self.root, spec.name)
            self.built.append(spec.name)


def test_build_fills_one_folder(place, monkeypatch):
    fake = FakeJit(place.root / "jit")
    monkeypatch.setitem(sys.modules, "flashinfer.jit", fake)
    write(place.bundled, "page")
    said = []
    checkpoint = SimpleNamespace(head_dim=128)

    def build():
        return kernel_build.build_flashinfer(checkpoint, "bfloat16", "9.0a", said.append)

    folder = build()
    needed = flashinfer_modules.needed_modules(**HEADS)
    assert [path.stem for path in flashinfer_modules.installed(folder)] == [*needed, "page"]
    assert fake.built == needed
    assert build() == folder
    assert fake.built == needed  # nothing twice
    assert said[-1].endswith("0 of them new")
    listed = CliRunner().invoke(main, ["kernels", "list", "--arch", "9.0a"], standalone_mode=False)
    assert needed[0] in listed.output and "page" in listed.output
    where = CliRunner().invoke(main, ["kernels", "path", "--arch", "9.0a"], standalone_mode=False)
    assert where.output.strip() == str(kernel_cache.kernel_folder("9.0a"))


def test_a_compiler_that_fails(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer.jit", FakeJit(place.root / "jit", fails=True))
    with pytest.raises(EngineError, match="nvcc is not there"):
        kernel_build.build_flashinfer(
            SimpleNamespace(head_dim=128), "bfloat16", "9.0a", lambda _: None
        )


def test_installing_at_once_from_many_leaves_whole_files(tmp_path):
    write(tmp_path / "from", "page")
    library = tmp_path / "from" / "page" / "page.so"
    library.write_bytes(b"x" * 1_000_000)
    folder = tmp_path / "to"
    threads = [
        threading.Thread(target=flashinfer_modules.install, args=([library], folder))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in flashinfer_modules.installed(folder)] == [
        library.read_bytes()
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        flashinfer_modules.install([library], tmp_path / "file")
