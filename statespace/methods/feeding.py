"""What all filters share that are fed one observation at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.methods.hoisting import in_two
from statespace.model import Step
from statespace.reading import is_traced
from statespace.series import Series, assemble

State = TypeVar("State")


class Fed:
    """A filter that is fed one observation at a time, each by one call of a compiled program.

    It stands before ``equinox.Module`` among the bases of a filter, and leaves methods plain ones: a module
    wraps a method anew with every access, which takes as long as an update.

    Attributes:
        dt: time between observations where none is given.
        predicts: whether an observation may be None, which makes the update a prediction.
    """

    dt: float
    predicts: ClassVar[bool] = False

    __getattribute__ = object.__getattribute__

    @abstractmethod
    def advance(self, state: Any, y: Array | None, inputs: Array | None, time: Array | None) -> Any:
        """The state after one more observation, traced."""

    def update(self, state: State, y: Any, inputs: Any = None, time: Any = None) -> State:
        """The state after one more observation.

        Args:
            state: from ``init()`` or the previous ``update``.
            y: the observation, shape ``(m,)`` or a number; NaN where missing; of Gaussian filters None for a
                prediction.
            inputs: shape ``(k,)``, where the model uses inputs.
            time: when it was made; default: ``dt`` after the previous one.

        Raises:
            TypeError: if ``y`` is None and the filter needs an observation.
            ValueError: if ``time`` is not after the previous observation's.
        """
        if y is None and not self.predicts:
            raise TypeError(
                f"`y` of {type(self).__name__}.update must be an observation, got None: give NaN for each "
                "channel that is missing."
            )
        if time is not None:
            check_later(time, state)
        dtype = state.log_likelihood.dtype  # type: ignore[attr-defined]
        return self._program(state, _array(y, dtype, 1), _array(inputs, dtype), _array(time, dtype))

    @cached_property
    def _program(self) -> Callable[..., Any]:
        """``advance`` compiled; not part of the pytree, so that another one has to make its own."""
        leaves, structure = jax.tree.flatten(self)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self.advance
        return _Prepared(leaves, structure)

    def __getstate__(self) -> dict[str, Any]:
        """All but the compiled program."""
        return {name: part for name, part in vars(self).items() if name != "_program"}


class _Prepared:
    """An ``advance`` whose model is settled: what the model alone determines has been computed."""

    def __init__(self, leaves: list[Any], structure: Any):
        self.arrays = [x for x in leaves if _is_array(x)]
        self.model = structure, tuple(jax.typeof(x) if _is_array(x) else x for x in leaves)
        self.calls: dict[Any, tuple[Callable[..., Any], list[Any]]] = {}

    def __call__(self, *args: Any) -> Any:
        key = _signature(args)
        call = self.calls.get(key)
        if call is None:
            prepare, run = _compiled(self.model, self.arrays, key, args)
            # what is kept must not be of a trace that ends
            within = jax.ensure_compile_time_eval if is_traced(jnp.zeros(())) else nullcontext
            with within():
                call = self.calls[key] = run, prepare(self.arrays)
        run, values = call
        return run(values, *args)


_COMPILED: dict[Any, tuple[Callable[..., Any], Callable[..., Any]]] = {}
"""By everything of a filter and its arguments but numbers: the two compiled halves of its ``advance``."""


def _compiled(model: Any, arrays: list[Any], key: Any, args: Any) -> Any:
    if (model, key) not in _COMPILED:
        if len(_COMPILED) >= 256:
            _COMPILED.clear()
        structure, leaves = model

        def advance(arrays: list[Any], *args: Any) -> Any:
            given = iter(arrays)
            full = [next(given) if isinstance(x, jax.core.ShapedArray) else x for x in leaves]
            return jax.tree.unflatten(structure, full).advance(*args)

        prepare, run = in_two(advance, arrays, *args)
        _COMPILED[model, key] = jax.jit(prepare), jax.jit(run)
    return _COMPILED[model, key]


def _signature(args: tuple[Any, ...]) -> Any:
    """What distinguishes calls that need programs of their own."""
    state, *given = args
    shapes = tuple(None if x is None else x.shape for x in given)
    return jax.tree.structure(state), state.log_likelihood.dtype, shapes


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)


def _array(x: Any, dtype: Any, least: int = 0) -> Any:
    """An array of at least so many dimensions; None stays so.

    What is no JAX array stays in NumPy's hands, which are quicker.
    """
    if x is None:
        return None
    if isinstance(x, np.ndarray | np.generic | float | int):
        return np.array(x, dtype, ndmin=least)
    x = jnp.asarray(x, dtype)
    return x if x.ndim >= least else x[None]


def check_later(time: Any, state: Any) -> None:
    """Refuse a time that does not follow the previous observation's; traced ones pass.

    Raises:
        ValueError: if it does not.
    """
    traced = any(isinstance(x, jax.core.Tracer) for x in (time, state.time))
    if not traced and int(state.index) >= 0 and not time > float(state.time):
        raise ValueError(
            f"`time` must be after the previous observation's, {float(state.time)}, got {time}."
        )


def next_step(
    state: Any, dt: float, inputs: Array | None, time: Array | None
) -> tuple[Step, Array]:
    """The step of the next observation, and whether it is the first.

    Args:
        state: before the observation, with its ``index`` and ``time``.
        dt: since the previous observation, where no time is given; and at the first.
        inputs: shape ``(k,)`` or None.
        time: of the observation, or None.
    """
    first = state.index < 0
    if time is None:  # what depends on the interval alone can then be computed beforehand
        time, since = state.time + dt, jnp.asarray(dt, state.time.dtype)
    else:
        since = jnp.where(first, dt, time - state.time)
    return Step(state.index + 1, time, since, inputs), first


def recent(
    history: Float[Array, "p m"] | None, y: Float[Array, " m"], step: Step
) -> tuple[Series, Step]:
    """The last observations as a recording, of which only the last moment counts, and its steps."""
    rows = y[None] if history is None else jnp.concatenate([history[::-1], y[None]])
    count = len(rows)
    steps = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), step)
    series = assemble(
        Series,
        y=rows,
        times=steps.time,
        inputs=steps.inputs,
        intervals=steps.dt,
        state_weights=None,
        complete=None,
        dt=None,
        labels=None,
    )
    return series, steps
