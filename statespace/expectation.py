"""What is expected of a path of states given the data."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from statespace.conditionals.affine import Gaussian
from statespace.conditionals.finite import FiniteTransition
from statespace.functionals import Additive
from statespace.methods.choice import method_for, with_key
from statespace.methods.forward_backward import ForwardBackward
from statespace.methods.functional_lowering import over_path
from statespace.methods.kalman import Kalman
from statespace.methods.lowering import at, steps_of
from statespace.methods.potentials import with_history
from statespace.model import check_key
from statespace.series import Panel, Series, as_data


class Expectation(eqx.Module):
    """The expectation of an additive functional given the data.

    Attributes:
        value: what the functional gives, an array or a pytree of arrays.
        standard_error: in the form of ``value``: 0 where the value is exact; None where one run does not
            tell. Of several Markov chains it is the one between chains, which does not see a bias that they
            share.
        sweeps: of particle Gibbs the estimate of each sweep, burn-in included, leading axes ``(chains,
            sweeps)``; else None.
        update_rates: of particle Gibbs in which share of the sweeps the path's particle was another than
            before, shape ``(T,)``; else None.
    """

    value: Any
    standard_error: Any = None
    sweeps: Any = None
    update_rates: Array | None = None


def expect(
    model: Any,
    data: Any,
    functional: Additive,
    *,
    method: Any = None,
    key: PRNGKeyArray | None = None,
    draws: int = 1000,
) -> Expectation:
    """``E[h(x_{0:T}) | y_{0:T}]`` of an additive functional of the states.

    Exact with ``ForwardBackward``. With ``Kalman``, which knows the states' law but not the functional's, it
    is the mean over exact independent paths. For every other model ``BackwardSampling`` averages paths,
    ``PaRIS`` does with memory that does not grow with the recording, and ``ParisianParticleGibbs`` is without
    bias.

    Args:
        model: a model that the method fits.
        data: a recording; of a list of independent ones the sum of the expectations.
        functional: ``Additive(later, first)``.
        method: if None, exact for finite states, exact paths for linear Gaussian models, else
            ``BackwardSampling()``.
        key: source of randomness; not needed where the value is exact.
        draws: how many exact paths, with ``Kalman``.

    Raises:
        TypeError: if ``functional`` is no ``Additive``, the method does not fit the model, or it has no
            expectations.
        ValueError: if ``key`` is missing, ``draws`` is not positive, or ``first`` and ``later`` of the
            functional do not give the same arrays.

    Example:
        >>> lag_one = ss.Additive(lambda previous, state, step, y: previous * state)
        >>> ss.expect(model, y, lag_one, method=ss.PaRIS(particles=500), key=key).value
    """
    if not isinstance(functional, Additive):
        raise TypeError(
            "`functional` must be an Additive, such as "
            "`ss.Additive(lambda previous, state, step, y: previous * state)`, "
            f"got {type(functional).__name__}."
        )
    if draws < 1:
        raise ValueError(f"`draws` must be positive, got {draws}.")
    method = method_for(model, method, smooths=True)
    if not (hasattr(method, "expect") or isinstance(method, ForwardBackward | Kalman)):
        raise TypeError(
            f"{type(method).__name__} gives no expectations of functionals: use PaRIS, BackwardSampling, "
            "ParticleGibbs or ParisianParticleGibbs, or ForwardBackward for finite states."
        )
    data = as_data(data)
    method.check(model, data)
    _check_arrays(functional, model, data.series[0] if isinstance(data, Panel) else data)
    recordings = data.drop_labels().series if isinstance(data, Panel) else [data.drop_labels()]
    if isinstance(method, ForwardBackward):
        return _sum([_finite(model, s, functional, method) for s in recordings])
    if isinstance(method, Kalman):
        if key is None:
            raise ValueError(
                "Kalman knows the law of the states but not of a functional, which is averaged over exact "
                "paths: give `key=`, a PRNG key such as `jax.random.key(0)`. Means, covariances and "
                "lag-one covariances are exact in `ss.smooth(model, data)`."
            )
        check_key(key)
        keys = jax.random.split(key, len(recordings))
        pairs = zip(recordings, keys, strict=True)
        return _sum([_paths(model, s, functional, method, k, draws) for s, k in pairs])
    method = with_key(method, model, key)
    keys = jax.random.split(method.key, len(recordings))
    pairs = zip(recordings, keys, strict=True)
    return _sum([_estimate(model, s, functional, method.with_key(k)) for s, k in pairs])


def _check_arrays(functional: Additive, model: Any, series: Series) -> None:
    """Refuse a functional whose parts cannot be added.

    Raises:
        ValueError: if ``first`` and ``later`` do not give the same arrays.
    """
    if functional.first is None:
        return
    step = at(with_history(model.observation, series, steps_of(series)[0]), 0)
    state: Any = jnp.zeros((), int)
    if isinstance(model.initial, Gaussian):
        state = model.initial.mean
    elif not isinstance(model.transition, FiniteTransition):
        law = model.initial if hasattr(model.initial, "sample") else model.initial(step)
        state = jax.eval_shape(law.sample, jax.random.key(0))
    y = series.channels[0]
    first = eqx.filter_eval_shape(functional.first, state, step, y)
    later = eqx.filter_eval_shape(functional.later, state, state, step, y)
    shapes = lambda out: jax.tree.map(jnp.shape, out)
    if shapes(first) != shapes(later):
        raise ValueError(
            "`first` and `later` of the functional must give the same arrays, but give those of shapes "
            f"{shapes(first)} and {shapes(later)}."
        )


@eqx.filter_jit
def _estimate(model: Any, series: Series, functional: Additive, method: Any) -> Expectation:
    return method.expect(model, series, functional)


@eqx.filter_jit
def _paths(
    model: Any, series: Series, functional: Additive, method: Kalman, key: Array, draws: int
) -> Expectation:
    """The mean over exact paths."""
    paths = method.sample_states(model, series, key, draws)
    steps = with_history(model.observation, series, steps_of(series)[0])
    values = jax.vmap(lambda x: over_path(functional, x, steps, series.channels))(paths)
    return Expectation(*mean_and_error(values))


@eqx.filter_jit
def _finite(
    model: Any, series: Series, functional: Additive, method: ForwardBackward
) -> Expectation:
    """Sums over all pairs of states."""
    posterior = method.posterior(model, series, "smoothed")
    steps = with_history(model.observation, series, steps_of(series)[0])
    states = jnp.arange(posterior.probs.shape[1])
    row = lambda s: jax.tree.map(lambda x: x[s], (steps, series.channels))

    def weighted(weights: Array, values: Any) -> Any:
        # what is impossible counts for nothing, also where the functional is infinite there
        axes = weights.ndim

        def one(x: Array) -> Array:
            wide = weights.reshape(weights.shape + (1,) * (x.ndim - axes))
            return jnp.sum(jnp.where(wide > 0, wide * x, 0), axis=tuple(range(axes)))

        return jax.tree.map(one, values)

    def term(at: Any) -> Any:
        pairs, (step, y) = at
        pair = lambda j, k: functional.later(j, k, step, y)
        return weighted(pairs, jax.vmap(lambda j: jax.vmap(lambda k: pair(j, k))(states))(states))

    terms = jax.lax.map(term, (posterior.pairs, row(slice(1, None))))
    value = jax.tree.map(lambda x: jnp.sum(x, axis=0), terms)
    if functional.first is not None:
        step, y = row(0)
        first = weighted(
            posterior.probs[0], jax.vmap(lambda k: functional.first(k, step, y))(states)
        )
        value = jax.tree.map(jnp.add, value, first)
    return Expectation(value, jax.tree.map(jnp.zeros_like, value))


def mean_and_error(values: Any) -> tuple[Any, Any]:
    """The mean over the first axis and its standard error; None of a single value."""
    count = len(jax.tree.leaves(values)[0])
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), values)
    if count == 1:
        return mean, None
    error = jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=1) / np.sqrt(count), values)
    return mean, error


def _sum(each: list[Expectation]) -> Expectation:
    """Of independent recordings."""
    if len(each) == 1:
        return each[0]
    add = lambda *x: sum(x)
    value = jax.tree.map(add, *[e.value for e in each])
    if any(e.standard_error is None for e in each):
        return Expectation(value)
    root = lambda *x: jnp.sqrt(sum(v**2 for v in x))
    return Expectation(value, jax.tree.map(root, *[e.standard_error for e in each]))
