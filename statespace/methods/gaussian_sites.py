"""Laplace's method, variational inference and expectation propagation for any observation distribution."""

from __future__ import annotations

import dataclasses
import numbers
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains import gaussian
from statespace.chains.gaussian.covariances import full_carry
from statespace.chains.moments import compensated_sum
from statespace.checks import require_whole
from statespace.conditionals.discriminative import Discriminative
from statespace.forecasts.nongaussian import NonGaussianForecast
from statespace.linearisation import (
    Linearisation,
    SigmaPoints,
    Taylor,
    lower_factor,
    require_rule,
    rule_of,
)
from statespace.methods.gaussian_lowering import (
    check_transition,
    initial_law,
    noise,
    noise_over_time,
)
from statespace.methods.gaussian_method import GaussianMethod, Lowered, in_parallel
from statespace.methods.kalman import Kalman
from statespace.methods.linearised import check_conditional, make_affine, proper
from statespace.methods.lowering import at, dtype_of, stack, steps_of
from statespace.methods.potentials import check_observations, first_step, with_history
from statespace.methods.site_filter import SiteRun, observation_moments, run, together
from statespace.methods.site_problem import (
    Iterate,
    Marginals,
    Settings,
    SiteConvergence,
    SiteProblem,
    differentiable,
    log_evidence,
    solve,
)
from statespace.methods.sites import SiteRule, view_of
from statespace.model import Step
from statespace.posteriors.gaussian import GaussianPosterior
from statespace.scores import whiten
from statespace.series import Panel, Series

_FIRST = 10  # Newton steps a moment of the filter whose sites the iteration begins with


