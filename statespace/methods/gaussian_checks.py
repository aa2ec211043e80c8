"""Where Gaussian inference broke down, and why.

Two things go wrong in Gaussian arithmetic. A model's function gives a value or a slope that is not finite, at
a state that the filter came to; or rounding takes a covariance out of the positive definite ones. Results are
looked at where they can be, outside of tracing; for a bad one the filter is run again, to find the moment.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.chains import gaussian
from statespace.linearisation import SigmaPoints, mean_and_noise
from statespace.methods.lowering import at, steps_of
from statespace.posteriors.gaussian import Forecast, GaussianPosterior
from statespace.series import Panel, Series


class Breakdown(NamedTuple):
    """What failed first.

    Attributes:
        cause: the values or derivatives of a conditional at a state, a rule's points near it, or a
            covariance.
        moment: at which.
        conditional: its name.
        state: for which.
    """

    cause: Literal["values", "derivatives", "points", "covariance"]
    moment: int
    conditional: str = ""
    state: Any = None


def report(method: Any, model: Any, data: Series | Panel, result: Any) -> None:
    """Tell where a result is not to be trusted. Traced results pass.

    A log likelihood that is not finite is a warning only, since it is a number to compare with others; and so
    is a covariance that is not positive definite in a result that is finite.

    Args:
        method: with ``breakdown(model, series)``, which finds what failed first.
        model: a model.
        data: a recording, or a panel whose results have a leading axis.
        result: a posterior, a forecast, draws of states ``(draws, T, n)``, or a log likelihood ``()``.

    Raises:
        ValueError: if states are not finite: it names the first moment, what failed there, and the remedy.
    """
    leaves = jax.tree.leaves(eqx.filter((model, data, result), eqx.is_array))
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        return
    panel = isinstance(data, Panel)
    for i, series in enumerate(data.series if isinstance(data, Panel) else [data]):
        verdict = _verdict(result, i if panel else None, len(series))
        if verdict == "fine":
            continue
        found = method.breakdown(model, series.drop_labels())
        where = f"Recording {i}: " if panel else ""
        if verdict == "likelihood":
            if panel and found is None and i + 1 < len(data):
                continue  # the sum does not say which recording it was
            where = f"The log likelihood is {float(result)}. {where}"
        text = where + _explained(method, series, found, verdict)
        if verdict == "states":
            raise ValueError(text)
        warnings.warn(text, RuntimeWarning, stacklevel=4)
        if verdict == "likelihood":
            return


Verdict = Literal["fine", "likelihood", "states", "covariance"]


def _verdict(result: Any, recording: int | None, length: int) -> Verdict:
    """What of a result is not as it should be."""
    if isinstance(result, jax.Array):
        kind: Verdict = "states" if result.ndim else "likelihood"
        return "fine" if np.isfinite(result).all() else kind
    mean = np.asarray(result.mean)
    mean = mean if recording is None else mean[recording, :length]
    if not np.isfinite(mean).all():
        return "states"
    if not isinstance(result, GaussianPosterior | Forecast):
        return "fine"
    covariance = np.asarray(result.covariance)
    covariance = covariance if recording is None else covariance[recording, :length]
    if np.isnan(covariance).any():  # infinite it may be, where a state is diffuse
        return "states"
    form = "sqrt" if isinstance(result, Forecast) else result.form
    return "fine" if form == "sqrt" or definite(covariance) else "covariance"


def definite(covariance: Float[np.ndarray, "T n n"]) -> bool:
    """Whether covariances are positive semi-definite, but for what rounding explains.

    That is: variances are not negative, and no correlation matrix has an eigenvalue below minus the square
    root of the precision. States that are known exactly, or not at all, are left out.
    """
    tolerance = np.sqrt(np.finfo(covariance.dtype).eps)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    variance = np.where(np.isfinite(variance), variance, 0)
    if (variance < -tolerance * np.abs(variance).max(initial=0)).any():
        return False
    known = variance > 0
    sd = np.sqrt(np.where(known, variance, 1))
    correlation = np.where(known[:, :, None] & known[:, None, :], covariance, 0)
    correlation = correlation / (sd[:, :, None] * sd[:, None, :])
    rest = np.where(known, tolerance, 1)[:, :, None] * np.eye(sd.shape[1])
    try:
        np.linalg.cholesky(correlation + rest)
    except np.linalg.LinAlgError:
        return False
    return True


def first_failure(method: Any, model: Any, series: Series) -> Breakdown | None:
    """The first moment at which a filter of the Gaussian chain is not finite, or not positive definite.

    Args:
        method: with ``beginning(model, series)``, the chain whose filter it is.
        model: a model.
        series: a recording.
    """
    chain, how = eqx.filter_jit(method.beginning)(model, series)
    run = eqx.filter_jit(gaussian.filter)(chain, **how)
    mean, covariance = np.asarray(run.mean), np.asarray(run.covariance)
    fine = np.isfinite(mean).all(axis=1) & ~np.isnan(covariance).any(axis=(1, 2))
    fine &= np.isfinite(run.pointwise) & _finite(chain.potentials, len(fine))
    fine[1:] &= _finite(chain.transitions, len(fine) - 1)
    end = len(fine) if fine.all() else int(np.argmin(fine))
    if how["form"] == "covariance" and not definite(covariance[:end]):
        return Breakdown(
            "covariance", next(t for t in range(end) if not definite(covariance[t : t + 1]))
        )
    if end == len(fine):
        return None
    rule = isinstance(getattr(method, "linearisation", None), SigmaPoints)
    return _at_fault(chain, model, series, mean, end, rule) or Breakdown("covariance", end)


def _finite(parts: Any, length: int) -> np.ndarray:
    """At which moments arrays of a chain are finite, those of missing observations too."""
    each = [np.isfinite(np.asarray(x)) for x in jax.tree.leaves(parts)]
    flags = [x.reshape(len(x), -1).all(axis=1) for x in each]
    return np.all([np.broadcast_to(x, length) if len(x) == 1 else x for x in flags], axis=0)


def _at_fault(
    chain: gaussian.Chain, model: Any, series: Series, mean: np.ndarray, t: int, points: bool
) -> Breakdown | None:
    """The conditional that is not finite on the way to a moment's state; None if there is none."""
    step, state = at(steps_of(series)[0], t), np.asarray(chain.initial.mean)
    moves, sees = chain.transitions, chain.potentials
    if t:
        state = mean[t - 1]
        made = [np.asarray(x[min(t - 1, len(x) - 1)]) for x in moves]
        if cause := _cause(model.transition, step, state, "transition", made, points):
            return Breakdown(cause, t, "transition", state)
        state = made[0] @ state + made[1]
    parts = sees[:3] if isinstance(sees, gaussian.Observed) else sees
    made = [np.asarray(x[min(t, len(x) - 1)]) for x in parts]
    if cause := _cause(model.observation, step, state, "observation", made, points):
        return Breakdown(cause, t, "observation", state)
    return None


