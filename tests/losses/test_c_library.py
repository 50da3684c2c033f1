"""Compiling and loading the C kernels: whose library is loaded, and what happens where none can be made."""

import ctypes
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from beyondpixel.losses import RMILoss
from beyondpixel.losses.ops.c import library

Batch = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BEYONDPIXEL_CACHE", str(folder))
    library.load_library.cache_clear()
    yield folder
    library.load_library.cache_clear()


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("kernels-*.so"))


def test_library_is_private_to_the_user_and_used_again(nothing_loaded: Path) -> None:
    assert library.load_library() is not None
    [file] = libraries(nothing_loaded)
    assert stat.S_IMODE(nothing_loaded.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o700
    before = file.stat().st_ino
    library.load_library.cache_clear()
    assert library.load_library() is not None
    assert file.stat().st_ino == before
    assert list(nothing_loaded.iterdir()) == [file]  # nothing half-written is left


@pytest.mark.parametrize("change", ["cut off", "without symbols", "writable by others", "a link"])
def test_library_that_cannot_be_trusted_is_compiled_again(
    nothing_loaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch:
        # compiled but not loaded: the system would not look again at a file of a name that is loaded
        patch.setattr(ctypes, "CDLL", Path)
        library.load_library()
    [file] = libraries(nothing_loaded)
    original = file.read_bytes()
    file.unlink()
    if change == "cut off":
        file.write_bytes(original[:1000])
    elif change == "without symbols":
        file.write_bytes(original.replace(b"regions_moments", b"regions_nothing"))
    elif change == "writable by others":
        file.write_bytes(b"not a library")
        file.chmod(0o666)
    else:
        elsewhere = tmp_path / "elsewhere.so"
        elsewhere.write_bytes(b"not a library")
        file.symlink_to(elsewhere)
    library.load_library.cache_clear()
    assert library.load_library() is not None
    assert file.stat().st_size == len(original)
    assert ctypes.CDLL(str(file)).regions_moments
    assert not file.is_symlink()


def test_folder_that_cannot_be_written_is_replaced_by_a_private_one(
    nothing_loaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    nothing_loaded.write_text("a file, where no folder can be made")
    folder = library.cache_folder()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.delenv("BEYONDPIXEL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(nothing_loaded))
    assert library.cache_folder().parent == tmp_path


def test_folder_that_is_there_stays_readable_but_is_not_for_others_to_write(nothing_loaded: Path) -> None:
    for mode, kept in ((0o755, 0o755), (0o777, 0o755), (0o775, 0o755), (0o700, 0o700)):
        nothing_loaded.mkdir(exist_ok=True)
        nothing_loaded.chmod(mode)
        assert library.cache_folder() == nothing_loaded
        assert stat.S_IMODE(nothing_loaded.stat().st_mode) == kept


def test_a_link_to_a_folder_is_that_folder(
    nothing_loaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_loaded.mkdir()
    (tmp_path / "link").symlink_to(nothing_loaded)
    monkeypatch.setenv("BEYONDPIXEL_CACHE", str(tmp_path / "link"))
    assert library.cache_folder() == nothing_loaded


def test_temporary_folder_is_gone_when_the_process_has_ended(nothing_loaded: Path, tmp_path: Path) -> None:
    nothing_loaded.write_text("a file, where no folder can be made")
    program = "from beyondpixel.losses.ops.c import library; print(library.load_library())"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "kernels-" in ended.stdout
    assert list(tmp_path.glob("beyondpixel-*")) == []


def test_another_compiler_of_the_same_name_compiles_again(
    nothing_loaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    for version in ("old", "newer"):
        compiler.write_text(f'#!/bin/sh\n# {version}\nexec cc "$@"\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
        library.load_library.cache_clear()
        assert library.load_library() is not None
    assert len(libraries(nothing_loaded)) == 2


def test_cache_is_below_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEYONDPIXEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert library.cache_folder() == tmp_path / "xdg" / "beyondpixel"


def test_without_a_compiler_the_loss_goes_on_plainly_after_one_warning(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    logits, labels = batch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for backend in ("auto", "c", "auto"):
        torch.testing.assert_close(
            RMILoss(3, backend=backend)(logits, labels), RMILoss(3, backend="plain")(logits, labels)
        )
    [warning] = [str(w.message) for w in recwarn if "plain PyTorch backend" in str(w.message)]
    assert "no C compiler was found" in warning


def test_compiler_that_fails_is_quoted(batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.warns(UserWarning, match="broken could not compile the kernels: cannot"):
        RMILoss(3)(*batch())


@pytest.mark.parametrize("flags", [("-O1",), ("-O3", "-march=native")], ids=["scalar", "vectorized"])
def test_kernels_touch_only_their_arrays(tmp_path: Path, flags: tuple[str, ...]) -> None:
    sanitizers = "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=pointer-overflow"
    standard = "-std=c11", "-D_GNU_SOURCE", "-fopenmp-simd", f"-I{Path(library.__file__).parent}"
    program = tmp_path / "program"
    source = Path(__file__).with_name("sanitized_kernels.c")
    command = ["cc", *flags, *sanitizers, *standard, str(source), "-o", str(program), "-lm"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if compiled.returncode != 0 and "san" in compiled.stderr and "kernels.c" not in compiled.stderr:
        pytest.skip(f"the compiler has no sanitizers: {compiled.stderr}")
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "500 random sizes\n"), done.stderr[-3000:]
