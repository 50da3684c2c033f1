"""Compile kernels.c once for this machine, cache the library in a folder, and load it.

The library runs with this user's rights, so it must belong to this user: a new folder has mode 0700, and a folder or
library that another user owns or can write is not used.
"""

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from pathlib import Path

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c11",
    "-D_GNU_SOURCE",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    # by default, compilers use half of AVX-512's width
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)
# tried in this order. The library is linked without an OpenMP runtime, so that it shares PyTorch's, whose threads exist
# already; if PyTorch has none that is compatible with the compiler, the kernels run in one thread
_PARALLEL_FLAGS = (("-fopenmp",), ())
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Load the compiled kernels; return None, after a warning, if they cannot be compiled."""
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if not hasattr(os, "getuid"):  # Windows, where this does not give a file's owner and permissions
        problem = "the kernels are compiled on Linux and macOS only"
    elif compiler is None:
        problem = "no C compiler was found (install cc, gcc or clang, or set CC)"
    else:
        for parallel in _PARALLEL_FLAGS:
            try:
                return _cached_or_compiled(compiler, (*_FLAGS, *parallel))
            except (OSError, subprocess.CalledProcessError) as error:
                output = getattr(error, "stderr", None) or str(error)
                problem = f"{compiler} could not compile the kernels: {output.strip()[-500:]}"
    warnings.warn(
        f"The losses run on their plain PyTorch backend, which gives equal results but is slower, because {problem}. "
        f'backend="plain" turns this warning off.',
        stacklevel=2,
    )
    return None


def _cached_or_compiled(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    folder = cache_folder()
    library = folder / f"kernels-{_fingerprint(compiler, flags)}.so"
    if not (library.exists() and _is_private(library) and _is_complete(library)):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            compiled, fresh = Path(temporary) / "kernels.o", Path(temporary) / library.name
            for command in (
                [*compiler.split(), *flags, "-c", str(_SOURCE), "-o", str(compiled)],
                [*compiler.split(), "-shared", str(compiled), "-o", str(fresh), "-lm"],
            ):
                subprocess.run(command, check=True, capture_output=True, text=True)
            content = fresh.read_bytes()
            fresh.write_bytes(content + _digest(content))
            fresh.chmod(0o700)
            # other processes may do the same concurrently; a rename is atomic
            fresh.replace(library)
    return ctypes.CDLL(str(library))


def _is_complete(library: Path) -> bool:
    """Return whether the file ends with its digest: loading a truncated one would crash the process."""
    content = library.read_bytes()
    size = len(_digest(b""))
    return content[-size:] == _digest(content[:-size])


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    """Hash all that the library depends on; machines with different processors may share a home folder."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = (
        _SOURCE.read_text(encoding="utf-8"),
        " ".join(flags),
        compiler,
        _version(compiler),
        platform.platform(),
        platform.machine(),
        features,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _version(compiler: str) -> str:
    """Return the compiler's file, size and date: an upgrade keeps its name."""
    file = shutil.which(compiler.split(maxsplit=1)[0])
    status = Path(file).stat() if file else None
    return f"{file} {status.st_size} {status.st_mtime_ns}" if status else ""


def cache_folder() -> Path:
    """Return the folder of the libraries: $BEYONDPIXEL_CACHE, or beyondpixel in the user's cache folder.

    If that cannot be written or made private, it is a temporary folder that is removed when the process ends.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(home) if home else Path.home() / ".cache"
        folder = Path(os.environ.get("BEYONDPIXEL_CACHE") or root / "beyondpixel")
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid == os.getuid() and status.st_mode & _OTHERS_WRITE:
            folder.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)
        if _is_private(folder) and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # a read-only or missing home folder
        pass
    temporary = Path(tempfile.mkdtemp(prefix="beyondpixel-"))  # with mode 0700
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def _is_private(path: Path) -> bool:
    """Return whether the file or folder is no link, belongs to this user, and nobody else can write it."""
    status = path.lstat()
    return status.st_uid == os.getuid() and not status.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(status.st_mode)
