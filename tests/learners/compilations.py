"""Count what JAX traces and compiles."""

import contextlib

import jax

_EVENTS = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/backend_compile_duration")
_seen: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **kwargs: _seen.append(event) if event in _EVENTS else None
)


@contextlib.contextmanager
def compilations():
    """A list that fills with the events of tracing and compiling in its block."""
    before = len(_seen)
    out: list[str] = []
    yield out
    out.extend(_seen[before:])
