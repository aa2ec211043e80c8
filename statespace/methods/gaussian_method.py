"""What every method that lowers to the Gaussian chain gives."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains import gaussian
from statespace.chains.gaussian.algebra import UNROLLED
from statespace.chains.gaussian.forward import forward
from statespace.methods.gaussian_lowering import initial_law
from statespace.methods.lowering import at, steps_of
from statespace.model import state_names
from statespace.posteriors.gaussian import Forecast, GaussianPosterior
from statespace.scores import whiten
from statespace.series import Panel, Series

_PARALLEL_FROM = 64  # moments from which an accelerator gains by associative scans


class Lowered(NamedTuple):
    """A chain, and how its functions are to be called: ``gaussian.smooth(chain, **how)``."""

    chain: gaussian.Chain
    how: dict[str, Any]


class GaussianMethod(eqx.Module):
    """A method that makes a Gaussian chain of a model and a recording; the chain does the rest.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32, "covariance" in
            float64.
        parallel: whether to use associative scans. None: on accelerators only.

    Raises:
        ValueError: if ``form`` is neither.
    """

    form: gaussian.Form | None = eqx.field(static=True, default=None)
    parallel: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.form not in (None, "covariance", "sqrt"):
            raise ValueError(
                f'`form` of {type(self).__name__} must be "covariance", "sqrt" or None, got {self.form!r}.'
            )

    @abstractmethod
    def lower(self, model: Any, series: Series) -> Lowered:
        """The chain of a model on a recording.

        Raises:
            TypeError: if a conditional is not of a kind that the method needs.
            ValueError: if the conditionals' shapes do not fit each other or the recording.
        """

    def check(self, model: Any, data: Series | Panel) -> None:
        """Nothing: shapes are checked as the model is lowered, and every number can be observed."""

    def beginning(self, model: Any, series: Series) -> Lowered:
        """The chain whose filter shows where inference broke down: of an iteration, that of its start."""
        return self.lower(model, series)

    def breakdown(self, model: Any, series: Series) -> Any:
        """What failed first, and where; None where nothing did before a backward pass or an iteration."""
        from statespace.methods.gaussian_checks import first_failure

        return first_failure(self, model, series)

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """``log p(y)``."""
        chain, how = self.lower(model, series)
        return gaussian.log_likelihood(chain, **how)

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """``log p(y_t | y_0 … y_{t-1})`` of each moment."""
        chain, how = self.lower(model, series)
        return gaussian.pointwise(chain, **how)

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """One-step prediction errors, whitened; NaN where missing."""
        chain, how = self.lower(model, series)
        run = gaussian.filter(chain, **how)
        return whiten(series.channels - run.observation_mean, run.observation_covariance)[0]

    def posterior(self, model: Any, series: Series, kind: Any) -> GaussianPosterior:
        """The law of the states: "filtered" or "smoothed"."""
        return self.posterior_of(model, series, self.lower(model, series), kind)

    def posterior_of(
        self,
        model: Any,
        series: Series,
        lowered: Lowered,
        kind: Any,
        run: gaussian.Forward | None = None,
        smoothed: gaussian.Smoothed | None = None,
    ) -> GaussianPosterior:
        """The law of the states of a chain that has been made, and perhaps been run already, both ways."""
        chain, how = lowered
        run = forward(chain, **how) if run is None else run
        state: Any
        filtered = state = gaussian.filtered_by(chain, run, how["form"])
        if kind == "smoothed":
            state = gaussian.smoothed_by(chain, run, **how) if smoothed is None else smoothed
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
            state_names=state_names(model),
            form=how["form"],
            parallel=how["parallel"],
        )

    def sample_states(
        self, model: Any, series: Series, key: PRNGKeyArray, draws: int
    ) -> Float[Array, "draws T n"]:
        """Joint draws of all states given all observations."""
        chain, how = self.lower(model, series)
        return gaussian.sample(chain, key, draws, **how)

    def forecast(self, model: Any, series: Series, rows: Array) -> Forecast:
        """The law of observations at some moments of a recording, of which they are not part."""
        chain, how = self.lower(model, series)
        smoothed = gaussian.smooth(chain, **how)
        mean, covariance = gaussian.observations(
            chain, smoothed.mean, smoothed.covariance, form=how["form"]
        )
        state = GaussianPosterior(
            mean=smoothed.mean[rows],
            covariance=smoothed.covariance[rows],
            times=series.times[rows],
            chain=chain,
            rows=rows,
            kind="smoothed",
            state_names=state_names(model),
            form=how["form"],
            parallel=how["parallel"],
        )
        return Forecast(mean[rows], covariance[rows], series.times[rows], state=state)

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be smoothed by `vmap`; if not, one recording after the other.

        A smoother of many states calls LAPACK in branches that `vmap` would all take, and that can wait for
        each other: see :func:`statespace.chains.gaussian.covariances.factorise_moments`.
        """
        states = initial_law(model, at(steps_of(series)[0], 0)).mean.shape[0]
        return states <= UNROLLED or jax.default_backend() != "cpu"


def in_parallel(wanted: bool | None, series: Series) -> bool:
    """Whether to use associative scans, where the user leaves it open."""
    if wanted is not None:
        return wanted
    return jax.default_backend() != "cpu" and len(series) >= _PARALLEL_FROM
