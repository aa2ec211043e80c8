"""What every test has: the CPU, float64, a cache of compiled programs, and slow tests last."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Most of the tests' time is XLA's: thousands of small programs, each run once or twice. Compiled with little
# of LLVM's optimisation and with the older code generator (gone since jaxlib 0.11) they are ready sooner.
# With none at all multiply-adds are not fused, on which single-precision covariances with a vague start live.
# `XLA_FLAGS= make test` tests what XLA makes by itself, as the gallery does.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
    )
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

# Shapes and types of every annotated function of the package, checked as it runs:
# STATESPACE_TYPECHECK=1 make test
if os.environ.get("STATESPACE_TYPECHECK") == "1":
    import jaxtyping

    jaxtyping.install_import_hook("statespace", "beartype.beartype")

import jax
import pytest

# Oracles are compared in float64; the library follows its input's dtype, so a test of float32
# passes float32 arrays, or runs as a user's session does with the fixture `x64_off`.
jax.config.update("jax_enable_x64", True)

# Compiled programs outlive the process, also the small ones: two workers share them, and a second run of
# the tests spends little time compiling.
_CACHE = Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests marked slow last, so that what breaks is seen early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


_MAPS = Path("/proc/self/maps")


def pytest_runtest_teardown() -> None:
    """Forget compiled programs before they fill the process's table of memory maps.

    Each takes several maps, Linux allows 65,530, and the process that wants one more dies. They take memory
    as well, some 4 GB at this number.
    """
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def x64_off():
    """JAX as it comes: float32 unless asked otherwise."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run the test once in each precision; make the arrays with it."""
    return jax.numpy.dtype(request.param)


@pytest.fixture
def key():
    """A PRNG key, the same in every run."""
    return jax.random.key(0)
