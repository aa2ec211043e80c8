"""What a learner returns."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from statespace.diagnostics import ResidualTests, residual_tests
from statespace.labels import channel_names
from statespace.learners.information import Uncertainty
from statespace.learners.likelihood import standardised_errors
from statespace.learners.problem import Problem
from statespace.learners.table import entries, header, number, table
from statespace.parameters import Frozen, parameters, supports
from statespace.probabilities import NoResiduals, tails
from statespace.series import Panel, Series

Result = TypeVar("Result", bound="FitResult")


class ConvergenceWarning(UserWarning):
    """A learner stopped before it had converged; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """A fitted model, and how it was found.

    A result may stand where a model is asked for as the start of another learner:
    ``ss.fit(result, data, learner=ss.NUTS())``.

    Attributes:
        model: the fitted model.
        data: what it was fitted to.
        learner: what found it, in words.
        log_likelihood: at the fitted parameters.
        log_prior: log density of the priors there; None without priors.
        converged: whether the learner is satisfied, and ``reason`` why it stopped.
        iterations: how many iterations it made.
        trace: log likelihood (plus log prior) as the learner went, one entry an iteration or a
            block of them.
        uncertainty: standard errors and covariance, or None where none were asked for.
        starts: the traces of all starts, where EM made several; ``trace`` is that of the best.
        log_likelihood_variance: variance of the logarithm of a single estimate, where the log likelihood is
            estimated by particles; None where it is exact.
    """

    model: Any
    data: Series | Panel
    learner: str
    log_likelihood: float
    log_prior: float | None
    converged: bool
    reason: str
    iterations: int
    trace: Float[np.ndarray, " i"]
    uncertainty: Uncertainty | None
    _problem: Problem
    starts: tuple[np.ndarray, ...] | None = dataclasses.field(default=None, kw_only=True)
    log_likelihood_variance: float | None = dataclasses.field(default=None, kw_only=True)

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The fitted parameters by name, the frozen ones included."""
        return {name: np.asarray(value) for name, value in parameters(self.model).items()}

    @property
    def free(self) -> list[str]:
        """Names of the parameters that were learned."""
        return list(parameters(self.model, frozen=False))

    @property
    def standard_errors(self) -> dict[str, np.ndarray]:
        """Standard errors of the learned parameters, of their shape.

        From the observed information (the Hessian of the log likelihood plus log prior at the
        maximum), by the delta method. NaN where the data leave a parameter undetermined. Empty when
        none were computed.
        """
        return {} if self.uncertainty is None else self.uncertainty.standard_errors

    @property
    def covariance(self) -> Float[np.ndarray, "k k"] | None:
        """Covariance of the learned parameters, flattened in the order of :attr:`free`."""
        return None if self.uncertainty is None else self.uncertainty.covariance

    @property
    def observations(self) -> int:
        """Number of moments at which something was observed."""
        return int(np.asarray(self.data.observed).any(axis=-1).sum())

    @property
    def degrees(self) -> int:
        """Number of quantities estimated: free parameters, and diffuse initial states.

        Directions of the parameters that change no probability, as those of logits, do not count.
        """
        free = sum(int(np.size(part)) for part in self._problem.free().values())
        free -= redundant_count(self.model, self.free)
        recordings = len(self.data) if isinstance(self.data, Panel) else 1
        return free + recordings * diffuse_count(self.model)

    @property
    def aic(self) -> float:
        """Akaike's information criterion (Durbin & Koopman 2012, section 7.4, not divided by T)."""
        return -2 * self.log_likelihood + 2 * self.degrees

    @property
    def bic(self) -> float:
        """Schwarz's information criterion (Durbin & Koopman 2012, section 7.4, not divided by T)."""
        return -2 * self.log_likelihood + self.degrees * float(np.log(self.observations))

    def interval(self, level: float = 0.95) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Confidence limits of the learned parameters: lower and upper, of their shape.

        Symmetric in the unconstrained space and mapped back where each entry has its own support, so
        that a scale's limits are positive; symmetric on the parameter's own scale otherwise.

        Raises:
            ValueError: if there are no standard errors, or the level is not inside (0, 1).
        """
        from scipy.special import ndtri

        upper = tails(level)[1]
        if self.uncertainty is None:
            raise ValueError(
                f"{self.learner} computed no standard errors; pass standard_errors=True to it."
            )
        width = ndtri(upper)
        centres = self._problem.free()
        out = {}
        for name, bijection in self._problem.bijections().items():
            spread = width * self.uncertainty.unconstrained[name]
            if bijection.codomain.event_dim == 0:
                ends = [bijection(centres[name] - spread), bijection(centres[name] + spread)]
            else:
                spread = width * self.standard_errors[name]
                ends = [self.parameters[name] - spread, self.parameters[name] + spread]
            out[name] = (np.asarray(ends[0]), np.asarray(ends[1]))
        return out

    def summary(self, level: float = 0.95) -> str:
        """A readable table: the fit, the parameters with their limits, and tests of the residuals."""
        lower, upper = f"{50 * (1 - level):g} %", f"{50 * (1 + level):g} %"
        columns = ("estimate", "std. error", lower, upper)
        lines = header("Fitted state-space model", self._facts())
        lines += table(columns, list(self._rows(level)))
        tests = self.residual_tests()
        lines += [str(tests)] if tests is not None else []
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str]]:
        height = f"{self.log_likelihood:.4f}"
        if self.log_likelihood_variance is not None:
            height += f" (one estimate: ± {self.log_likelihood_variance**0.5:.2g})"
        facts = [
            ("Model", model_name(self.model)),
            ("Learner", self.learner),
            ("Observations", _counted(self.data)),
            ("Log likelihood", height),
            ("AIC", f"{self.aic:.3f}"),
            ("BIC", f"{self.bic:.3f}"),
            ("Converged", f"{'yes' if self.converged else 'NO'} ({self.reason})"),
            ("Iterations", str(self.iterations)),
        ]
        if self.log_prior is not None:
            facts.insert(4, ("Log prior", f"{self.log_prior:.4f}"))
        return facts

    def _rows(self, level: float) -> Iterator[tuple[str, ...]]:
        """Estimate, error and limits of every entry of every parameter."""
        from numpyro.distributions.constraints import lower_cholesky

        limits = {} if self.uncertainty is None else self.interval(level)
        known = supports(self.model)
        for name, value in self.parameters.items():
            factor = known[name] is lower_cholesky
            for label, i in entries(name, value):
                if factor and i[-1] > i[-2]:
                    continue  # the zeros above a Cholesky factor
                if name not in self.free:
                    yield label, number(value[i]), "frozen", "", ""
                elif name not in limits:
                    yield label, number(value[i]), "", "", ""
                else:
                    shown = (value, self.standard_errors[name], *limits[name])
                    yield label, *(number(part[i]) for part in shown)

    def residual_tests(self, lags: int | None = None) -> ResidualTests | None:
        """Tests of the standardised one-step prediction errors at the fitted parameters.

        Those of all recordings of a panel one after the other; None where there are too few, or where the
        method or the law of the observations does not give them.

        Args:
            lags: lags up to which autocorrelation is tested; default the smaller of 10 and a fifth
                of the errors.
        """
        try:
            errors = self.residuals()
        except NoResiduals:
            return None
        if np.any(np.sum(errors.observed, axis=0) < 3):
            return None
        return residual_tests(errors, lags)

    def residuals(self) -> Series:
        """Standardised one-step prediction errors at the fitted parameters, N(0, 1) if the model is right.

        Those of all recordings of a panel one after the other. Where the state is finite they are normal
        pseudo-residuals (Zucchini & MacDonald 2009, section 6.2).

        Raises:
            TypeError: if the method makes no one-step predictions, or the law of an observation has no
                distribution function.
        """
        problem, labels = self._problem, self.data.labels
        errors = np.asarray(standardised_errors(problem.model, problem.data, problem.method))
        if isinstance(self.data, Panel):
            errors = np.concatenate([e[:n] for e, n in zip(errors, self.data.lengths)])
            labels = labels[0] if isinstance(labels, tuple) else None
        return Series(errors, channels=channel_names(labels, errors.shape[1]))

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        state = "converged" if self.converged else f"not converged: {self.reason}"
        return (
            f"{type(self).__name__}({model_name(self.model)} by {self.learner}, "
            f"log_likelihood={self.log_likelihood:.4f}, {state})"
        )

    def warn_unless_converged(self: Result) -> Result:
        """Issue a :class:`ConvergenceWarning` if the learner did not converge; returns the result."""
        if not self.converged:
            warnings.warn(
                f"{self.learner} did not converge: {self.reason}.", ConvergenceWarning, stacklevel=5
            )
        return self


def model_name(model: Any) -> str:
    """Name of the model's class, that of a frozen model included."""
    while isinstance(model, Frozen):
        model = model.model
    return type(model).__name__


def diffuse_count(model: Any) -> int:
    """Number of diffuse directions of the initial law."""
    diffuse = getattr(model.initial, "diffuse", None)
    if diffuse is None:
        return 0
    diffuse = np.asarray(diffuse)
    return int(diffuse.sum()) if diffuse.dtype == bool else int(np.linalg.matrix_rank(diffuse))


def redundant_count(model: Any, free: Iterable[str]) -> int:
    """In how many directions the free parameters of the transition can move without any effect."""
    begin = "transition."
    own = {name.removeprefix(begin) for name in free if name.startswith(begin)}
    redundant = getattr(model.transition, "redundant", None)
    return redundant(own) if redundant and own else 0


def _counted(data: Series | Panel) -> str:
    observed = np.asarray(data.observed)
    total = observed.size
    if isinstance(data, Panel):
        total = sum(data.lengths) * observed.shape[-1]
        sizes = f"{len(data)} recordings, {sum(data.lengths)} moments"
    else:
        sizes = f"{len(data)} moments"
    return f"{sizes} × {observed.shape[-1]} ({total - int(observed.sum())} missing)"
