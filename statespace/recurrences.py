"""Nonlinear recurrences solved for all moments at once, by Newton's method with associative scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from statespace.chains import gaussian
from statespace.chains.associative import prefix_scan
from statespace.chains.batching import with_care
from statespace.checks import require_arguments

Jacobian = Literal["full", "diagonal"]


class Recurrence(NamedTuple):
    """The solution of a recurrence, and how it was found.

    Attributes:
        states: ``x_1 … x_T``, shape ``(T, n)``.
        iterations: Newton steps made.
        residual: the largest ``|x_t - f(x_{t-1}, u_t)|`` when they ended, before any fallback.
        converged: whether the last step was below the tolerance.
        sequential: whether the recurrence was run moment by moment because Newton's method had failed.
    """

    states: Float[Array, "T n"]
    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    sequential: Bool[Array, ""]


def parallel_newton(
    f: Callable[..., Array],
    x0: Any,
    inputs: Any = None,
    *,
    steps: int | None = None,
    guess: Any = None,
    jacobian: Jacobian | int | Callable[..., Array] = "full",
    damping: float | None = None,
    iterations: int = 100,
    tolerance: float | None = None,
    fallback: bool = True,
) -> Recurrence:
    """Run ``x_t = f(x_{t-1}, u_t)`` for all T moments at once (DEER: Lim et al. 2024; Gonzalez et al. 2024).

    Each iteration linearises ``f`` at the last guess of all states and solves the linear recurrence by an
    associative scan, of a depth that is logarithmic in T. It needs few iterations where ``f`` forgets its
    past quickly, and many (at most T) where it hardly does; where they do not suffice the recurrence is run
    moment by moment, and ``sequential`` says so. Gradients are those of the solution, by one transposed scan
    with the full Jacobians, whatever the iterations were.

    Under `vmap` each recurrence keeps the iterations, the residual and the solution at which it stopped by
    itself; the loop ends with the last one, and all are run moment by moment if one has to be.

    Args:
        f: ``(state (n,), input) -> state (n,)``; without inputs ``(state) -> state``.
        x0: the state before the first, shape ``(n,)``.
        inputs: pytree of arrays with a leading axis of T; None for none.
        steps: T, where there are no inputs.
        guess: states to start from, shape ``(T, n)``, such as the previous solution; default: zeros.
        jacobian: "full"; "diagonal", which needs memory for ``T n`` numbers instead of ``T n²`` but more
            iterations; a number k for blocks of ``k x k``; or ``(state, input) ->`` an array ``(n, n)``,
            ``(n/k, k, k)`` or ``(n,)`` in place of the derivative of ``f``.
        damping: weight that holds each step back (the exact Levenberg–Marquardt step, as a smoothed mean);
            goes with "full". None: full steps.
        iterations: the most that are made.
        tolerance: the largest change of a state, relative to one plus the largest state, at which it stops;
            default 1e-10 in float64 and 1e-5 in float32.
        fallback: whether to run the recurrence moment by moment where the iterations do not converge.

    Raises:
        TypeError: if ``f`` takes other arguments.
        ValueError: if shapes do not fit, or a setting is out of range.
    """
    x0 = jnp.asarray(x0)
    steps = _checked(f, x0, inputs, steps, guess, jacobian, damping, iterations, tolerance)
    step = f if inputs is not None else lambda x, _: f(x)
    inputs = jnp.zeros((steps, 0), x0.dtype) if inputs is None else inputs
    if tolerance is None:
        tolerance = 1e-10 if x0.dtype == jnp.float64 else 1e-5
    begin = jnp.zeros((steps, len(x0)), x0.dtype) if guess is None else jnp.asarray(guess, x0.dtype)
    frozen = jax.lax.stop_gradient
    fixed = eqx.filter_closure_convert(step, x0, jax.tree.map(lambda u: u[0], inputs))
    held = jax.tree.map(lambda a: frozen(a) if eqx.is_array(a) else a, fixed)

    every = lambda x: jnp.concatenate([frozen(x0)[None], x[:-1]])
    given = frozen(inputs)
    image = jax.vmap(held)

    def newton(x: Array) -> Array:
        before = every(x)
        slope = _slopes(held, before, given, jacobian)
        value = image(before, given)
        if damping is not None:
            return _held_back(slope, value, before, x, damping)
        rest = value - _apply(slope, before)
        return solve(slope, rest.at[0].add(_apply(slope[:1], before[:1])[0]))

    def body(s: tuple) -> tuple:
        x, _, count = s
        new = newton(x)
        # what overflowed starts anew: the first moments are right after as many iterations
        new = jnp.where(jnp.isfinite(new), new, 0)
        change = jnp.max(jnp.abs(new - x)) / (1 + jnp.max(jnp.abs(new)))
        return new, change, count + 1

    going = lambda s: (s[1] > tolerance) & (s[2] < iterations)
    start = (frozen(begin), jnp.asarray(jnp.inf, x0.dtype), jnp.asarray(0))
    x, change, count = jax.lax.while_loop(going, body, start)
    residual = jnp.max(jnp.abs(x - image(every(x), given)))
    # states that were set to zero for want of a number do not change either
    solves = residual <= jnp.sqrt(tolerance) * (1 + jnp.max(jnp.abs(x)))
    converged = (change <= tolerance) & solves
    if fallback:
        x = _unless(converged, x, held, frozen(x0), given)
    states = _solution(frozen(x), fixed, x0, inputs)
    return Recurrence(states, count, residual, converged, ~converged & fallback)


def _unless(converged: Array, x: Array, step: Callable, x0: Array, inputs: Any) -> Array:
    """What was found, or else the recurrence moment by moment; a batch runs it only if one needs it."""
    arrays, rest = eqx.partition((step, x0, inputs), eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)

    def again(converged: Array, x: Array, *leaves: Array) -> Array:
        step, x0, inputs = eqx.combine(jax.tree.unflatten(tree, leaves), rest)
        return jax.lax.scan(lambda x, u: (step(x, u),) * 2, x0, inputs)[1]

    failed = lambda converged, *_: ~converged
    return with_care(failed, again, lambda converged, x, *_: x)(converged, x, *leaves)


@eqx.filter_custom_jvp
def _solution(x: Array, step: Callable, x0: Array, inputs: Any) -> Array:
    """The solution that was found, with the derivative that the implicit function theorem gives it."""
    return x


@_solution.def_jvp
def _solution_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, step, x0, inputs = primals
    before = jnp.concatenate([x0[None], x[:-1]])

    def image(step: Callable, x0: Array, inputs: Any) -> Array:
        return jax.vmap(step)(before.at[0].set(x0), inputs)

    _, direction = eqx.filter_jvp(image, (step, x0, inputs), tangents[1:])
    slope = jax.vmap(jax.jacfwd(step))(before, inputs)
    return x, solve(slope, direction)


def solve(slope: Array, rest: Float[Array, "T n"]) -> Float[Array, "T n"]:
    """``x_t = J_t x_{t-1} + r_t`` with ``x_0 = 0``, and backwards in time for derivatives.

    Args:
        slope: ``J``, shape ``(T, n, n)``; ``(T, n)`` if diagonal, ``(T, n/k, k, k)`` if of blocks.
        rest: ``r``, shape ``(T, n)``.
    """

    def forward(slope: Array, rest: Array) -> Array:
        return _scan(slope, rest)

    def backward(slope: Array, rest: Array) -> Array:
        turned = jnp.swapaxes(slope, -1, -2) if slope.ndim > 2 else slope
        later = jnp.concatenate([turned[1:], jnp.zeros_like(turned[:1])])
        return _scan(later[::-1], rest[::-1])[::-1]

    def residual(x: Array) -> Array:
        return x - jnp.concatenate([jnp.zeros_like(x[:1]), _apply(slope[1:], x[:-1])])

    return jax.lax.custom_linear_solve(
        residual,
        rest,
        solve=lambda _, b: forward(slope, b),
        transpose_solve=lambda _, b: backward(slope, b),
    )


def _scan(slope: Array, rest: Array) -> Array:
    def combine(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (a1, b1), (a2, b2) = first, second
        moved = _apply(a2[None], b1[None])[0] + b2
        return (a2 * a1 if a1.ndim == 1 else a2 @ a1), moved

    return prefix_scan(combine, (slope, rest))[1]


def _apply(slope: Array, x: Float[Array, "T n"]) -> Float[Array, "T n"]:
    """``J_t x_t`` of each moment."""
    if slope.ndim == 2:
        return slope * x
    if slope.ndim == 3:
        return jnp.einsum("tij,tj->ti", slope, x)
    parts = x.reshape(*slope.shape[:3])
    return jnp.einsum("tbij,tbj->tbi", slope, parts).reshape(x.shape)


def _slopes(
    f: Callable, x: Float[Array, "T n"], inputs: Any, jacobian: Jacobian | int | Callable
) -> Array:
    """Derivatives of ``f`` at all moments, in the form that was asked for."""
    if callable(jacobian):
        return jax.vmap(jacobian)(x, inputs)
    if jacobian == "full":
        return jax.vmap(jax.jacfwd(f))(x, inputs)
    size = 1 if jacobian == "diagonal" else int(jacobian)
    n = x.shape[1]

    def column(j: Array) -> Array:
        """Of one coordinate's derivatives those in its own block: memory stays of order T n."""
        direction = jnp.zeros_like(x[0]).at[j].set(1)
        one = lambda x, u: jax.jvp(lambda x: f(x, u), (x,), (direction,))[1]
        whole = jax.vmap(one)(x, inputs)
        return jax.lax.dynamic_slice_in_dim(whole, (j // size) * size, size, axis=1)

    columns = jax.lax.map(column, jnp.arange(n))  # (n, T, size)
    if jacobian == "diagonal":
        return columns[..., 0].T
    return jnp.transpose(columns.reshape(n // size, size, len(x), size), (2, 0, 3, 1))


def _held_back(slope: Array, value: Array, before: Array, x: Array, damping: float) -> Array:
    """``argmin |r + J D|² + damping |D|²``: the smoothed states of a chain that observes the last guess."""
    steps, n = x.shape
    eye = jnp.eye(n, dtype=x.dtype)
    offset = value - _apply(slope, before)
    first = value[0]
    chain = gaussian.Chain(
        gaussian.Initial(first, eye),
        gaussian.Transitions(slope[1:], offset[1:], eye[None])
        if steps > 1
        else gaussian.Transitions(slope, offset, eye[None]),
        gaussian.Observed(eye[None], jnp.zeros((1, n), x.dtype), eye[None] / damping, x),
    )
    return gaussian.smooth(chain, parallel=jax.default_backend() != "cpu").mean


def _checked(
    f: Callable,
    x0: Array,
    inputs: Any,
    steps: int | None,
    guess: Any,
    jacobian: Any,
    damping: float | None,
    iterations: int,
    tolerance: float | None,
) -> int:
    """T, if everything fits.

    Raises:
        TypeError: if ``f`` takes other arguments.
        ValueError: if it does not.
    """
    if x0.ndim != 1 or not jnp.issubdtype(x0.dtype, jnp.floating):
        raise ValueError(
            f"`x0` must be a vector of floats (n,), got shape {x0.shape} of {x0.dtype}."
        )
    n = len(x0)
    if inputs is None:
        if steps is None or steps < 1:
            raise ValueError(f"`steps` must be positive where there are no `inputs`, got {steps}.")
        require_arguments("`f`", f, ("state",))
        out = jax.eval_shape(f, x0)
    else:
        lengths = {u.shape[0] for u in jax.tree.leaves(inputs)}
        if len(lengths) != 1:
            raise ValueError(f"`inputs` must share one leading axis of T, got {sorted(lengths)}.")
        if steps is not None and steps not in lengths:
            raise ValueError(f"`steps` is {steps}, but `inputs` has {lengths.pop()} moments.")
        steps = lengths.pop()
        require_arguments("`f`", f, ("state", "input"))
        out = jax.eval_shape(f, x0, jax.tree.map(lambda u: u[0], inputs))
    if out.shape != (n,):
        raise ValueError(f"`f` must return a state of shape ({n},) like `x0`, got {out.shape}.")
    if guess is not None and jnp.shape(guess) != (steps, n):
        raise ValueError(f"`guess` must have shape ({steps}, {n}), got {jnp.shape(guess)}.")
    blocks = isinstance(jacobian, int) and not isinstance(jacobian, bool)
    if not callable(jacobian) and jacobian not in ("full", "diagonal") and not blocks:
        raise ValueError(
            '`jacobian` must be "full", "diagonal", the size of blocks, or a function, got '
            f"{jacobian!r}."
        )
    if blocks and (jacobian < 1 or n % jacobian):
        raise ValueError(f"`jacobian` = {jacobian}: blocks must divide the {n} coordinates.")
    if damping is not None and not (damping > 0 and jacobian == "full"):
        raise ValueError(
            f'`damping` must be positive and goes with jacobian="full", got {damping} with {jacobian!r}.'
        )
    if iterations < 1 or (tolerance is not None and not tolerance > 0):
        raise ValueError(
            f"`iterations` and `tolerance` must be positive, got {iterations} and {tolerance}."
        )
    return int(steps)
