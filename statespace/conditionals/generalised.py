"""Observations whose channels follow generalised linear models of the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from statespace.checks import require_finite, require_positive
from statespace.conditionals.affine import Part
from statespace.densities import check_law, reads_nan
from statespace.emissions.families import FAMILIES
from statespace.model import Step
from statespace.parameters import as_array, constant, parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

_EXTRAS = ("scale", "df", "concentration", "trials", "exposure")


class _Kind(NamedTuple):
    """A family of laws of one channel.

    Attributes:
        links: the law's argument as functions of the predictor, by the name of the inverse link; the first is
            the default.
        needs: which of the further arguments there must be.
        allows: which there may be besides.
        support: what an observation must be, in words, and whether values are, given the trials.
        law: from the conditional and the law's argument ``(m,)`` to the laws of the channels.
    """

    links: dict[str, Callable[[Array], Array]]
    needs: tuple[str, ...]
    allows: tuple[str, ...]
    support: tuple[str, Callable[[np.ndarray, Any], np.ndarray]]
    law: Callable[[Any, Array], Distribution]


class GeneralisedLinear(eqx.Module):
    """Independent channels, each with a law that depends on the state through ``η = C x + d`` alone.

    Families by name, with the meaning of the predictor η under the default link:

    * "poisson": counts; η is the log rate. ``exposure`` is a factor of the rate.
    * "negative_binomial": counts of variance ``mean + mean² / concentration``; η is the log mean.
    * "bernoulli": 0 or 1; η is the log odds of 1.
    * "binomial": successes in ``trials``; η is the log odds.
    * "gaussian": η is the mean; standard deviation ``scale``.
    * "student_t": η is the location; ``scale`` and degrees of freedom ``df``.

    As any observation it is a function of state and step that gives a NumPyro distribution. Methods that
    know it need expectations over one number for each channel, in place of the whole state.

    Args:
        matrix: loadings C, shape ``(m, n)``; or a function of the step that gives them.
        offset: d, shape ``(m,)``; a function of the step where it varies or follows inputs; None for zero.
        family: one of the above; or a function from predictors ``(m,)`` to a NumPyro distribution of batch
            shape ``(m,)``, elementwise: ``OrderedLogistic`` for ordinal data, ``CategoricalLogits`` for
            categories 0, 1, 2 … A function that is an ``equinox.Module`` may have parameters.
        link: the mean as a function of the predictor, of a named family. "poisson" and "negative_binomial":
            "exp" (default), "softplus", "sigmoid"; "bernoulli" and "binomial": "sigmoid" (default), "exp",
            "softplus" (of whether there was any event at such a rate); "gaussian" and "student_t":
            "identity" (default), "exp", "softplus", "sigmoid".
        scale: standard deviation ("gaussian") or scale ("student_t"), shape ``(m,)`` or ``()``.
        df: degrees of freedom of "student_t", shape ``(m,)`` or ``()``.
        concentration: of "negative_binomial", shape ``(m,)`` or ``()``; the larger, the nearer to Poisson.
        trials: of "binomial", whole numbers of shape ``(m,)`` or ``()``.
        exposure: of "poisson" and "negative_binomial", such as the width of a bin, shape ``(m,)`` or ``()``.

    Raises:
        ValueError: if there is no such family or link, an argument is missing or belongs to another family,
            shapes do not fit, or a value is not positive.
        TypeError: if the family is neither a name nor a function.

    References:
        McCullagh & Nelder (1989), Generalized Linear Models; Durbin & Koopman (2012), Time Series Analysis by
        State Space Methods, chapter 9 (exponential family and heavy-tailed observations of a linear signal).
    """

    family: str | None = eqx.field(static=True)
    link: str | None = eqx.field(static=True)
    custom: Callable[[Array], Distribution] | None
    matrix: Part = parameter(converter=lambda value: _part(value))
    offset: Part | None = parameter(converter=lambda value: None if value is None else _part(value))
    scale: Float[Array, "*m"] | None = parameter("positive", converter=lambda v: _optional(v))
    df: Float[Array, "*m"] | None = parameter("positive", converter=lambda v: _optional(v))
    concentration: Float[Array, "*m"] | None = parameter(
        "positive", converter=lambda v: _optional(v)
    )
    trials: Int[Array, "*m"] | None = constant(converter=lambda v: _whole(v))
    exposure: Float[Array, "*m"] | None = constant(converter=lambda v: _optional(v))

    def __init__(
        self,
        matrix: Any,
        offset: Any = None,
        family: str | Callable[[Array], Distribution] = "poisson",
        *,
        link: str | None = None,
        scale: Any = None,
        df: Any = None,
        concentration: Any = None,
        trials: Any = None,
        exposure: Any = None,
    ):
        self.matrix, self.offset = matrix, offset
        self.scale, self.df, self.concentration = scale, df, concentration
        self.trials, self.exposure = trials, exposure
        if isinstance(family, str):
            if family not in _KINDS:
                raise ValueError(
                    f"`family` of GeneralisedLinear must be one of {', '.join(map(repr, _KINDS))}, or a "
                    "function of the predictors that gives a NumPyro distribution (OrderedLogistic for "
                    f"ordinal data, CategoricalLogits for categories), got {family!r}."
                )
            self.family, self.custom = family, None
            self.link = next(iter(_KINDS[family].links)) if link is None else link
        elif not callable(family) or isinstance(family, type):
            raise TypeError(
                "`family` of GeneralisedLinear must be a name or a function of the predictors that gives a "
                f"NumPyro distribution, got {family!r}."
            )
        else:
            self.family, self.custom, self.link = None, family, link

    def __check_init__(self) -> None:
        given = {name for name in _EXTRAS if getattr(self, name) is not None}
        kind = _CUSTOM if self.family is None else _KINDS[self.family]
        if self.link is not None and self.link not in kind.links:
            names = ", ".join(map(repr, kind.links)) or "None"
            raise ValueError(f"`link` of {self._words} must be one of {names}, got {self.link!r}.")
        for name in sorted(set(kind.needs) - given):
            raise ValueError(f"{self._words} needs `{name}`.")
        for name in sorted(given - {*kind.needs, *kind.allows}):
            raise ValueError(f"`{name}` does not belong to {self._words}; leave it out.")
        self._check_shapes(given)

    def _check_shapes(self, given: set[str]) -> None:
        if not callable(self.matrix) and self.matrix.ndim != 2:
            raise ValueError(
                f"`matrix` of GeneralisedLinear must have shape (m, n), got {self.matrix.shape}."
            )
        for name in ("matrix", "offset"):
            part = getattr(self, name)
            if part is not None and not callable(part):
                require_finite(name, part, "GeneralisedLinear")
        m = self.channels
        parts = {} if self.offset is None or callable(self.offset) else {"offset": ((m,),)}
        for name, shapes in {**parts, **dict.fromkeys(sorted(given), ((), (m,)))}.items():
            value = getattr(self, name)
            fits = value.ndim <= 1 if m is None else value.shape in shapes
            if not fits:
                words = " or ".join(map(str, shapes))
                raise ValueError(
                    f"`{name}` of GeneralisedLinear must have shape {words}, one for each row of `matrix`, "
                    f"got {value.shape}."
                )
            if name != "offset":
                require_positive(name, value, "GeneralisedLinear", zero=False)

    @property
    def channels(self) -> int | None:
        """Number m of channels; None where the loadings are a function of the step."""
        return None if callable(self.matrix) else int(self.matrix.shape[0])

    @property
    def log_concave(self) -> bool:
        """Whether the log density of every observation is known to be concave in the predictor."""
        return (self.family, self.link) in _LOG_CONCAVE

    def predictor(self, step: Step) -> tuple[Float[Array, "m n"], Float[Array, " m"]]:
        """Loadings and offset of the predictors ``η = C x + d`` at one step."""
        matrix = _evaluate(self.matrix, step)
        if self.offset is None:
            return matrix, jnp.zeros(matrix.shape[0], matrix.dtype)
        return matrix, jnp.broadcast_to(_evaluate(self.offset, step), matrix.shape[:1])

    def law_of(self, eta: Float[Array, " m"], step: Step) -> Distribution:
        """The distribution of the m channels, given their predictors.

        Raises:
            ValueError: if a function in place of a family gives anything but m distributions of numbers.
        """
        if self.custom is None:
            kind = _KINDS[self.family]
            return kind.law(self, kind.links[self.link](eta)).to_event(1)
        law = self.custom(eta)
        if tuple(law.batch_shape) != eta.shape or (law.event_shape and not reads_nan(law)):
            raise ValueError(
                f"`family` of GeneralisedLinear must give a distribution of batch shape {eta.shape} and "
                f"event shape (), got {tuple(law.batch_shape)} and {tuple(law.event_shape)}: one law for "
                "each predictor, without `to_event`."
            )
        return law.to_event(1)

    def __call__(self, state: Float[Array, " n"], step: Step) -> Distribution:
        """The distribution of the observation."""
        matrix, offset = self.predictor(step)
        return self.law_of(matrix @ state + offset, step)

    def check(self, y: Any) -> None:
        """Refuse observations that no state can make, before anything is traced; NaN passes.

        Raises:
            ValueError: naming the number of channels, or the first such entry.
        """
        if self.custom is not None:
            if self.channels is not None:
                eta = {"predictors": jnp.zeros(self.channels)}
                check_law(self.custom, eta, np.asarray(y), "`family` of GeneralisedLinear")
            return
        if self.channels is not None and y.shape[-1] != self.channels:
            raise ValueError(
                f"the data have {y.shape[-1]} channel{'s' * (y.shape[-1] != 1)}, but `observation` of the "
                f"model is GeneralisedLinear with a `matrix` of {self.channels} rows."
            )
        if isinstance(y, jax.core.Tracer):
            return
        words, inside = _KINDS[self.family].support
        values = np.asarray(y)
        trials = None if self.trials is None else np.asarray(self.trials)
        bad = np.argwhere(~(np.isnan(values) | inside(values, trials)))
        if len(bad):
            first = tuple(bad[0].tolist())
            raise ValueError(
                f"observations of {self._words} must be {words} (NaN where missing), but y"
                f"[{', '.join(map(str, first))}] is {values[first]:g} ({len(bad)} such entries)."
            )

    @property
    def _words(self) -> str:
        return f"GeneralisedLinear with the family {self.family or 'of a function'!r}"


def _counts(y: np.ndarray, trials: Any) -> np.ndarray:
    return (y == np.round(y)) & (y >= 0)


def _log_mean(owner: GeneralisedLinear, log_mean: Array) -> Array:
    return log_mean if owner.exposure is None else log_mean + jnp.log(owner.exposure)


def _poisson(owner: GeneralisedLinear, log_mean: Array) -> Distribution:
    from statespace.emissions.laws import LogPoisson

    return LogPoisson(_log_mean(owner, log_mean))


def _negative_binomial(owner: GeneralisedLinear, log_mean: Array) -> Distribution:
    from numpyro.distributions import NegativeBinomialLogits

    logits = _log_mean(owner, log_mean) - jnp.log(owner.concentration)
    return NegativeBinomialLogits(jnp.broadcast_to(owner.concentration, logits.shape), logits)


def _bernoulli(owner: GeneralisedLinear, logits: Array) -> Distribution:
    from statespace.emissions.laws import LogitBernoulli

    return LogitBernoulli(logits)


def _binomial(owner: GeneralisedLinear, logits: Array) -> Distribution:
    from statespace.emissions.laws import LogitBinomial

    return LogitBinomial(logits, jnp.broadcast_to(owner.trials, logits.shape))


def _normal(owner: GeneralisedLinear, mean: Array) -> Distribution:
    from numpyro.distributions import Normal

    return Normal(mean, owner.scale)


def _student_t(owner: GeneralisedLinear, location: Array) -> Distribution:
    from numpyro.distributions import StudentT

    return StudentT(owner.df, location, owner.scale)


_COUNT_LINKS = FAMILIES["poisson"].links
_ODDS_LINKS = FAMILIES["bernoulli"].links
_REAL_LINKS = FAMILIES["gaussian"].links
_REAL = ("numbers", lambda y, trials: np.isfinite(y))
_CUSTOM = _Kind({}, (), (), ("", _counts), _normal)
_KINDS: dict[str, _Kind] = {
    "poisson": _Kind(_COUNT_LINKS, (), ("exposure",), ("counts 0, 1, 2 …", _counts), _poisson),
    "negative_binomial": _Kind(
        _COUNT_LINKS,
        ("concentration",),
        ("exposure",),
        ("counts 0, 1, 2 …", _counts),
        _negative_binomial,
    ),
    "bernoulli": _Kind(
        _ODDS_LINKS, (), (), ("0 or 1", lambda y, trials: (y == 0) | (y == 1)), _bernoulli
    ),
    "binomial": _Kind(
        _ODDS_LINKS,
        ("trials",),
        (),
        (
            "integers from 0 to the number of trials",
            lambda y, trials: _counts(y, None) & (y <= trials),
        ),
        _binomial,
    ),
    "gaussian": _Kind(_REAL_LINKS, ("scale",), (), _REAL, _normal),
    "student_t": _Kind(_REAL_LINKS, ("df", "scale"), (), _REAL, _student_t),
}


_LOG_CONCAVE = {
    ("poisson", "exp"),
    ("poisson", "softplus"),
    ("negative_binomial", "exp"),
    *((family, link) for family in ("bernoulli", "binomial") for link in _ODDS_LINKS),
    ("gaussian", "identity"),
}


def _part(value: Any) -> Part:
    return value if callable(value) else as_array(value)


def _evaluate(part: Part, step: Step) -> Array:
    return jnp.asarray(part(step)) if callable(part) else part


def _optional(value: Any) -> Array | None:
    return None if value is None else as_array(value)


def _whole(trials: Any) -> Array | None:
    if trials is None or (isinstance(trials, jax.Array) and trials.dtype.kind == "i"):
        return trials
    values = np.asarray(trials)
    if not np.all(values == np.round(values)):
        raise ValueError(f"`trials` of GeneralisedLinear must be whole numbers, got {values}.")
    return jnp.asarray(values.astype(int))
