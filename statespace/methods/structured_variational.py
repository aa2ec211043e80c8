"""Structured variational inference in switching linear models, also recurrent ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from statespace.chains import finite, gaussian, structured
from statespace.chains.gaussian import algebra as la
from statespace.chains.moments import compensated_sum, vmap_moments
from statespace.chains.switching_expectations import Law, Regimes
from statespace.checks import require_whole
from statespace.conditionals.finite import Categorical
from statespace.conditionals.recurrent import RecurrentKernel
from statespace.conditionals.switching import RegimeState, Switching
from statespace.methods.gaussian_lowering import initial_law, noise
from statespace.methods.iterated import Convergence
from statespace.methods.lowering import at, dtype_of, stack, steps_of
from statespace.model import Step, state_names
from statespace.posteriors.structured import StructuredPosterior
from statespace.probabilities import NoResiduals
from statespace.series import Panel, Series

if TYPE_CHECKING:
    from statespace.forecasts.particle import ParticleForecast

_LOG_2PI = 1.8378770664093453
_EVEN, _WIDE = (
    2,
    6,
)  # turns in which regimes weigh the same, and in which dynamics cover all of them
_COOLING = (
    8  # turns in which the dynamics' noise is halved, from 128 times that of the model down to it
)


class Lowered(NamedTuple):
    """A switching chain, and the form of its arithmetic."""

    chain: structured.SwitchingChain
    form: gaussian.Form


class StructuredVariational(eqx.Module):
    """Smoother of switching linear models by a Gaussian chain of states times a finite chain of regimes.

    The two are made to fit each other in turn until the lower bound of the log likelihood no longer rises:
    each keeps all dependence over time, and only that between state and regime at a moment is lost
    (Ghahramani & Hinton 2000). Two starts are made, and the one that ends with the higher bound is kept: from
    dynamics that cover all regimes, and from the model's with more noise, which is halved from iteration to
    iteration. Regimes may depend on the previous state; the expected log-sum-exp of their law is then bounded
    as well, so that the bound stays one. Deterministic, and as fast as a few smoothers. The likelihood of a
    switching model is estimated without bias by :class:`~statespace.RaoBlackwellised`, that of a recurrent
    one by :class:`~statespace.ParticleFilter`.

    Needs all three conditionals of the model to be :class:`~statespace.Switching`, of linear Gaussian
    conditionals with noise of full rank. Exact where there is one regime. Missing entries, inputs and panels
    are supported. ``log_likelihood`` is the lower bound; its gradient is that at the fixed point.

    Args:
        iterations: at most so many from each start, each one smoother of the states and one of the regimes.
        tolerance: stop when an iteration raises the bound by less than this, in nats.
        draws: paths of states from which forecasts are made, with a fixed key.
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> posterior = ss.smooth(model, y, method=ss.StructuredVariational())
        >>> posterior.probs, posterior.most_likely, posterior.mean

    References:
        Ghahramani & Hinton (2000), Variational learning for switching state-space models; Zoltowski, Pillow &
        Linderman (2020), A general recurrent state space framework for modeling neural dynamics during
        decision-making, ICML, section 4; Khan & Lin (2017), Conjugate-computation variational inference,
        AISTATS; Knowles & Minka (2011), Non-conjugate variational message passing, NeurIPS, for the bound.
    """

    iterations: int = eqx.field(static=True, default=200)
    tolerance: float = eqx.field(static=True, default=1e-6)
    draws: int = eqx.field(static=True, default=1000)
    form: gaussian.Form | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name in ("iterations", "draws"):
            require_whole(name, "StructuredVariational", getattr(self, name))
        if not self.tolerance >= 0:
            raise ValueError(
                f"`tolerance` of StructuredVariational must not be negative, got {self.tolerance}."
            )
        if self.form not in (None, "covariance", "sqrt"):
            raise ValueError(
                '`form` of StructuredVariational must be "covariance", "sqrt" or None, got '
                f"{self.form!r}."
            )

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse what cannot be run, before anything is traced."""
        initial, transition, observation = conditionals(model)
        series = data.series[0] if isinstance(data, Panel) else data
        if len(series) < 2:
            raise ValueError("StructuredVariational needs at least two moments, got one.")
        steps, m = steps_of(series)[0], series.channels.shape[1]
        first, later = at(steps, 0), at(steps, 1)
        n = initial_law(_Part(initial.of(0)), first).mean.shape[0]
        parts = {
            "initial": _start(initial, first),
            "transition": _of_regimes(transition, initial.regimes, later),
            "observation": _of_regimes(observation, initial.regimes, first),
        }
        for name, rows, columns in (("transition", n, n), ("observation", m, n)):
            shape = parts[name].matrix.shape[1:]
            if shape != (rows, columns):
                raise ValueError(
                    f"`{name}` of the model has matrices of shape {shape}; the data have {m} "
                    f"channel{'s' * (m != 1)} and the state {n} coordinates: expected ({rows}, {columns})."
                )
        for name, part in parts.items():
            value = part.log_scale
            if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value)):
                regime = int(np.argmin(np.isfinite(value)))
                raise ValueError(
                    f"StructuredVariational needs noise of full rank: the covariance of `{name}` of the "
                    f"model is singular in regime {regime}. Give each coordinate some noise, or use "
                    "ParticleFilter()."
                )

    def lower(self, model: Any, series: Series) -> Lowered:
        """The switching chain of a model on a recording.

        Raises:
            TypeError: if a conditional is not of a kind that the method needs.
        """
        initial, transition, observation = conditionals(model)
        count = initial.regimes
        steps, varies = steps_of(series)
        later = jax.tree.map(lambda x: x[1:], steps)
        y = series.channels
        seen = ~jnp.isnan(y)
        dtype = dtype_of(series, eqx.filter(model, eqx.is_array))
        law = stack(lambda s: _of_regimes(observation, count, s), steps, varies)
        if series.complete is not True:
            law = _without_missing(observation, count, law, steps, varies, seen)
        scores, weights = regime_scores(transition.kernel, later, varies)
        some = jnp.any(seen, axis=1)
        within = jnp.flip(jnp.cumsum(jnp.flip(some))) > 0
        chain = structured.SwitchingChain(
            Regimes(jnp.asarray(initial.kernel.probs), scores, weights),
            jax.tree.map(lambda x: x[None], _start(initial, at(steps, 0))),
            stack(lambda s: _of_regimes(transition, count, s), later, varies),
            law,
            jnp.where(seen, y, 0),
            within.at[0].set(True),
        )
        cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
        form = self.form or ("sqrt" if dtype == jnp.float32 else "covariance")
        return Lowered(jax.tree.map(cast, chain), form)

    def infer(self, lowered: Lowered) -> tuple[structured.Structured, Convergence]:
        """The mean field at its fixed point, and how it was reached: of two starts, the higher bound."""
        ends = jax.lax.map(lambda cooled: self._from(lowered, cooled), jnp.array([False, True]))
        bounds = ends[0].bound
        best = jnp.argmax(jnp.where(jnp.isnan(bounds), -jnp.inf, bounds))
        return jax.tree.map(lambda x: x[best], ends)

    def _from(
        self, lowered: Lowered, cooled: Bool[Array, ""]
    ) -> tuple[structured.Structured, Convergence]:
        """From dynamics that cover all regimes, or from those of the model with more noise that cools."""
        chain, form = lowered
        tolerance = jnp.asarray(self.tolerance, chain.y.dtype)
        begin = jnp.where(cooled, min(_COOLING, self.iterations), _WIDE)

        def heated(turns: Array) -> structured.SwitchingChain:
            heat = jnp.exp2(jnp.maximum(begin - 1 - turns, 0).astype(tolerance.dtype))
            return structured.heated(chain, jnp.where(cooled, heat, 1))

        nowhere = structured.unknown(heated(jnp.zeros((), int)))

        def goes_on(turn: _Turn) -> Bool[Array, ""]:
            return (turn.gain > tolerance) & (turn.turns < self.iterations)

        def trial(turn: _Turn) -> _Turn:
            old, begins = turn.q, turn.turns < begin
            warm = heated(turn.turns)
            probs = jnp.where(turn.turns < _EVEN, nowhere.probs, old.probs)
            wide = structured.widened(chain, nowhere.naturals, old.states, probs)
            aim = structured.target(warm, old.probs, old.pairs, old.states)
            there = jax.tree.map(lambda a, b: jnp.where(begins & ~cooled, a, b), wide, aim)
            new = structured.infer(warm, structured.between(old.naturals, there, turn.size), form)
            gain = new.bound - old.bound
            better = begins | (gain >= 0)
            # a step that does not raise the bound is halved, until it is too short to matter
            spent = ~better & ((gain >= -tolerance) | (turn.size < structured.SHORTEST))
            sd = jnp.sqrt(jnp.diagonal(old.states.covariance, axis1=1, axis2=2))
            change = jnp.max(jnp.abs(new.states.mean - old.states.mean) / sd)
            longer = jnp.where(begins, 1, jnp.minimum(2 * turn.size, 1))
            return _Turn(
                q=jax.tree.map(lambda new, old: jnp.where(better, new, old), new, old),
                size=jnp.where(better, longer, turn.size / 2),
                # what a whole step would have gained: short ones gain little far from the end, too
                gain=jnp.where(better & ~begins, gain / turn.size, jnp.where(spent, 0, jnp.inf)),
                change=jnp.where(better, change, turn.change),
                turns=turn.turns + 1,
            )

        far = jnp.asarray(jnp.inf, chain.y.dtype)
        # a first step of no length: the states where regimes weigh the same
        size = jnp.where(cooled, 0, jnp.ones_like(far))
        start = _Turn(nowhere, size, far, far, jnp.zeros((), int))
        end = jax.lax.while_loop(goes_on, trial, start)
        return end.q, Convergence(end.turns, end.change, end.gain <= tolerance, -end.q.bound)

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """A lower bound of ``log p(y)``."""
        return compensated_sum(self.pointwise(model, series))

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """The share of each moment in the lower bound; only their sum bounds anything."""
        lowered = self.lower(model, series)
        fixed = lowered._replace(chain=jax.lax.stop_gradient(lowered.chain))
        q = jax.lax.stop_gradient(self.infer(fixed)[0])
        # at the fixed point the bound changes with the parameters as if q stayed
        over = structured.regimes_chain(lowered.chain, q.states)
        return finite.pointwise(over, parallel=False) + q.entropy

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """Not there: the law of whole paths holds no one-step predictions."""
        raise NoResiduals(
            "StructuredVariational makes no one-step predictions, and so no residuals: those of "
            "ParticleFilter() or, without recurrence, RaoBlackwellised() are of their predictions."
        )

    def posterior(self, model: Any, series: Series, kind: Any) -> StructuredPosterior:
        """The law of regimes and states given all data."""
        if kind != "smoothed":
            raise TypeError(
                "StructuredVariational fits a law of whole paths to all data, and does not filter: use "
                "`smooth`, or filter with RaoBlackwellised() or, if the regimes depend on the state, "
                "ParticleFilter()."
            )
        lowered = self.lower(model, series)
        q, convergence = self.infer(lowered)
        return self.posterior_of(model, series, lowered, q, convergence)

    def posterior_of(
        self,
        model: Any,
        series: Series,
        lowered: Lowered,
        q: structured.Structured,
        convergence: Convergence,
    ) -> StructuredPosterior:
        """The posterior that a mean field is, with predictions after the last observation."""
        chain, form = lowered
        if series.complete is not True:
            q = structured.continued(chain, q, form)
        return StructuredPosterior(
            mean=q.states.mean,
            covariance=q.states.covariance,
            probs=q.probs,
            times=series.times,
            labels=None,
            log_likelihood=q.bound,
            pointwise=q.pointwise,
            y=series.channels,
            lag_one=q.states.lag_one,
            pairs=q.pairs,
            states_chain=structured.gaussian_chain(q.naturals, form)[0],
            regimes_chain=structured.regimes_chain(chain, q.states),
            convergence=convergence,
            state_names=state_names(model),
            form=form,
        )

    def sample_states(
        self, model: Any, series: Series, key: PRNGKeyArray, draws: int
    ) -> RegimeState:
        """Joint draws of all regimes ``(draws, T)`` and states ``(draws, T, n)`` given all observations.

        After the last observation they are drawn from the model itself.
        """
        lowered = self.lower(model, series)
        q, convergence = self.infer(lowered)
        posterior = self.posterior_of(model, series, lowered, q, convergence)
        inside, after = jax.random.split(key)
        drawn = posterior.sample(inside, draws)
        steps = jax.tree.map(lambda x: x[1:], steps_of(series)[0])
        within = lowered.chain.within[1:]

        def path(drawn: RegimeState, key: PRNGKeyArray) -> RegimeState:
            def move(here: RegimeState, row: tuple) -> tuple[RegimeState, RegimeState]:
                step, given, inside, key = row
                moved = model.transition(here, step).sample(key)
                new = jax.tree.map(
                    lambda old, new: jnp.where(inside, old, new).astype(old.dtype), given, moved
                )
                return new, new

            first = at(drawn, 0)
            later = jax.tree.map(lambda x: x[1:], drawn)
            keys = jax.random.split(key, len(within))
            rest = jax.lax.scan(move, first, (steps, later, within, keys))[1]
            return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)

        return jax.vmap(path)(drawn, jax.random.split(after, draws))

    def forecast(self, model: Any, series: Series, rows: Array) -> ParticleForecast:
        """The law of observations at some moments of a recording, of which they are not part."""
        from statespace.chains import particle
        from statespace.forecasts.particle import forecast
        from statespace.methods.particle_filter import posterior_of

        paths = self.sample_states(model, series, jax.random.key(0), self.draws)
        t = len(series)
        over_time = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), paths)
        dtype = paths.state.dtype
        even = jnp.full((t, self.draws), -jnp.log(float(self.draws)), dtype)
        cloud = particle.Cloud(over_time, even)
        pointwise = self.pointwise(model, series)
        full, nothing = jnp.full(t, float(self.draws), dtype), jnp.zeros(t, bool)
        run = particle.Run(cloud, jnp.sum(pointwise), pointwise, full, ~nothing, nothing)
        return forecast(
            model, posterior_of(model, series, run, cloud, "smoothed", paths=True), series, rows
        )

    def online(self, model: Any, dt: float) -> Any:
        """Not there: the law is one of whole paths."""
        raise TypeError(
            "StructuredVariational fits a law of whole paths to all data, and cannot be fed one "
            "observation at a time: use RaoBlackwellised() or, if the regimes depend on the state, "
            "ParticleFilter()."
        )

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be smoothed by `vmap`; if not, one recording after the other."""
        states = initial_law(_Part(conditionals(model)[0].of(0)), at(steps_of(series)[0], 0))
        return states.mean.shape[0] <= la.UNROLLED or jax.default_backend() != "cpu"


class _Turn(NamedTuple):
    """The iteration under way: the best mean field so far, and the size of the next step of its states."""

    q: structured.Structured
    size: Float[Array, ""]
    gain: Float[Array, ""]
    change: Float[Array, ""]
    turns: Int[Array, ""]


class _Part(eqx.Module):
    """An initial law where a model is expected."""

    initial: Any


def conditionals(model: Any) -> tuple[Switching, Switching, Switching]:
    """The three switching conditionals of a model.

    Raises:
        TypeError: naming the one that is not of the kind that the method needs, and the kind.
    """
    for name in ("initial", "transition", "observation"):
        part = getattr(model, name)
        if not isinstance(part, Switching):
            raise TypeError(
                f"StructuredVariational does not fit this model: its `{name}` is a "
                f"{type(part).__name__}; the method needs Switching there, with a linear Gaussian "
                "conditional for each regime."
            )
        if name == "initial" and not isinstance(part.kernel, Categorical):
            raise TypeError(
                "`initial` of the model must be Switching with a Categorical for its kernel, got "
                f"{type(part.kernel).__name__}."
            )
        for k, conditional in enumerate(part.conditionals):
            if name != "initial" and not hasattr(conditional, "at"):
                raise TypeError(
                    f"StructuredVariational does not fit this model: in its `{name}` the conditional of "
                    f"regime {k} is a {type(conditional).__name__}; it must be AffineGaussian or another "
                    "linear Gaussian conditional."
                )
    return model.initial, model.transition, model.observation


def _start(initial: Switching, step: Step) -> Law:
    """The law of the first state in every regime."""
    laws = [initial_law(_Part(initial.of(k)), step) for k in range(initial.regimes)]
    if any(law.diffuse is not None for law in laws):
        raise ValueError(
            "StructuredVariational needs a proper `initial`: give `Gaussian(mean, scale)` without diffuse "
            "directions."
        )
    n = laws[0].mean.shape[0]
    white = [whitening(noise(law, "covariance")) for law in laws]
    return Law(
        jnp.zeros((len(laws), n, 0), laws[0].mean.dtype),
        jnp.stack([law.mean for law in laws]),
        jnp.stack([w for w, _ in white]),
        jnp.stack([s for _, s in white]),
    )


def _of_regimes(part: Switching, count: int, step: Step) -> Law:
    """The laws of all regimes at one step."""
    laws = [part.of(k).at(step) for k in range(count)]
    white = [whitening(noise(law, "covariance")) for law in laws]
    return Law(
        jnp.stack([law.matrix for law in laws]),
        jnp.stack([law.offset for law in laws]),
        jnp.stack([w for w, _ in white]),
        jnp.stack([s for _, s in white]),
    )


def whitening(covariance: Float[Array, "d d"]) -> tuple[Float[Array, "d d"], Float[Array, ""]]:
    """``L^{-1}`` of a covariance ``L L^T``, and the log density of ``N(0, L L^T)`` at zero."""
    d = len(covariance)
    factor = la.cholesky(covariance)
    inverse = la.solve_lower(factor, la.eye(d, covariance))
    return inverse, -la.log_diagonal(factor) - 0.5 * d * _LOG_2PI


def _without_missing(
    observation: Switching,
    count: int,
    law: Law,
    steps: Step,
    varies: Step,
    seen: Bool[Array, "T m"],
) -> Law:
    """The laws of what was seen: a missing entry has a zero row of the whitener, and no density."""
    covariances = lambda s: jnp.stack(
        [noise(observation.of(k).at(s), "covariance") for k in range(count)]
    )
    full = stack(covariances, steps, varies)

    def moment(full: Array, seen: Array) -> tuple[Array, Array]:
        both = seen[:, None] & seen[None, :]

        def regime(full: Array) -> tuple[Array, Array]:
            unit = la.eye(len(seen), full)
            white, scale = whitening(jnp.where(both, full, unit))
            return jnp.where(both, white, 0), scale + 0.5 * _LOG_2PI * jnp.sum(~seen)

        return jax.vmap(regime)(full)

    white, scale = vmap_moments(moment, full, seen)
    return law._replace(whitener=white, log_scale=scale)


def regime_scores(
    kernel: Any, later: Step, varies: Step
) -> tuple[Float[Array, "S J K"], Float[Array, "K n"] | None]:
    """What the law of the next regime is made of."""
    if isinstance(kernel, RecurrentKernel):
        return stack(kernel.scores, later, varies), kernel.weights

    def logs(step: Step) -> Float[Array, "K K"]:
        probs = kernel.matrix(step)
        possible = probs > 0
        return jnp.where(possible, jnp.log(jnp.where(possible, probs, 1)), -jnp.inf)

    return stack(logs, later, varies), None
