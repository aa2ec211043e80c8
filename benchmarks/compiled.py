"""Hand-written C as an estimate of what the machine can do: compiled on the fly, skipped without gcc."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np

from benchmarks.harness import HERE, RESULTS, Skip

FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-math-errno", "-shared", "-fPIC")


@functools.cache
def library(name: str, **sizes: int) -> ctypes.CDLL:
    """The library of ``c/<name>.c`` with sizes fixed at compile time, such as ``N=4, M=1``."""
    if shutil.which("gcc") is None:
        raise Skip("no gcc")
    source = HERE / "c" / f"{name}.c"
    flags = [*FLAGS, *(f"-D{key}={value}" for key, value in sizes.items())]
    digest = hashlib.sha1(source.read_bytes() + " ".join(flags).encode()).hexdigest()[:12]
    path: Path = RESULTS / "build" / f"{name}_{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["gcc", *flags, "-o", str(path), str(source), "-lm"], check=True)
    return ctypes.CDLL(str(path))


def pointer(array: np.ndarray | None) -> ctypes.c_void_p | None:
    """The address of an array, which must be contiguous and float64."""
    if array is None:
        return None
    if not array.flags.c_contiguous or array.dtype != np.float64:
        raise ValueError(
            f"C needs contiguous float64, got {array.dtype} with strides {array.strides}"
        )
    return array.ctypes.data_as(ctypes.c_void_p)


def contiguous(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(a, dtype=np.float64) for a in arrays]
