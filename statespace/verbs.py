"""The verbs: functions that are the same for every model."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.learners.fit import fit
from statespace.learners.likelihood import each_recording, keyed, keys_of, stacked
from statespace.learners.likelihood import log_likelihood as _log_likelihood
from statespace.methods.choice import is_random, method_for, with_key
from statespace.methods.convergence import warn_unless_converged
from statespace.methods.gaussian_checks import report
from statespace.methods.particle_checks import require_possible
from statespace.model import check_key, check_model
from statespace.panels import PanelPosterior, with_components
from statespace.prediction import merge, query
from statespace.reading import to_jax
from statespace.series import Panel, Series, as_data
from statespace.simulation import states_and_observations

__all__ = [
    "Simulation",
    "filter",
    "fit",
    "forecast",
    "log_likelihood",
    "online",
    "sample_states",
    "simulate",
    "smooth",
]


class Simulation(NamedTuple):
    """A draw of states and observations."""

    states: Float[Array, "T n"] | Int[Array, " T"]
    y: Float[Array, "T m"]


def simulate(
    model: Any,
    data: Any,
    *,
    key: PRNGKeyArray,
    times: Any = None,
    inputs: Any = None,
    initial_state: Any = None,
) -> Simulation:
    """Draw states and observations from any model.

    Args:
        model: anything with ``initial``, ``transition`` and ``observation``.
        data: a number of moments; or a recording, whose times and inputs are used and whose values are not.
        key: source of randomness.
        times: shape ``(T,)``, increasing; default 0 … T-1, or those of the recording.
        inputs: shape ``(T, k)``; default none, or those of the recording.
        initial_state: shape ``(n,)`` or a :class:`~statespace.RegimeState`: the first state, in place of a
            draw from ``initial``.

    Returns:
        ``states`` ``(T, n)``, of a finite state ``(T,)`` integers, and ``y`` ``(T, m)``.

    Raises:
        ValueError: if the number of moments is not positive, or ``initial`` is diffuse and no
            ``initial_state`` is given.
    """
    check_model(model)
    if isinstance(data, (int, np.integer)):
        if data < 1:
            raise ValueError(
                f"`data` must be a recording or a positive number of moments, got {data}."
            )
        times = np.arange(float(data)) if times is None else times
        channels = getattr(model.observation, "channels", 1)
        series = Series.unobserved(times, inputs, channels=channels)
    else:
        given = as_data(data, times, inputs)
        if isinstance(given, Panel):
            raise TypeError(
                "`simulate` draws one recording at a time: call it for each of a panel."
            )
        series = given
    check_key(key)
    first = initial_state
    if first is not None:
        structured = hasattr(first, "_fields")  # such as a RegimeState
        first = type(first)(*map(jnp.asarray, first)) if structured else jnp.asarray(first)
    return Simulation(*states_and_observations(model, series.drop_labels(), key, first))


def log_likelihood(
    model: Any, data: Any, *, method: Any = None, key: PRNGKeyArray | None = None
) -> Float[Array, ""]:
    """``log p(y)`` with the states integrated out; of a panel, the sum over its recordings.

    Differentiable in the model's parameters, also under ``jit`` and ``vmap``. With exactly diffuse initial
    states it is the diffuse likelihood of Durbin & Koopman (2012, section 7.2.2).

    Args:
        model: a model that the method fits.
        data: a recording, or a list of independent ones.
        method: if None, the exact one for the model, else by particles.
        key: source of randomness, where the method draws at random.

    Raises:
        TypeError: if the method does not fit the model; the conditional at fault is named.
        ValueError: if shapes do not fit or the data are impossible; if the method is random and there is no
            ``key``.
    """
    method, data = _checked(model, data, method, key)
    plain = data.drop_labels()
    if hasattr(method, "evidence"):
        found, ended = _evidence(model, plain, method)
        warn_unless_converged(method, ended)
    else:
        found = _likelihood(model, plain, method)
    return _reported(method, model, data, found)


_likelihood = eqx.filter_jit(_log_likelihood)


@eqx.filter_jit
def _evidence(model: Any, data: Series | Panel, method: Any) -> tuple[Array, Any]:
    """The log likelihood by a method that iterates, and how its iteration ended."""
    if isinstance(data, Panel):
        each, ended = jax.vmap(lambda series: method.evidence(model, series))(stacked(data))
        return jnp.sum(each), ended
    return method.evidence(model, data)


def filter(model: Any, data: Any, *, method: Any = None, key: PRNGKeyArray | None = None) -> Any:
    """The law of each state given the observations up to its moment.

    Args:
        model: a model that the method fits.
        data: a recording, or a list of independent ones.
        method: if None, the exact one for the model, else by particles.
        key: source of randomness, where the method draws at random.

    Returns:
        A posterior; of a panel, a sequence of them.

    Raises:
        TypeError: if the method does not fit the model; the conditional at fault is named.
        ValueError: if shapes do not fit; if the method is random and there is no ``key``.
    """
    return _posterior(model, data, method, "filtered", key)


def smooth(model: Any, data: Any, *, method: Any = None, key: PRNGKeyArray | None = None) -> Any:
    """The law of each state given all observations, with lag-one covariances.

    Args:
        model: a model that the method fits.
        data: a recording, or a list of independent ones.
        method: if None, the exact one for the model, else by particles.
        key: source of randomness, where the method draws at random.

    Returns:
        A posterior; of a panel, a sequence of them.

    Raises:
        TypeError: if the method does not fit the model; the conditional at fault is named.
        ValueError: if shapes do not fit; if the method is random and there is no ``key``.
    """
    return _posterior(model, data, method, "smoothed", key)


def sample_states(
    model: Any, data: Any, *, key: PRNGKeyArray, draws: int = 1, method: Any = None
) -> Float[Array, "draws T n"] | list[Float[Array, "draws T n"]]:
    """Joint draws of all states given all observations, as exact as the method is.

    Args:
        model: a model that the method fits.
        data: a recording, or a list of independent ones.
        key: source of randomness.
        draws: how many trajectories.
        method: if None, the exact one for the model, else by particles.

    Returns:
        Shape ``(draws, T, n)``; of a panel, a list of them.

    Raises:
        TypeError: if the method does not fit the model.
        ValueError: if shapes do not fit or ``draws`` is not positive.
    """
    if draws < 1:
        raise ValueError(f"`draws` must be positive, got {draws}.")
    check_key(key)
    method = method_for(model, method, smooths=True)
    random = is_random(method)
    own, key = jax.random.split(key) if random else (key, key)
    method, data = _checked(model, data, method, own)
    data = data.drop_labels()
    if isinstance(data, Panel):
        keys = jax.random.split(key, len(data))
        own = keys_of(method, len(data))
        each = [method] * len(data) if own is None else [keyed(method, k) for k in own]
        triples = zip(data.series, each, keys, strict=True)
        return [_reported(m, model, s, _draw(model, s, m, k, draws)) for s, m, k in triples]
    return _reported(method, model, data, _draw(model, data, method, key, draws))


def _draw(model: Any, series: Series, method: Any, key: Array, draws: int) -> Any:
    """Draws by the method, or where it says so by its posterior, which can warn outside of a program."""
    if getattr(method, "posterior_draws", False):
        return _run(model, series, method, "smoothed").sample(key, draws)
    return _sample(model, series, method, key, draws)


@eqx.filter_jit
def _sample(model: Any, series: Series, method: Any, key: Array, draws: int) -> Array:
    return method.sample_states(model, series, key, draws)


def forecast(
    model: Any,
    data: Any,
    steps: int | None = None,
    *,
    times: Any = None,
    inputs: Any = None,
    method: Any = None,
    key: PRNGKeyArray | None = None,
) -> Any:
    """The law of observations after the data, or at any times between them.

    Args:
        model: a model that the method fits.
        data: a recording.
        steps: how many moments after the last, on regular times.
        times: the moments instead, shape ``(h,)``, numbers or dates; inside or outside the data. A
            moment that was observed is predicted as a new observation of the same state.
        inputs: shape ``(h, k)``, where the model uses inputs.
        method: if None, the exact one for the model, else by particles.
        key: source of randomness, where the method draws at random.

    Raises:
        TypeError: if the method does not fit the model, or ``data`` is a panel.
        ValueError: unless exactly one of ``steps`` and ``times`` is given; if inputs are missing or do not
            fit; if ``steps`` is given and the times are irregular; if the method is random and there is no
            ``key``.
    """
    method, series = _checked(model, data, method, key)
    if isinstance(series, Panel):
        raise TypeError("`forecast` takes one recording: call it for each of a panel.")
    wanted = query(series, steps, times, inputs)
    merged, rows = merge(series.drop_labels(), wanted)
    made = _forecast(model, merged, to_jax(rows), method)
    _reported(method, model, merged, made)
    return made.at(wanted.times, wanted.labels)


@eqx.filter_jit
def _forecast(model: Any, series: Series, rows: Array, method: Any) -> Any:
    return method.forecast(model, series, rows)


def online(
    model: Any, method: Any = None, *, dt: float = 1.0, key: PRNGKeyArray | None = None
) -> Any:
    """A filter that is fed one observation at a time, for use while the recording goes on.

    It gives what :func:`statespace.filter` gives, in constant memory; ``update`` is one compiled call.

    Args:
        model: a model that the method fits.
        method: if None, the exact one for the model, else by particles.
        dt: time between observations where ``update`` is given no time; also the ``dt`` of the first step.
        key: source of randomness, where the method draws at random.

    Raises:
        TypeError: if the method does not fit the model.
        ValueError: if ``dt`` is not positive; if the method is random and there is no ``key``.

    Example:
        >>> decoder = ss.online(model)
        >>> state = decoder.init()
        >>> for y in stream:
        ...     state = decoder.update(state, y)
        ...     act(state.mean)
    """
    if not (np.isfinite(dt) and dt > 0):
        raise ValueError(f"`dt` must be positive, got {dt}.")
    method = with_key(method_for(model, method), model, key)
    return method.online(model, float(dt))


def _posterior(model: Any, data: Any, method: Any, kind: str, key: Any) -> Any:
    method = method_for(model, method, smooths=kind == "smoothed")
    method, data = _checked(model, data, method, key)
    plain = data.drop_labels()
    if isinstance(data, Panel):
        padded = _run_panel(model, plain, method, kind)
        _reported(method, model, data, padded)
        require_possible(model, padded)
        return PanelPosterior(padded, model, plain.inputs, data.lengths, data.labels)
    posterior = _run(model, plain, method, kind)
    _reported(method, model, data, posterior)
    require_possible(model, posterior)
    return posterior.labelled(data.labels)


@eqx.filter_jit
def _run(model: Any, series: Series, method: Any, kind: str) -> Any:
    return with_components(model, method.posterior(model, series, kind), series.inputs)


@eqx.filter_jit
def _run_panel(model: Any, panel: Panel, method: Any, kind: str) -> Any:
    one = lambda series, key: keyed(method, key).posterior(model, series, kind)
    return each_recording(one, model, method, stacked(panel), keys_of(method, len(panel)))


def _reported(method: Any, model: Any, data: Series | Panel, result: Any) -> Any:
    """The result, of which the user is told if arithmetic broke down on the way to it."""
    if hasattr(method, "breakdown"):
        report(method, model, data, result)
    warn_unless_converged(method, getattr(result, "convergence", None))
    return result


def _checked(model: Any, data: Any, method: Any, key: Any = None) -> tuple[Any, Series | Panel]:
    """The method, with its source of randomness, and the data, if they go with the model."""
    method, data = with_key(method_for(model, method), model, key), as_data(data)
    method.check(model, data)
    return method, data
