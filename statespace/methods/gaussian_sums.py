"""Filters and smoothers of switching models that carry a mixture of Gaussian laws."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains import gaussian, switching
from statespace.chains.gaussian.algebra import UNROLLED
from statespace.chains.gaussian.covariances import full_carry
from statespace.chains.gaussian.mixtures import Components, covariances, mixture_moments
from statespace.chains.moments import compensated_sum
from statespace.checks import require_whole
from statespace.conditionals.switching import RegimeState
from statespace.linearisation import Affine, Linearisation, Taylor, require_rule, rule_of
from statespace.methods.gaussian_lowering import initial_law, noise
from statespace.methods.linearised import make_affine, observed_affine
from statespace.methods.lowering import at, dtype_of, steps_of
from statespace.methods.rao_blackwellised import conditionals
from statespace.model import Step, state_names
from statespace.posteriors.mixture import MixturePosterior
from statespace.probabilities import normal_deviates
from statespace.series import Panel, Series

if TYPE_CHECKING:
    from statespace.forecasts.switching import SwitchingForecast
    from statespace.methods.online_mixture import MixtureOnline


class _Part(eqx.Module):
    """One conditional of a regime where a model is expected."""

    initial: Any = None
    observation: Any = None


class SwitchingLaw(eqx.Module):
    """A switching model as :mod:`statespace.chains.switching` takes it, affine near Gaussian laws."""

    model: Any
    rule: Linearisation = eqx.field(static=True)
    form: gaussian.Form = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    method: str = eqx.field(static=True)

    @property
    def regimes(self) -> int:
        """Number K of regimes."""
        return len(self.model.initial.kernel.probs)

    def first(self, step: Step) -> Components:
        """One component for each first regime."""
        initial = self.model.initial
        laws = [
            _weighable(initial_law(_Part(initial=initial.of(k)), step), k, self.method)
            for k in range(self.regimes)
        ]
        spread = [full_carry(noise(law, self.form), self.form, (), self.dtype) for law in laws]
        mean = jnp.stack([law.mean for law in laws]).astype(self.dtype)
        log_weights = _logs(initial.kernel.probs.astype(self.dtype))
        return Components(jnp.arange(self.regimes), mean, jnp.stack(spread), log_weights)

    def logs(self, step: Step) -> Float[Array, "K K"]:
        """Log probabilities of the next regimes."""
        return _logs(self.model.transition.kernel.matrix(step).astype(self.dtype))

    def moves(self, k: int, step: Step, mean: Array, spread: Array) -> Affine:
        """The transition in regime k, round the state before."""
        conditional = self.model.transition.of(k)
        made = make_affine(conditional, step, self.rule, mean, spread, self.form, "transition")
        return Affine(*(x.astype(self.dtype) for x in made))

    def sees(self, k: int, step: Step, mean: Array, spread: Array, y: Array) -> Affine:
        """The observation in regime k, round the state."""
        part = _Part(observation=self.model.observation.of(k))
        made = observed_affine(part, step, self.rule, mean, spread, y, self.form)
        return Affine(*(x.astype(self.dtype) for x in made))


class MixtureFilter(eqx.Module):
    """A filter and smoother of switching models on mixtures of Gaussian laws.

    Args:
        linearisation: the rule by which conditionals that are not affine are made so, round each component.
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32, "covariance" in
            float64.

    Raises:
        TypeError: if ``linearisation`` is no rule.
        ValueError: if ``form`` is neither.
    """

    linearisation: Linearisation = eqx.field(
        static=True, default=Taylor(), converter=rule_of, kw_only=True
    )
    form: gaussian.Form | None = eqx.field(static=True, default=None, kw_only=True)

    posterior_draws: ClassVar[bool] = True
    """Draws are those of the posterior, which tells where they stray."""

    def __check_init__(self) -> None:
        name = type(self).__name__
        require_rule("linearisation", name, self.linearisation)
        if self.form not in (None, "covariance", "sqrt"):
            raise ValueError(
                f'`form` of {name} must be "covariance", "sqrt" or None, got {self.form!r}.'
            )

    @property
    def mixed(self) -> bool:
        """Whether components are merged before they move, and not after they are observed."""
        return False

    def size(self, model: Any) -> int:
        """Number N of components."""
        raise NotImplementedError

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse what cannot be run, before anything is traced.

        Raises:
            TypeError: naming the conditional that is not of the kind that the method needs.
            ValueError: naming the shapes, or the number of components.
        """
        name = type(self).__name__
        conditionals(model, name, linear=False)
        series = data.series[0] if isinstance(data, Panel) else data
        step = jax.eval_shape(lambda: at(steps_of(series)[0], 0))
        m = series.channels.shape[1]
        law = self._law(model, series)
        shape = jax.eval_shape(law.first, step).mean.shape
        n = shape[1]
        self.size(model)
        state, seen = (jax.ShapeDtypeStruct((size,), law.dtype) for size in (n, m))
        spread = jax.ShapeDtypeStruct((n, n), law.dtype)
        for k in range(law.regimes):
            moves = jax.eval_shape(partial(law.moves, k), step, state, spread).matrix.shape
            sees = jax.eval_shape(partial(law.sees, k), step, state, spread, seen).matrix.shape
            if moves != (n, n):
                raise ValueError(
                    f"`transition` of the model gives in regime {k} states of {moves[0]} coordinates from "
                    f"{moves[1]}, but `initial` says that there are {n}."
                )
            if sees != (m, n):
                raise ValueError(
                    f"`observation` of the model gives {sees[0]} channels in regime {k}, but the data have "
                    f"{m} channel{'s' * (m != 1)}."
                )

    def law(self, model: Any, dtype: Any) -> SwitchingLaw:
        """The model as the chain takes it."""
        form = self.form or ("sqrt" if dtype == jnp.float32 else "covariance")
        return SwitchingLaw(model, self.linearisation, form, dtype, type(self).__name__)

    def _law(self, model: Any, series: Series) -> SwitchingLaw:
        return self.law(model, dtype_of(series, eqx.filter(model, eqx.is_array)))

    def run(self, model: Any, series: Series) -> switching.Moment:
        """The filter at all moments."""
        law = self._law(model, series)
        y = series.channels.astype(law.dtype)
        return switching.run(law, steps_of(series)[0], y, self.size(model), self.mixed)

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """``log p(y)``, exact where no components were merged; differentiable."""
        return compensated_sum(self.run(model, series).pointwise)

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """``log p(y_t | y_0 … y_{t-1})`` of each moment, as exact as the filter's mixtures are."""
        return self.run(model, series).pointwise

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """Each observation's one-step predictive probability as a normal deviate; NaN where missing."""
        return normal_deviates(self.run(model, series).below, series.channels)

    def posterior(self, model: Any, series: Series, kind: Any) -> MixturePosterior:
        """The law of regimes and states: "filtered" or "smoothed"."""
        law = self._law(model, series)
        made = self.run(model, series)
        components, back = made.components, None
        laws = components._replace(spread=covariances(components.spread, law.form))
        if kind == "smoothed":
            steps, y = steps_of(series)[0], series.channels.astype(law.dtype)
            back = switching.all_kernels(law, components, steps)
            mixed = switching.all_kernels(law, components, steps, True) if self.mixed else back
            laws = switching.smooth(law, made, mixed, steps, y, self.mixed)
        weights = jnp.exp(laws.log_weights)
        mean, covariance = jax.vmap(mixture_moments)(weights, laws.mean, laws.spread)
        here = laws.regime[..., None] == jnp.arange(law.regimes)
        return MixturePosterior(
            mean=mean,
            covariance=covariance,
            probs=jnp.sum(weights[..., None] * here, axis=1),
            times=series.times,
            labels=None,
            log_likelihood=compensated_sum(made.pointwise),
            pointwise=made.pointwise,
            ess=made.ess,
            y=series.channels,
            regimes=laws.regime,
            means=laws.mean,
            covariances=laws.spread,
            log_weights=laws.log_weights,
            errors=normal_deviates(made.below, series.channels),
            kernels=back,
            form=law.form,
            kind=kind,
            state_names=state_names(model),
        )

    def sample_states(
        self, model: Any, series: Series, key: PRNGKeyArray, draws: int
    ) -> RegimeState:
        """Joint draws of all regimes ``(draws, T)`` and states ``(draws, T, n)`` given all observations."""
        return self.posterior(model, series, "smoothed").sample(key, draws)

    def forecast(self, model: Any, series: Series, rows: Array) -> SwitchingForecast:
        """The law of observations at some moments of a recording, of which they are not part."""
        from statespace.forecasts.switching import forecast

        posterior = self.posterior(model, series, "smoothed")
        return forecast(self._law(model, series), posterior, series, rows)

    def online(self, model: Any, dt: float) -> MixtureOnline:
        """The filter one observation at a time."""
        from statespace.methods.online_mixture import MixtureOnline

        return MixtureOnline(model, self, dt)

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be run by `vmap`; if not, one recording after the other."""
        n = jax.eval_shape(self._law(model, series).first, at(steps_of(series)[0], 0)).mean.shape[1]
        return n <= UNROLLED or jax.default_backend() != "cpu"


class InteractingMultipleModel(MixtureFilter):
    """The interacting multiple model filter of switching models, with a smoother (Blom & Bar-Shalom 1988).

    One Gaussian law for each regime. Before each move the laws that go to one regime are merged, so that a
    moment costs one Kalman filter a regime: the standard of tracking targets that manoeuvre. Exact with one
    regime, or where regimes have the same laws; :class:`GaussianSum` keeps more of the mixture.

    Needs all three conditionals to be :class:`~statespace.Switching`; those of the regimes affine Gaussian,
    or made so by ``linearisation``. The regimes must not depend on the state. Missing entries, irregular
    times and inputs are supported. The smoother undoes the filter's steps, the merging too: each law that was
    merged is conditioned on what the future says of the merged one, taken as a Gaussian likelihood (the
    backward pass of Heskes & Zoeter 2002, Expectation propagation for approximate inference in dynamic
    Bayesian networks), so that no law is taken where its own past would not have it. Joint draws
    (``sample_states``) have no such guard: where regimes have next to no noise, as turns at a constant rate,
    they can stray from the smoothed law, of which ``sample`` of the posterior warns. Draw with
    :class:`GaussianSum` of a few more components than regimes then.

    Args:
        linearisation: the rule by which conditionals that are not affine are made so, round each law.
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32, "covariance" in
            float64.

    Raises:
        TypeError: if ``linearisation`` is no rule.
        ValueError: if ``form`` is neither.

    Example:
        >>> posterior = ss.filter(model, y, method=ss.InteractingMultipleModel())
        >>> posterior.probs, posterior.mean
    """

    @property
    def mixed(self) -> bool:
        """Components are merged before they move."""
        return True

    def size(self, model: Any) -> int:
        """As many components as regimes."""
        return len(model.initial.kernel.probs)


class GaussianSum(MixtureFilter):
    """The Gaussian sum filter and smoother of switching models: a mixture of up to N laws at each moment.

    Every component moves under every regime and is weighed by the observation; of these K N the most alike of
    one regime are merged, with their moments, until N are left (Runnalls 2007). Filter, smoother, likelihood
    and joint draws are exact while there are no more than N paths of regimes, and nearly so with many
    components. ``components`` equal to the number of regimes is the filter of Kim (1994), also known as the
    generalised pseudo-Bayesian one of order 2.

    Needs all three conditionals to be :class:`~statespace.Switching`; those of the regimes affine Gaussian,
    or made so by ``linearisation``. The regimes must not depend on the state. Missing entries, irregular
    times and inputs are supported. The smoother is that of :class:`InteractingMultipleModel`: it follows each
    component back to those that were merged in it, each conditioned on what the future says of it.

    Args:
        components: N, at least the number of regimes.
        linearisation: the rule by which conditionals that are not affine are made so, round each component.
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32, "covariance" in
            float64.

    Raises:
        TypeError: if ``linearisation`` is no rule.
        ValueError: if ``components`` is not positive, or ``form`` is neither.

    Example:
        >>> posterior = ss.smooth(model, y, method=ss.GaussianSum(components=16))
        >>> posterior.probs, posterior.quantile([0.05, 0.95])
    """

    components: int = eqx.field(static=True, default=16)

    def __check_init__(self) -> None:
        require_whole("components", "GaussianSum", self.components)

    def size(self, model: Any) -> int:
        """The number of components.

        Raises:
            ValueError: if there are fewer than regimes.
        """
        regimes = len(model.initial.kernel.probs)
        if self.components < regimes:
            raise ValueError(
                f"`components` of GaussianSum must be at least the number of regimes, {regimes}, got "
                f"{self.components}."
            )
        return self.components


def _weighable(law: Any, regime: int, method: str) -> Any:
    """An initial law with a density, by which its component can be weighed and merged with others.

    Raises:
        ValueError: if it is diffuse in some directions.
    """
    if law.diffuse is not None:
        raise ValueError(
            f"{method} weighs the regimes' laws against each other and merges them, which needs all of them "
            f"to be proper, but `initial` of the model is diffuse in some directions in regime {regime}: "
            "give it a wide finite scale, `Gaussian(mean, scale)`, such as a thousand times the spread of "
            "the data; of a structural component by its `initial_law`."
        )
    return law


def _logs(probs: Float[Array, "*K"]) -> Float[Array, "*K"]:
    possible = probs > 0
    return jnp.where(possible, jnp.log(jnp.where(possible, probs, 1)), -jnp.inf)