class SiteMethod(GaussianMethod):
    """What the three methods share that replace each observation by Gaussian sites.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32.
        parallel: whether to use associative scans. None: on accelerators only.
        linearisation: how transitions that are not affine are made so round the posterior: a rule of
            ``statespace.linearisation``, or its name: "taylor", "cubature", "unscented" or "gauss-hermite".
        iterations: the most that are made.
        tolerance: change of the posterior means, in standard deviations, and relative change of the variances
            at which it stops.
        damping: share of the old sites that each step keeps, at least 0 and below 1. None: chosen as it goes,
            by a line search where there is an objective, else by shortening steps when changes grow.

    Raises:
        TypeError: if ``linearisation`` is no rule.
        ValueError: if a setting is out of range.
    """

    linearisation: Linearisation = eqx.field(static=True, default=Taylor(), converter=rule_of)
    iterations: int = eqx.field(static=True, default=100)
    tolerance: float = eqx.field(static=True, default=1e-8)
    damping: float | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        name = type(self).__name__
        require_whole("iterations", name, self.iterations)
        if not self.tolerance >= 0:
            raise ValueError(f"`tolerance` of {name} must not be negative, got {self.tolerance}.")
        if self.damping is not None and not _is_share(self.damping):
            raise ValueError(
                f"`damping` of {name} must be at least 0 and below 1, or None, got {self.damping!r}."
            )
        require_rule("linearisation", name, self.linearisation)

    @property
    @abstractmethod
    def rule(self) -> SiteRule:
        """How sites are found."""

    @property
    def settings(self) -> Settings:
        """Of the iteration."""
        return Settings(self.iterations, self.tolerance, self.damping)

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse what cannot go together, before anything is traced.

        Raises:
            TypeError: if a conditional is not of a kind that the method needs.
            ValueError: if shapes do not fit, the initial law is diffuse, or the data are impossible.
        """
        name = type(self).__name__
        if self._exact(model) is not None:
            return
        if isinstance(model.observation, Discriminative):
            raise TypeError(
                f"{name} does not fit this model: its `observation` is Discriminative, p(x | y) in place of "
                "p(y | x); the method that fits is DiscriminativeKalman()."
            )
        step = first_step(data)
        law = proper(initial_law(model, step), name)
        if hasattr(model.transition, "at"):
            check_transition(law, model.transition, step)
        else:
            n = len(law.mean)
            check_conditional(model.transition, "transition", step, law.mean, n, name)
        check_observations(model.observation, data, None, step, law.mean)

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """The log evidence, with derivatives of the fixed point."""
        return self.evidence(model, series)[0]

    def evidence(
        self, model: Any, series: Series
    ) -> tuple[Float[Array, ""], SiteConvergence | None]:
        """The log evidence, and how the iteration ended; None where the model is linear Gaussian."""
        if (exact := self._exact(model)) is not None:
            return exact.log_likelihood(model, series), None
        problem, found, report, share = self._found(model, series)
        total = log_evidence(problem, found, share)
        return total, _with_cost(report, total)

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """The log density of each moment's observation under the prediction from those before.

        It is that of the filter, and sums to its approximation of the log likelihood, not to this method's.
        """
        if (exact := self._exact(model)) is not None:
            return exact.pointwise(model, series)
        return self._filter(model, series)[1].log_density

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """Errors of the filter's one-step predictions, whitened by their covariance; NaN where missing.

        Their mean is 0 and their variance 1 if the model is right; of few counts they are far from normal.
        """
        if (exact := self._exact(model)) is not None:
            return exact.standardised_errors(model, series)
        problem, filtered = self._filter(model, series)
        mean, covariance = _observed(problem, filtered)
        return whiten(series.channels - mean, covariance)[0]

    def lower(self, model: Any, series: Series) -> Lowered:
        """The chain with the sites in place of the observations."""
        if (exact := self._exact(model)) is not None:
            return exact.lower(model, series)
        problem, found, _ = self._solve(model, series)
        return _lowered(problem, problem.chain(found)[0])

    def posterior(self, model: Any, series: Series, kind: Any) -> GaussianPosterior:
        """The law of the states, with how the iteration ended as its ``convergence``.

        "filtered" is the law of each state given the past and the present, by assumed-density filtering: the
        site of a moment is found with the prediction as its prior, and what comes later never matters to it.
        Its ``pointwise`` are log densities of the one-step predictions. "smoothed" has all sites found
        together; its ``pointwise`` are the terms of the log evidence, of which each depends on all data.
        """
        if (exact := self._exact(model)) is not None:
            return exact.posterior(model, series, kind)
        problem, filtered = self._filter(model, series)
        moves = gaussian.Transitions(*_before_last(filtered.moves))
        now, report = Iterate(filtered.site, None), together(filtered.convergence)
        if kind == "smoothed":
            problem, now, report = self._solve(model, series, filtered)
        else:
            problem = problem._replace(moves=lambda _: moves)
        chain, constant = problem.chain(now)
        plain = self.posterior_of(model, series, _lowered(problem, chain), kind)
        pointwise = filtered.log_density
        if kind == "smoothed":
            surplus = problem.surplus(now, Marginals(plain.mean, plain.covariance))
            pointwise = plain.pointwise + constant + surplus
        mean, covariance = _observed(problem, filtered)
        return dataclasses.replace(
            plain,
            pointwise=pointwise,
            log_likelihood=compensated_sum(pointwise),
            predicted_mean=mean,
            predicted_covariance=covariance,
            convergence=_with_cost(report, jnp.sum(pointwise)),
        )

    def forecast(self, model: Any, series: Series, rows: Array) -> Any:
        """The law of observations at some moments of a recording, of which they are not part."""
        if (exact := self._exact(model)) is not None:
            return exact.forecast(model, series, rows)
        problem, found, report = self._solve(model, series)
        lowered = _lowered(problem, problem.chain(found)[0])
        states = self.posterior_of(model, series, lowered, "smoothed")
        states = dataclasses.replace(states, convergence=report)
        moments = _observed_at(problem, states.mean[rows], states.covariance[rows], rows)
        return NonGaussianForecast(
            *moments,
            times=series.times[rows],
            posterior=states,
            rows=rows,
            observation=model.observation,
            steps=problem.steps,
            rule=self.rule,
            settings=self.settings,
        )

    def online(self, model: Any, dt: float) -> Any:
        """The assumed-density filter, one observation at a time."""
        if (exact := self._exact(model)) is not None:
            return exact.online(model, dt)
        from statespace.methods.online_sites import OnlineSites

        return OnlineSites(model, self, dt)

    def _exact(self, model: Any) -> Kalman | None:
        """The exact method, where the model is linear Gaussian."""
        from statespace.methods.choice import not_linear

        if not_linear(model) is None:
            return Kalman(form=self.form, parallel=self.parallel)
        return None

    def _problem(self, model: Any, series: Series) -> SiteProblem:
        steps, varies = steps_of(series)
        law = proper(initial_law(model, at(steps, 0)), type(self).__name__)
        dtype = dtype_of(series, law, model)
        form = self.form or ("sqrt" if dtype == jnp.float32 else "covariance")
        first = full_carry(noise(law, form), form, (), dtype)
        n = len(law.mean)
        later = jax.tree.map(lambda x: x[1:] if len(series) > 1 else x, steps)
        linear = hasattr(model.transition, "at")
        if linear:
            kernel = stack(model.transition.at, later, varies)
            known = gaussian.Transitions(
                kernel.matrix.astype(dtype),
                kernel.offset.astype(dtype),
                noise_over_time(kernel, form).astype(dtype),
            )

        def moves(nominal: Marginals) -> gaussian.Transitions:
            if linear:
                return known
            spread = nominal.covariance
            if form == "sqrt":
                spread = jax.vmap(lower_factor)(spread)

            def one(step: Step, mean: Array, spread: Array) -> tuple:
                made = make_affine(
                    model.transition, step, self.linearisation, mean, spread, form, "transition"
                )
                return tuple(a.astype(dtype) for a in made)

            before = _before_last((nominal.mean, spread))
            return gaussian.Transitions(*jax.vmap(one)(later, *before))

        steps = with_history(model.observation, series, steps)
        view = jax.vmap(lambda step: view_of(model.observation, step, n, dtype))(steps)
        return SiteProblem(
            rule=self.rule,
            observation=model.observation,
            steps=steps,
            y=series.channels.astype(dtype),
            view=view,
            initial=gaussian.Initial(law.mean.astype(dtype), first),
            moves=moves,
            linear=linear,
            form=form,
            parallel=in_parallel(self.parallel, series),
        )

    def _filter(self, model: Any, series: Series) -> tuple[SiteProblem, SiteRun]:
        problem = self._problem(model, series)
        return problem, self._run(model, problem, self.rule, self.settings)

    def _run(self, model: Any, problem: SiteProblem, rule: SiteRule, settings: Settings) -> SiteRun:
        how = (self.linearisation, problem.initial, problem.steps, problem.y, problem.form)
        return run(model, rule, settings, *how)

    def _solve(
        self, model: Any, series: Series, first: SiteRun | None = None
    ) -> tuple[SiteProblem, Iterate, SiteConvergence]:
        """All sites together, with their derivatives."""
        problem, found, report, share = self._found(model, series, first)
        return problem, differentiable(problem, found, share), report

    def _found(
        self, model: Any, series: Series, first: SiteRun | None = None
    ) -> tuple[SiteProblem, Iterate, SiteConvergence, Array]:
        """All sites together, beginning with those of a filter; by default one that takes Newton's."""
        held_still = eqx.combine(jax.lax.stop_gradient(eqx.filter(model, eqx.is_array)), model)
        problem, still = self._problem(model, series), self._problem(held_still, series)
        if first is None:
            newton = SiteRule(at_mean=True)
            first = self._run(held_still, still, newton, Settings(_FIRST, self.tolerance))
        nominal = None if problem.linear else Marginals(first.mean, first.covariance)
        start = jax.lax.stop_gradient(Iterate(first.site, nominal))
        found, report, share = jax.lax.stop_gradient(solve(still, start, self.settings))
        return problem, found, report, share