def _cause(
    conditional: Any, step: Any, state: np.ndarray, name: str, made: list[np.ndarray], points: bool
) -> Any:
    """What of a conditional is not finite at a state, of which these are the arrays of the chain."""
    bad = not all(np.isfinite(x).all() for x in made)
    if hasattr(conditional, "at") or not bad:
        return "values" if bad else None
    try:
        look = lambda x: mean_and_noise(conditional(x, step), "covariance", name)
        # compiled, because NumPyro refuses arguments that it can look at
        here, slope = jax.jit(lambda x: (look(x), jax.jacfwd(look)(x)))(jnp.asarray(state))
    except (TypeError, AttributeError, NotImplementedError):
        return "values"  # a law that is not known by its moments
    if not all(np.isfinite(x).all() for x in here):
        return "values"
    if points:
        return "points"
    return None if np.isfinite(slope[0]).all() else "derivatives"


def first_ensemble_failure(
    forecast: Float[Array, "T N n"], predicted: Float[Array, "T m"], filtered: Float[Array, "T N n"]
) -> Breakdown | None:
    """The same of an ensemble: members before an observation, what they predict of it, and after it."""
    parts = {"transition": forecast, "observation": predicted, "": filtered}
    fine = {
        name: np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1)
        for name, x in parts.items()
    }
    every = np.all(list(fine.values()), axis=0)
    if every.all():
        return None
    t = int(np.argmin(every))
    name = next(name for name in parts if not fine[name][t])
    if not name:
        return Breakdown("covariance", t)
    before = np.asarray(filtered[t - 1] if t and name == "transition" else forecast[t])
    return Breakdown("values", t, name, before.mean(axis=0))


def _explained(method: Any, series: Series, found: Breakdown | None, verdict: Verdict) -> str:
    """A breakdown in words, with its remedy."""
    from statespace.methods.iterated import IteratedSmoother

    name = type(method).__name__
    undamped = hasattr(method, "damping") and method.damping is None
    if found is None:
        what = {
            "covariance": "smoothed covariances are not positive definite, although filtered ones are",
            "states": "smoothed states are not finite, although filtered ones are",
            "likelihood": "the filter's own states are finite",
        }[verdict]
        remedy = '"levenberg-marquardt"' if isinstance(method, IteratedSmoother) else "0.5"
        iterates = f": its iterations diverge. Use `damping={remedy}` or"
        return f'{name}: {what}{iterates if undamped else ". Use"} `form="sqrt"`.'
    when = f"moment {found.moment} (time {float(series.times[found.moment]):g})"
    if found.cause == "covariance":
        ways = ['`form="sqrt"`, whose covariances cannot lose it'] * _has_covariances(
            method, series
        )
        ways += ["float64"] * (series.channels.dtype == np.float32)
        ways += ["`damping`"] * undamped
        ways += ["less spread at the start, or more noise in the model"]
        return (
            f"{name}: from {when} on a covariance is no longer positive definite; rounding has eaten it up, "
            f"or noise is missing in some direction. Use {', or '.join(ways)}."
        )
    what = "values" if found.cause == "points" else found.cause
    near = "near" if found.cause == "points" else "for"
    other = {"derivatives": "; SigmaPointKalman() needs no derivatives", "points": ", or Taylor()"}
    return (
        f"{name}: `{found.conditional}` of the model gives {what} that are not finite at {when}, {near} the "
        f"state {np.array2string(np.asarray(found.state), precision=4)}. Make it finite wherever the filter "
        "may come (clip the argument of a logarithm or root, not its value), or start closer to the truth"
        f"{other.get(found.cause, '')}."
    )


def _has_covariances(method: Any, series: Series) -> bool:
    form = getattr(method, "form", "sqrt")
    return form == "covariance" or (form is None and series.channels.dtype != np.float32)
