"""Decoders from recordings whose states are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.conditionals.discriminative import Discriminative
from statespace.decoding.kernel import NadarayaWatson
from statespace.decoding.network import BoundedCovariance, descend
from statespace.decoding.regressor import Moments, Predictor
from statespace.learners.likelihood import recordings
from statespace.methods.discriminative_kalman import DiscriminativeKalman
from statespace.model import Model
from statespace.parameters import constrain, unconstrain
from statespace.series import Panel, Series, as_data


def learn_decoder(
    states: Any,
    y: Any,
    *,
    regression: Any = None,
    covariance: Any = None,
    rule: str = "clip",
    transition: Any = None,
    held_out: float = 0.3,
    refit: bool = True,
    key: PRNGKeyArray | None = None,
) -> Model:
    """A model with a discriminative observation, from recordings whose states are known.

    The dynamics are those of least squares, ``x_t - m = A (x_{t-1} - m) + noise`` with the residuals'
    covariance; m and S, the mean and covariance of the states, are the law of the first state and the
    marginal. The mean f is regressed on one part of the moments and the covariance Q on the other, by the
    outer products of the residuals that f leaves there (Burkhart et al. 2020, section 2.3). Then f is fitted
    to all of them.

    Args:
        states: shape ``(T, n)``; of several recordings a list.
        y: observations, shape ``(T, m)``, or whatever else holds a recording; of several recordings a list. A
            moment of which any channel is NaN is left out of the regressions.
        regression: of the states: a regressor of :mod:`statespace.decoding`, or any object with ``fit`` and
            ``predict``. Default: :class:`NadarayaWatson`.
        covariance: of the residuals' outer products: a regressor whose responses are matrices, such as
            ``Average()`` for a constant one; or "own", where the regression has a covariance of its own, as
            :class:`GaussianProcess` has. Default: ``NadarayaWatson(prior=1.0)``.
        rule: what happens where Q is not below S: see :class:`statespace.Discriminative`.
        transition: the dynamics, where they are known, as for irregular times.
        held_out: share of the moments for Q. They are the last ones of each recording, or with a key drawn at
            random.
        refit: whether f is at last fitted to all moments; if not, it is the one that Q was learned with.
        key: of that choice.

    Raises:
        TypeError: if ``regression`` cannot be fitted.
        ValueError: if states and observations do not go together, a state is not finite, or a coordinate of
            the states does not vary.

    Example:
        >>> model = ss.learn_decoder(velocity[:5000], counts[:5000])
        >>> decoded = ss.filter(model, counts[5000:]).mean
    """
    known, seen = _checked(states, y)
    regression = NadarayaWatson() if regression is None else regression
    if not callable(getattr(regression, "fit", None)) or isinstance(regression, type):
        raise TypeError(
            "`regression` of learn_decoder must be a regressor with `fit`, such as decoding.Ridge(), got "
            f"{regression!r}."
        )
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` must be a share inside (0, 1), got {held_out}.")
    every = np.concatenate(known)
    mean, marginal = every.mean(axis=0), np.cov(every.T, bias=True).reshape(2 * every.shape[1:])
    if transition is None:
        transition = _least_squares(known, mean)
    used, apart = _split(known, seen, held_out, key)
    f = _fitted(regression, *used)
    if isinstance(covariance, str):
        if covariance != "own" or not hasattr(f, "covariance"):
            raise ValueError(
                '`covariance` of learn_decoder must be a regressor, or "own" with a regression that has one, '
                f"got {covariance!r} with {type(regression).__name__}."
            )
    else:
        q = NadarayaWatson(prior=1.0) if covariance is None else covariance
        if isinstance(q, BoundedCovariance) and q.marginal is None:
            q = dataclasses.replace(q, marginal=jnp.asarray(marginal))
        residuals = apart[1] - np.asarray(jax.vmap(f)(jnp.asarray(apart[0])))
        q = q.fit(apart[0], residuals[:, :, None] * residuals[:, None, :])
    if refit:
        # what it found stays, such as a bandwidth
        again = regression if isinstance(f, Predictor) else f
        f = _fitted(again, *(np.concatenate(part) for part in zip(used, apart)))
    q = f.covariance if isinstance(covariance, str) else q
    observation = Discriminative(Moments(f, q), (mean, marginal), rule)
    return Model(Gaussian(mean, covariance=marginal), transition, observation)


def train(
    model: Model,
    states: Any,
    y: Any,
    *,
    iterations: int = 300,
    learning_rate: float = 0.01,
    validation: float = 0.2,
    patience: int = 100,
) -> Model:
    """The same decoder, its regression trained end to end: through the filter, on states that are known.

    What is raised is the mean of ``log p(x_t | y_0 … y_t)`` over the moments, the log score of the filtered
    states: f and Q come to be what the filter needs of them, not what describes one moment by itself. All
    free parameters of the regression move; examples that it keeps do not. The last part of each recording is
    kept apart, and the parameters that are best there are returned.

    Args:
        model: from :func:`learn_decoder`, with a regression of this library or another JAX module. With
            :class:`BoundedCovariance` no rule ever acts.
        states: as in :func:`learn_decoder`.
        y: as in :func:`learn_decoder`.
        iterations: steps of Adam at most.
        learning_rate: of Adam.
        validation: share of each recording that is kept apart.
        patience: steps without progress before it stops.

    Raises:
        TypeError: if the observation is not discriminative, or its regression has no derivatives.
        ValueError: if the regression has no parameters, or as in :func:`learn_decoder`.
    """
    from jax.scipy.stats import multivariate_normal

    if not isinstance(model.observation, Discriminative):
        raise TypeError(
            "`model` of train needs a Discriminative observation, got "
            f"{type(model.observation).__name__}."
        )
    if not 0 < validation < 1:
        raise ValueError(f"`validation` must be a share inside (0, 1), got {validation}.")
    regression = model.observation.regression
    parts = jax.tree.leaves(regression, is_leaf=lambda part: isinstance(part, Predictor))
    if any(isinstance(part, Predictor) for part in parts):
        raise TypeError("the regression of the model is another library's: it has no derivatives.")
    free = unconstrain(regression)
    if not free:
        raise ValueError(
            f"the regression of the model, a {type(regression).__name__}, has no parameters to train."
        )
    known, seen = _checked(states, y)
    cuts = [int(len(x) * (1 - validation)) for x in known]
    method = DiscriminativeKalman(parallel=False)

    def rows(part: Any) -> tuple[Any, Any]:
        values = [Series(o[part(cut)]) for o, cut in zip(seen, cuts)]
        held = [x[part(cut)] for x, cut in zip(known, cuts)]
        longest = max(len(x) for x in held)
        padded = [np.pad(x, ((0, longest - len(x)), (0, 0)), constant_values=np.nan) for x in held]
        return recordings(Panel(values))[0], jnp.asarray(np.stack(padded))

    def loss(free: Any, rows: tuple[Any, Any]) -> Any:
        observation = eqx.tree_at(
            lambda o: o.regression, model.observation, constrain(regression, free)
        )
        trained = eqx.tree_at(lambda m: m.observation, model, observation)

        def score(series: Series, states: Any) -> Any:
            law = method.posterior(trained, series, "filtered")
            real = ~jnp.isnan(states[:, 0])
            at = jnp.where(real[:, None], states, 0)
            each = jax.vmap(multivariate_normal.logpdf)(at, law.mean, law.covariance)
            return jnp.sum(jnp.where(real, each, 0)), jnp.sum(real)

        totals, counts = jax.vmap(score)(*rows)
        return -jnp.sum(totals) / jnp.sum(counts)

    first, last = rows(lambda cut: slice(None, cut)), rows(lambda cut: slice(cut, None))
    best = descend(loss, free, first, last, iterations, learning_rate, patience)
    observation = eqx.tree_at(
        lambda o: o.regression, model.observation, constrain(regression, best)
    )
    return eqx.tree_at(lambda m: m.observation, model, observation)


def _checked(states: Any, y: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """States and observations of each recording."""
    data = as_data(y)
    series = data.series if isinstance(data, Panel) else [data]
    given = list(states) if isinstance(data, Panel) else [states]
    known = [np.asarray(x, float) for x in given]
    known = [x[:, None] if x.ndim == 1 else x for x in known]
    seen = [np.asarray(s.channels, float) for s in series]
    shapes = [x.shape for x in known], [o.shape for o in seen]
    alike = len(known) == len(seen) and all(
        x.ndim == 2 and len(x) == len(o) for x, o in zip(known, seen)
    )
    if not alike:
        raise ValueError(
            "`states` must have one row (n,) for each moment of `y`, got shapes "
            f"{', '.join(map(str, shapes[0]))} for observations {', '.join(map(str, shapes[1]))}."
        )
    if not all(np.isfinite(x).all() for x in known):
        raise ValueError("`states` must be finite: leave out moments at which they are not known.")
    varying = np.ptp(np.concatenate(known), axis=0) > 0
    if not varying.all():
        raise ValueError(
            f"coordinate {int(np.flatnonzero(~varying)[0])} of `states` does not vary: leave it out."
        )
    return known, seen


def _least_squares(known: list[np.ndarray], mean: np.ndarray) -> AffineGaussian:
    before = np.concatenate([x[:-1] for x in known]) - mean
    after = np.concatenate([x[1:] for x in known]) - mean
    if len(before) <= before.shape[1]:
        raise ValueError(
            f"{len(before)} steps of `states` are too few to learn dynamics of {before.shape[1]} coordinates."
        )
    matrix = np.linalg.lstsq(before, after, rcond=None)[0].T
    left = after - before @ matrix.T
    return AffineGaussian(matrix, mean - matrix @ mean, covariance=left.T @ left / len(left))


def _split(
    known: list[np.ndarray], seen: list[np.ndarray], held_out: float, key: Any
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Observations and states for f, and those for Q."""
    used: list[tuple[np.ndarray, np.ndarray]] = []
    apart: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (x, y) in enumerate(zip(known, seen)):
        whole = np.flatnonzero(~np.isnan(y).any(axis=1))
        if key is not None:
            whole = np.asarray(jax.random.permutation(jax.random.fold_in(key, i), whole))
        cut = round(len(whole) * (1 - held_out))
        used.append((y[whole[:cut]], x[whole[:cut]]))
        apart.append((y[whole[cut:]], x[whole[cut:]]))
    first, second = (tuple(np.concatenate(part) for part in zip(*pairs)) for pairs in (used, apart))
    return first, second  # type: ignore[return-value]


def _fitted(regression: Any, y: np.ndarray, states: np.ndarray) -> Any:
    """The regression of the states; another library's is called by its ``predict``."""
    made = regression.fit(y, states)
    return made if callable(made) else Predictor(made)
