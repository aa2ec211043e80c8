"""The verbs: functions that are the same for every model."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains import gaussian
from statespace.learners.fit import fit
from statespace.learners.likelihood import bare, smooth_recordings, stacked
from statespace.learners.likelihood import log_likelihood as _log_likelihood
from statespace.methods.kalman import Kalman
from statespace.methods.lowering import at, steps_of
from statespace.model import check_key, check_model
from statespace.panels import PanelPosterior, with_components
from statespace.posterior import Forecast, GaussianPosterior
from statespace.prediction import merge, query
from statespace.series import Panel, Series, as_data

__all__ = [
    "Simulation",
    "filter",
    "fit",
    "forecast",
    "log_likelihood",
    "sample_states",
    "simulate",
    "smooth",
]


class Simulation(NamedTuple):
    """A draw of states and observations."""

    states: Float[Array, "T n"]
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
        initial_state: shape ``(n,)``: the first state, in place of a draw from ``initial``.

    Returns:
        ``states`` ``(T, n)`` and ``y`` ``(T, m)``.

    Raises:
        ValueError: if the number of moments is not positive, or ``initial`` is diffuse and no
            ``initial_state`` is given.
    """
    if isinstance(data, (int, np.integer)):
        if data < 1:
            raise ValueError(
                f"`data` must be a recording or a positive number of moments, got {data}."
            )
        times = np.arange(float(data)) if times is None else times
        series = Series.unobserved(times, inputs)
    else:
        given = as_data(data, times, inputs)
        if isinstance(given, Panel):
            raise TypeError(
                "`simulate` draws one recording at a time: call it for each of a panel."
            )
        series = given
    check_model(model)
    check_key(key)
    first = None if initial_state is None else jnp.asarray(initial_state)
    return Simulation(*_simulate(model, series.drop_labels(), key, first))


@eqx.filter_jit
def _simulate(model: Any, series: Series, key: Array, first: Array | None) -> tuple[Array, Array]:
    steps, _ = steps_of(series)
    keys = jax.random.split(key, 2 * len(series))
    if first is None:
        law = model.initial
        law = law if hasattr(law, "sample") else law(at(steps, 0))
        first = law.sample(keys[0])

    def observe(x: Array, step: Any, key: Array) -> Array:
        return model.observation(x, step).sample(key)

    def move(x: Array, at: tuple) -> tuple[Array, tuple[Array, Array]]:
        step, k1, k2 = at
        x = model.transition(x, step).sample(k1).astype(x.dtype)
        return x, (x, observe(x, step, k2))

    y0 = observe(first, at(steps, 0), keys[1])
    later = jax.tree.map(lambda x: x[1:], steps)
    _, (states, y) = jax.lax.scan(move, first, (later, keys[2::2], keys[3::2]))
    return jnp.concatenate([first[None], states]), jnp.concatenate([y0[None], y])


def log_likelihood(model: Any, data: Any, *, method: Kalman | None = None) -> Float[Array, ""]:
    """``log p(y)`` with the states integrated out; of a panel, the sum over its recordings.

    Differentiable in the model's parameters, also under ``jit`` and ``vmap``. With exactly diffuse initial
    states it is the diffuse likelihood of Durbin & Koopman (2012, section 7.2.2).

    Args:
        model: a model that the method fits.
        data: a recording, or a list of independent ones.
        method: ``Kalman()`` if None.

    Raises:
        TypeError: if the method does not fit the model; the conditional at fault is named.
        ValueError: if shapes do not fit or the data are impossible.
    """
    return _likelihood(model, bare(data), _method(model, method))


_likelihood = eqx.filter_jit(_log_likelihood)


def filter(
    model: Any, data: Any, *, method: Kalman | None = None
) -> GaussianPosterior | PanelPosterior:
    """The law of each state given the observations up to its moment.

    Args:
        model: a model that the method fits.
        data: a recording, or a list of independent ones.
        method: ``Kalman()`` if None.

    Returns:
        A posterior; of a panel, a sequence of them.

    Raises:
        TypeError: if the method does not fit the model; the conditional at fault is named.
        ValueError: if shapes do not fit.
    """
    return _posterior(model, data, method, "filtered")


def smooth(
    model: Any, data: Any, *, method: Kalman | None = None
) -> GaussianPosterior | PanelPosterior:
    """The law of each state given all observations, with lag-one covariances.

    Args:
        model: a model that the method fits.
        data: a recording, or a list of independent ones.
        method: ``Kalman()`` if None.

    Returns:
        A posterior; of a panel, a sequence of them.

    Raises:
        TypeError: if the method does not fit the model; the conditional at fault is named.
        ValueError: if shapes do not fit.
    """
    return _posterior(model, data, method, "smoothed")