def _is_share(value: Any) -> bool:
    return isinstance(value, numbers.Real) and 0 <= float(value) < 1


def _with_cost(report: SiteConvergence, evidence: Array) -> SiteConvergence:
    """The report, with minus the log evidence where the iteration raised nothing."""
    return report._replace(cost=jnp.where(jnp.isnan(report.cost), -evidence, report.cost))


def _before_last(rows: Any) -> Any:
    """All rows but the last; a single one stays."""
    return jax.tree.map(lambda x: x[:-1] if len(x) > 1 else x, rows)


def _lowered(problem: SiteProblem, chain: gaussian.Chain) -> Lowered:
    return Lowered(chain, {"form": problem.form, "parallel": problem.parallel})


def _observed(problem: SiteProblem, filtered: SiteRun) -> tuple[Array | None, Array | None]:
    """The laws of the observations under the filter's predictions."""
    return _moments(problem, filtered.predicted, filtered.predicted_spread, problem.steps)


def _observed_at(
    problem: SiteProblem, mean: Array, covariance: Array, rows: Array
) -> tuple[Array | None, Array | None]:
    """The laws of new observations at some moments."""
    spread = covariance
    if problem.form == "sqrt":
        spread = jax.vmap(lower_factor)(covariance)
    return _moments(problem, mean, spread, at(problem.steps, rows))


def _moments(problem: SiteProblem, mean: Array, spread: Array, steps: Step) -> tuple[Any, Any]:
    one = lambda step, mean, spread: observation_moments(
        problem.observation, step, mean, spread, problem.form
    )
    return jax.vmap(one)(steps, mean, spread)


