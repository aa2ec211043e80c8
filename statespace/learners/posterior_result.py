"""What a sampler of the parameters returns."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from statespace.arviz import time_coordinate, to_inference_data
from statespace.labels import channel_names
from statespace.learners.information import Uncertainty
from statespace.learners.likelihood import pointwise
from statespace.learners.problem import Problem
from statespace.learners.result import FitResult
from statespace.learners.table import entries, header, number, table
from statespace.probabilities import tails
from statespace.series import Panel, Series

_RHAT = 1.01  # Vehtari et al. (2021), section 4
_EFFECTIVE = 100  # effective draws a chain, ibid.


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PosteriorResult(FitResult):
    """Draws of the parameters from their posterior.

    ``model`` stands at the mean of the draws in the unconstrained space (so that it satisfies every
    support), ``standard_errors`` are posterior standard deviations, ``log_likelihood`` is that of ``model``.

    Attributes:
        draws: parameter name to draws, shape ``(chains, draws, *shape)``, on the parameter's own scale.
        statistics: of the sampler, each ``(chains, draws)``, those of lp, n_steps, acceptance_rate,
            diverging, energy and step_size that it has.
        r_hat: split R-hat of each parameter, of its shape; 1 when the chains agree.
        effective: effective number of draws of each parameter, of its shape.
        states: draws of the states, ``(chains, draws, S, T, ...)`` for S recordings, where the sampler
            drew and was to keep them, else None.
        log_evidence: estimate of the log marginal density of the data, where the sampler makes one.
    """

    draws: dict[str, Float[np.ndarray, "chains draws ..."]]
    statistics: dict[str, np.ndarray]
    r_hat: dict[str, np.ndarray]
    effective: dict[str, np.ndarray]
    _unconstrained: np.ndarray
    states: Any = dataclasses.field(default=None, kw_only=True)
    log_evidence: float | None = dataclasses.field(default=None, kw_only=True)

    @classmethod
    def from_draws(
        cls,
        *,
        problem: Problem,
        data: Series | Panel,
        learner: str,
        draws: dict[str, np.ndarray],
        unconstrained: np.ndarray,
        statistics: dict[str, np.ndarray],
        log_likelihood: float,
        log_prior: float,
        log_likelihood_variance: float | None = None,
        complaint: str | None = None,
        states: Any = None,
        log_evidence: float | None = None,
    ) -> PosteriorResult:
        """Diagnose the draws and put the result together; a complaint of the sampler's own comes last."""
        from numpyro.diagnostics import split_gelman_rubin

        # entries that never vary, as the zeros of a Cholesky factor
        with np.errstate(all="ignore"):
            r_hat = {k: np.asarray(split_gelman_rubin(v)) for k, v in draws.items()}
        effective = {k: effective_draws(v) for k, v in draws.items()}
        chains, count = unconstrained.shape[:2]
        flat = np.concatenate([v.reshape(chains * count, -1) for v in draws.values()], axis=1)
        spread = unconstrained.reshape(chains * count, -1).std(axis=0, ddof=1)
        uncertainty = Uncertainty(
            {k: np.asarray(v) for k, v in problem.split(spread).items()},
            {k: v.std(axis=(0, 1), ddof=1) for k, v in draws.items()},
            np.atleast_2d(np.cov(flat.T)),
        )
        diverging = statistics.get("diverging", np.zeros((chains, count), bool))
        reason = _complaint(r_hat, effective, diverging) or complaint
        return cls(
            model=problem.model,
            data=data,
            learner=learner,
            log_likelihood=log_likelihood,
            log_prior=log_prior,
            converged=reason is None,
            reason=reason or "chains agree",
            iterations=count,
            trace=statistics["lp"].mean(axis=0),
            uncertainty=uncertainty,
            _problem=problem,
            draws=draws,
            statistics=statistics,
            r_hat=r_hat,
            effective=effective,
            _unconstrained=unconstrained,
            log_likelihood_variance=log_likelihood_variance,
            states=states,
            log_evidence=log_evidence,
        )

    def interval(self, level: float = 0.95) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Equal-tailed posterior limits of the parameters: lower and upper, of their shape.

        Raises:
            ValueError: if the level is not inside (0, 1).
        """
        ends = tails(level)
        return {k: tuple(np.quantile(v, ends, axis=(0, 1))) for k, v in self.draws.items()}

    def summary(self, level: float = 0.95) -> str:
        """A readable table: posterior mean, standard deviation, limits, effective draws and R-hat."""
        facts = [fact for fact in self._facts() if fact[0] not in ("AIC", "BIC")]
        if "diverging" in self.statistics:
            facts.append(("Divergences", str(int(self.statistics["diverging"].sum()))))
        if self.log_evidence is not None:
            facts.append(("Log evidence", f"{self.log_evidence:.4f}"))
        limits = self.interval(level)
        lower, upper = f"{50 * (1 - level):g} %", f"{50 * (1 + level):g} %"
        rows = []
        for name, values in self.draws.items():
            mean, sd = values.mean(axis=(0, 1)), values.std(axis=(0, 1), ddof=1)
            for label, i in entries(name, mean):
                if sd[i] > 0:
                    low, high = limits[name]
                    numbers = (mean[i], sd[i], low[i], high[i])
                    rest = (f"{self.effective[name][i]:.0f}", f"{self.r_hat[name][i]:.3f}")
                    rows.append((label, *map(number, numbers), *rest))
        columns = ("mean", "sd", lower, upper, "effective", "R-hat")
        lines = header("Posterior of a state-space model", facts) + table(columns, rows)
        return "\n".join(lines)

    def pointwise(self) -> Float[np.ndarray, "chains draws ..."]:
        """Log predictive density of each moment at each draw, shape ``(chains, draws, T)``.

        ``(chains, draws, S, T)`` for a panel, zero after the end of a recording.
        """
        chains, count, p = self._unconstrained.shape
        flat = _pointwise(self._problem, self._unconstrained.reshape(chains * count, p))
        return np.asarray(flat).reshape(chains, count, *flat.shape[1:])

    def to_arviz(self) -> Any:
        """Posterior draws, pointwise log likelihood, data and sampler statistics for ArviZ.

        Returns:
            ``arviz.InferenceData`` (ArviZ < 1) or ``xarray.DataTree`` with the groups ``posterior``,
            ``log_likelihood``, ``observed_data`` and ``sample_stats``. The log likelihood is that of each
            moment given those before, by which leave-future-out validation goes.

        Raises:
            ImportError: if ArviZ is not installed.
        """
        draw = ("chain", "draw")
        posterior = {
            name: ((*draw, *(f"{name}_dim_{i}" for i in range(v.ndim - 2))), v)
            for name, v in self.draws.items()
        }
        panel = isinstance(self.data, Panel)
        along = ("recording", "time") if panel else ("time",)
        y = np.asarray(self.data.channels)
        coords: dict[str, Any] = {}
        labels = self.data.labels
        if not panel:
            coords["time"] = time_coordinate(self.data.times, labels)
        names = labels[0] if isinstance(labels, tuple) else labels
        coords["channel"] = list(channel_names(names, y.shape[-1]))
        groups = {
            "posterior": posterior,
            "log_likelihood": {"y": ((*draw, *along), self.pointwise())},
            "observed_data": {"y": ((*along, "channel"), y)},
            "sample_stats": {name: (draw, v) for name, v in self.statistics.items()},
        }
        return to_inference_data(groups, coords)


def effective_draws(draws: np.ndarray) -> np.ndarray:
    """Effective number of draws of each entry, from an array ``(chains, samples, ...)``; at least one.

    The estimate from the autocorrelations has no meaning for a handful of draws, and may then be negative.
    """
    from numpyro.diagnostics import effective_sample_size

    with np.errstate(all="ignore"):
        return np.maximum(np.asarray(effective_sample_size(draws)), 1.0)


def _complaint(
    r_hat: dict[str, np.ndarray], effective: dict[str, np.ndarray], diverging: np.ndarray
) -> str | None:
    """What is wrong with the draws, or None."""
    worst = max((float(np.nanmax(v)), name) for name, v in r_hat.items())
    fewest = min((float(np.nanmin(v)), name) for name, v in effective.items())
    if not worst[0] <= _RHAT and len(diverging) > 1:
        return (
            f"R-hat of {worst[1]!r} is {worst[0]:.3f}, more than {_RHAT}: the chains do not agree; draw "
            "longer"
        )
    if not fewest[0] >= _EFFECTIVE * len(diverging):
        return (
            f"{fewest[0]:.0f} effective draws of {fewest[1]!r}, fewer than {_EFFECTIVE} a chain; "
            "draw longer"
        )
    if diverging.any():
        return (
            f"{int(diverging.sum())} of {diverging.size} trajectories diverged; raise `target_accept`, "
            "or give the parameters narrower priors"
        )
    return None


@eqx.filter_jit
def _pointwise(problem: Problem, z: Float[Array, "draws p"]) -> Float[Array, "draws ..."]:
    one = lambda z: pointwise(problem.place(z), problem.data, problem.method)
    return jax.lax.map(one, z, batch_size=64)