def sample_states(
    model: Any, data: Any, *, key: PRNGKeyArray, draws: int = 1, method: Kalman | None = None
) -> Float[Array, "draws T n"] | list[Float[Array, "draws T n"]]:
    """Joint draws of all states given all observations, exact.

    Args:
        model: a model that the method fits.
        data: a recording, or a list of independent ones.
        key: source of randomness.
        draws: how many trajectories.
        method: ``Kalman()`` if None.

    Returns:
        Shape ``(draws, T, n)``; of a panel, a list of them.

    Raises:
        TypeError: if the method does not fit the model.
        ValueError: if shapes do not fit or ``draws`` is not positive.
    """
    if draws < 1:
        raise ValueError(f"`draws` must be positive, got {draws}.")
    check_key(key)
    method, data = _method(model, method), bare(data)
    if isinstance(data, Panel):
        keys = jax.random.split(key, len(data))
        return [_sample(model, s, method, k, draws) for s, k in zip(data.series, keys, strict=True)]
    return _sample(model, data, method, key, draws)


@eqx.filter_jit
def _sample(model: Any, series: Series, method: Kalman, key: Array, draws: int) -> Array:
    chain, how = method.lower(model, series)
    return gaussian.sample(chain, key, draws, **how)


def forecast(
    model: Any,
    data: Any,
    steps: int | None = None,
    *,
    times: Any = None,
    inputs: Any = None,
    method: Kalman | None = None,
) -> Forecast:
    """The law of observations after the data, or at any times between them.

    Args:
        model: a model that the method fits.
        data: a recording.
        steps: how many moments after the last, on regular times.
        times: the moments instead, shape ``(h,)``, numbers or dates; inside or outside the data. A
            moment that was observed is predicted as a new observation of the same state.
        inputs: shape ``(h, k)``, where the model uses inputs.
        method: ``Kalman()`` if None.

    Raises:
        TypeError: if the method does not fit the model, or ``data`` is a panel.
        ValueError: unless exactly one of ``steps`` and ``times`` is given; if inputs are missing or do not
            fit; if ``steps`` is given and the times are irregular.
    """
    series = as_data(data)
    if isinstance(series, Panel):
        raise TypeError("`forecast` takes one recording: call it for each of a panel.")
    method = _method(model, method)
    wanted = query(series, steps, times, inputs)
    merged, rows = merge(series.drop_labels(), wanted)
    chain, how, state, mean, covariance = _forecast(model, merged, jnp.asarray(rows), method)
    labels = wanted.labels
    posterior = GaussianPosterior(
        **state,
        chain=chain,
        rows=jnp.asarray(rows),
        kind="smoothed",
        labels=labels,
        form=how["form"],
        parallel=how["parallel"],
    )
    return Forecast(mean, covariance, wanted.times, state=posterior, labels=labels)


@eqx.filter_jit
def _forecast(model: Any, series: Series, rows: Array, method: Kalman) -> tuple:
    chain, how = method.lower(model, series)
    smoothed = gaussian.smooth(chain, **how)
    mean, covariance = gaussian.observations(
        chain, smoothed.mean, smoothed.covariance, form=how["form"]
    )
    state = {
        "mean": smoothed.mean[rows],
        "covariance": smoothed.covariance[rows],
        "times": series.times[rows],
        "state_names": _state_names(model),
    }
    return chain, how, state, mean[rows], covariance[rows]


def _posterior(model: Any, data: Any, method: Kalman | None, kind: str) -> Any:
    method, data = _method(model, method), as_data(data)
    plain = data.drop_labels()
    if isinstance(data, Panel):
        padded = _run_panel(model, plain, method, kind)
        return PanelPosterior(padded, model, plain.inputs, data.lengths, data.labels)
    return dataclasses.replace(_run(model, plain, method, kind), labels=data.labels)


@eqx.filter_jit
def _run(model: Any, series: Series, method: Kalman, kind: str) -> GaussianPosterior:
    return with_components(model, _unlabelled(model, series, method, kind), series.inputs)


@eqx.filter_jit
def _run_panel(model: Any, panel: Panel, method: Kalman, kind: str) -> GaussianPosterior:
    def one(series: Series) -> GaussianPosterior:
        return _unlabelled(model, series, method, kind)

    return smooth_recordings(one, model, stacked(panel))


def _unlabelled(model: Any, series: Series, method: Kalman, kind: Any) -> GaussianPosterior:
    chain, how = method.lower(model, series)
    state: Any
    if kind == "smoothed":
        filtered, state = gaussian.filter_and_smooth(chain, **how)
    else:
        filtered = state = gaussian.filter(chain, **how)
    return GaussianPosterior(
        mean=state.mean,
        covariance=state.covariance,
        times=series.times,
        log_likelihood=filtered.log_likelihood,
        pointwise=filtered.pointwise,
        predicted_mean=filtered.observation_mean,
        predicted_covariance=filtered.observation_covariance,
        y=series.channels,
        lag_one=getattr(state, "lag_one", None),
        chain=chain,
        kind=kind,
        state_names=_state_names(model),
        form=how["form"],
        parallel=how["parallel"],
    )


def _method(model: Any, method: Kalman | None) -> Kalman:
    """The method to use: the given one, or the exact one."""
    check_model(model)
    if method is None:
        return Kalman()
    if not isinstance(method, Kalman):
        raise TypeError(f"`method` must be a method such as Kalman(), got {method!r}.")
    return method


def _state_names(model: Any) -> tuple[str, ...] | None:
    names = getattr(model, "state_names", None)
    return None if names is None else tuple(names)
