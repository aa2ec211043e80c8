"""Settings that must be made before JAX starts its back end."""

from __future__ import annotations

import os

_OPTION = "xla_cpu_small_while_loop_byte_threshold"
_EXTRA = "--xla_backend_extra_options="


def cpu_fused_loops(threshold: int = 32768) -> None:
    """Let XLA:CPU compile larger loops into one native kernel, for faster filters of 4 to 8 states.

    XLA:CPU turns a loop into a single kernel when one iteration touches fewer than 1024 bytes. Filters of up
    to two states pass that by themselves, and so does every mean recursion up to eight; this raises the
    limit for the process. It slows down large batches (`vmap` over hundreds of series), and is
    therefore not the default. A value that XLA_FLAGS already holds is left alone.

    Args:
        threshold: bytes an iteration may touch.

    Raises:
        RuntimeError: if JAX's back end has already started, when the setting would be ignored.

    Example:
        >>> import statespace as ss
        >>> ss.config.cpu_fused_loops()  # before the first array is made
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _OPTION in flags:
        return
    from jax._src import xla_bridge  # there is no public way to ask

    if xla_bridge.backends_are_initialized():
        raise RuntimeError(
            "statespace.config.cpu_fused_loops() must be called before JAX makes its first array; call it "
            "right after the imports."
        )
    setting = f"{_EXTRA}{_OPTION}={threshold}"
    if _EXTRA in flags:
        flags = flags.replace(_EXTRA, f"{setting},", 1)
    else:
        flags = f"{flags} {setting}".strip()
    os.environ["XLA_FLAGS"] = flags
