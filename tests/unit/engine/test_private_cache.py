"""Where compiled code goes when the cache folder cannot be written.

A file stands where the folder should be, or the probe fails: permissions do not hold root back.
"""

import tempfile
import threading

import pytest

from hpcserve.engine import private_cache
from hpcserve.engine.kernel_cache import VARIABLES, kernel_folder

ARCH = "9.0a"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("HPCSERVE_CACHE_DIR", str(tmp_path / "cache"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(
        private_cache._log, "warning", lambda text, *args: lines.append(text % args)
    )
    return lines


def read_only(monkeypatch, folder):
    """A file system that is mounted read-only refuses every new file in `folder`."""
    real = tempfile.TemporaryFile

    def refuse(*args, dir=None, **kwargs):
        if dir == folder:
            raise OSError(30, "Read-only file system")
        return real(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def test_a_folder_that_can_be_written_is_taken(temporary, said):
    assert private_cache.writable_kernel_folder(ARCH) == kernel_folder(ARCH)
    assert list(kernel_folder(ARCH).iterdir()) == []
    assert said == []


def test_a_folder_that_cannot_be_made(temporary, tmp_path, said):
    (tmp_path / "cache").write_text("")
    folder = private_cache.writable_kernel_folder(ARCH)
    assert folder.name == kernel_folder(ARCH).name
    assert folder.parent.parent == temporary
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    (folder / "triton").mkdir()
    [line] = said
    assert "Not a directory" in line and str(folder) in line and "HPCSERVE_CACHE_DIR" in line
    assert private_cache.writable_kernel_folder(ARCH) == folder


def test_nothing_is_said_where_the_user_chose_every_folder(temporary, tmp_path, said, monkeypatch):
    (tmp_path / "cache").write_text("")
    for name in VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / "mine"))
    assert private_cache.writable_kernel_folder(ARCH) == kernel_folder(ARCH)
    assert said == []


def test_what_a_read_only_folder_holds_is_used(temporary, monkeypatch):
    shared = kernel_folder(ARCH)
    (shared / "triton" / "ab").mkdir(parents=True)
    (shared / "triton" / "ab" / "kernel.cubin").write_bytes(b"x" * 100_000)
    (shared / "flashinfer" / "aot" / "fa2").mkdir(parents=True)
    read_only(monkeypatch, shared)
    threads = [
        threading.Thread(target=private_cache.writable_kernel_folder, args=(ARCH,))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = private_cache.writable_kernel_folder(ARCH)
    assert own != shared
    assert (own / "triton" / "ab" / "kernel.cubin").read_bytes() == b"x" * 100_000
    assert (own / "flashinfer" / "aot" / "fa2").is_dir()
    assert {path.name for path in own.iterdir()} == {"triton", "flashinfer"}


@pytest.mark.parametrize("kind", ["open to others", "a link"])
def test_a_private_folder_that_somebody_else_could_fill_is_not_used(temporary, tmp_path, kind):
    (tmp_path / "cache").write_text("")
    usual = private_cache.writable_kernel_folder(ARCH).parent
    if kind == "a link":
        usual.rename(tmp_path / "elsewhere")
        usual.symlink_to(tmp_path / "elsewhere")
    else:
        usual.chmod(0o777)
    assert private_cache.writable_kernel_folder(ARCH).parent != usual