class Laplace(SiteMethod):
    """Laplace's method: the normal law round the posterior mode of all states.

    The mode is found by Newton's method with a line search, so that the log joint density never falls; each
    step is one smoother of the chain. Needs: ``initial`` Gaussian; ``transition`` affine Gaussian, or with a
    mean and a covariance; ``observation`` any conditional whose log density is twice differentiable in the
    state, best :class:`GeneralisedLinear`. Exact for linear Gaussian models. Missing channels, irregular
    times and inputs are supported. The log likelihood is Laplace's approximation of the evidence.

    Source: Fahrmeir & Kaufmann (1991), Metrika 38; Durbin & Koopman (2012), chapter 10; for the filter Koyama
    et al. (2010), JASA 105.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32.
        parallel: whether to use associative scans. None: on accelerators only.
        linearisation: how transitions that are not affine are made so round the posterior.
        iterations: the most that are made.
        tolerance: change of the posterior means, in standard deviations, and relative change of the variances
            at which it stops.
        damping: share of the old sites that each step keeps. None: by a line search; where transitions are
            made affine by shortening steps when changes grow.

    Raises:
        ValueError: if a setting is out of range.
    """

    @property
    def rule(self) -> SiteRule:
        """Newton's."""
        return SiteRule(at_mean=True)


class ConjugateVI(SiteMethod):
    """Variational inference by natural gradients: the normal law nearest to the posterior in KL(q || p).

    Of all normal laws of the states it is the one with the largest evidence lower bound (ELBO), which is the
    log likelihood that it gives. Each step is one smoother of the chain (conjugate-computation variational
    inference), and with the default damping raises the bound. Needs: ``initial`` Gaussian; ``transition``
    affine Gaussian, or with a mean and a covariance; ``observation`` any conditional whose log density is
    twice differentiable in the state, best :class:`GeneralisedLinear`. Exact for linear Gaussian models.
    Missing channels, irregular times and inputs are supported.

    Source: Khan & Lin (2017), AISTATS; Chang, Wilkinson, Khan & Solin (2020), MLSP.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32.
        parallel: whether to use associative scans. None: on accelerators only.
        linearisation: how transitions that are not affine are made so round the posterior.
        iterations: the most that are made.
        tolerance: change of the posterior means, in standard deviations, and relative change of the variances
            at which it stops.
        damping: share of the old sites that each step keeps. None: by a line search; where transitions are
            made affine by shortening steps when changes grow.
        points: rule of points for the expectations, of ``statespace.linearisation``. None: 20 Gauss–Hermite
            points for each channel of a :class:`GeneralisedLinear`, else a rule in the state.

    Raises:
        ValueError: if a setting is out of range.
        TypeError: if ``points`` is no rule of points.
    """

    points: SigmaPoints | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        _check_points(self.points, type(self).__name__)

    @property
    def rule(self) -> SiteRule:
        """The natural gradient's."""
        return SiteRule(points=self.points)


class ExpectationPropagation(SiteMethod):
    """Expectation propagation: each site makes the law match the moments of that with the true observation.

    Close to exact for counts and choices, in means, variances and evidence. All sites are updated at once,
    with one smoother of the chain for each iteration. A site whose precision would be negative, as heavy
    tails have, is given none, and only its mean is matched; ``convergence.guarded`` counts them. Needs:
    ``initial`` Gaussian; ``transition`` affine Gaussian, or with a mean and a covariance; ``observation`` any
    conditional whose log density is twice differentiable in the state, best :class:`GeneralisedLinear`. Exact
    for linear Gaussian models. Missing channels, irregular times and inputs are supported.

    Source: Minka (2001), UAI; power: Minka (2004), Microsoft Research TR-2004-149; for time series Heskes &
    Zoeter (2002), UAI; the filter: assumed-density filtering.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32.
        parallel: whether to use associative scans. None: on accelerators only.
        linearisation: how transitions that are not affine are made so round the posterior.
        iterations: the most that are made.
        tolerance: change of the posterior means, in standard deviations, and relative change of the variances
            at which it stops.
        damping: share of the old sites that each step keeps. None: steps are shortened when changes grow.
        points: rule of points for the expectations, of ``statespace.linearisation``. None: 20 Gauss–Hermite
            points for each channel of a :class:`GeneralisedLinear`, else a rule in the state.
        power: 1, or a share of each observation that is matched at a time, which is safer and nearer to
            ``ConjugateVI``, its limit for 0.

    Raises:
        ValueError: if a setting is out of range.
        TypeError: if ``points`` is no rule of points.
    """

    points: SigmaPoints | None = eqx.field(static=True, default=None)
    power: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        _check_points(self.points, type(self).__name__)
        if not 0 < self.power <= 1:
            raise ValueError(
                f"`power` of ExpectationPropagation must be above 0 and at most 1, got {self.power}; for the "
                "limit 0 use ConjugateVI()."
            )

    @property
    def rule(self) -> SiteRule:
        """Moment matching."""
        return SiteRule(power=self.power, points=self.points)


def _check_points(points: Any, name: str) -> None:
    if points is not None and not isinstance(points, SigmaPoints):
        raise TypeError(
            f"`points` of {name} must be a rule of points such as statespace.linearisation.GaussHermite(20), "
            f"or None, got {points!r}."
        )
