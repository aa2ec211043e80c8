"""Which connections exist in which state: the one-hot prior of couplings, by variational EM."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.conditionals import aggregates
from statespace.emissions.glm import GLM
from statespace.emissions.glm_likelihood import Regression
from statespace.learners import edges as beliefs
from statespace.learners import em_finite
from statespace.learners.edges import Edges, Kinds, Site
from statespace.learners.likelihood import bare, channels, log_likelihood, steps
from statespace.learners.priors import Priors, checked_priors
from statespace.learners.problem import Problem, with_values
from statespace.learners.progress import bar
from statespace.learners.result import FitResult
from statespace.learners.table import header, table
from statespace.parameters import freeze, parameters, replace

_SWEEPS = 5  # over the coefficients between two E-steps
_DAMPING = (
    0.5  # of the likelihood's quadratic; undamped it may overshoot for ever, as a scoring step does
)


class OneHot(eqx.Module):
    """Learns which channel excites or inhibits which in each state, and how strongly.

    Each coupling of a :class:`statespace.GLMHMM` is ``w = sign * strength`` with a sign of -1, 0 or 1
    (inhibitory, none, excitatory). The probabilities of the three signs belong to the pair of channels: all
    states share them, and they have a Dirichlet prior; strengths are half-normal with a scale that is
    learned. Sign and strength of an edge are integrated out exactly, edge by edge, on the likelihood's
    quadratic approximation, which is renewed with every E-step; so there is no temperature to anneal, and
    no corner of a simplex where the objective has no bound. The fitted coupling is its posterior mean.

    A fit by EM is a good start, and can be given in place of the model, or asked for by ``warm_start``. It is
    not necessary: beliefs that begin undecided and are damped separate the states by themselves, from random
    couplings (not from zeros, where all states are alike). A start at which EM has merged two states stays
    merged; ``python -m benchmarks one_hot`` has both ways side by side.

    Args:
        concentration: of the Dirichlet prior of inhibitory, none and excitatory.
        iterations: at most so many.
        tolerance: stop when no coefficient moves by more than this.
        warm_start: a learner that goes first when a model is given and not a result, such as
            ``EM(starts=5)``; None for none.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    Raises:
        ValueError: if a setting is not positive.

    Example:
        >>> gaussian = ss.fit(model, sessions, learner=ss.EM())
        >>> fitted = ss.fit(gaussian, sessions, learner=ss.OneHot())
        >>> fitted.inclusion  # (K, m, m): probability that there is a connection, to and from

    References:
        Li et al. (2024), One-hot generalized linear model for switching brain state discovery, ICLR: the
        model, there with a relaxed posterior. Titsias & Lázaro-Gredilla (2011), Spike and slab variational
        inference for multi-task and multiple kernel learning, NeurIPS: the form of the posterior.
    """

    concentration: tuple[float, ...] = eqx.field(static=True, default=(0.2, 1.6, 0.2))
    iterations: int = eqx.field(static=True, default=100)
    tolerance: float = eqx.field(static=True, default=1e-3)
    warm_start: Any = None
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if len(self.concentration) != 3 or not min(self.concentration) > 0:
            raise ValueError(
                "`concentration` of OneHot must be three positive numbers (inhibitory, none, excitatory), "
                f"got {self.concentration}."
            )
        if self.iterations < 1:
            raise ValueError(f"`iterations` must be at least 1, got {self.iterations}.")
        if not self.tolerance > 0:
            raise ValueError(f"`tolerance` must be positive, got {self.tolerance}.")

    def fit(
        self,
        model: Any,
        data: Any,
        *,
        priors: Priors | None = None,
        key: PRNGKeyArray | None = None,
        method: Any = None,
        start: FitResult | None = None,
    ) -> OneHotResult:
        """Beliefs about the edges, and the other parameters; see :func:`statespace.fit`.

        Raises:
            TypeError: if the model's emission is no GLM.
            ValueError: if it has no coupling, or one of several basis functions, or parts of it are frozen or
                have priors.
        """
        priors = checked_priors(model, priors)
        _check(model, priors)
        if start is None and self.warm_start is not None:
            model = self.warm_start.fit(model, data, priors=priors, key=key, method=method).model
        problem = Problem(model, bare(data), priors, method)
        concentration = jnp.asarray(self.concentration, model.emission.coupling.dtype)
        state = _begin(problem, concentration)
        trace: list[float] = []
        change: Any = np.inf
        iteration = 0
        with bar(self.iterations, "one-hot", self.progress) as shown:
            while change > self.tolerance and iteration < self.iterations:
                state, value, change = _iterate(problem, state, concentration)
                trace.append(float(value))
                iteration += 1
                shown.set_postfix_str(f"log likelihood {trace[-1]:.3f}", refresh=False)
                shown.update(1)
        problem = with_values(problem, state.values)
        trace.append(float(_log_likelihood(problem)))
        converged = float(change) <= self.tolerance
        return OneHotResult(
            model=problem.model,
            data=data,
            learner="one-hot prior, variational EM",
            log_likelihood=trace[-1],
            log_prior=None,
            converged=converged,
            reason="no coefficient moves by more than the tolerance"
            if converged
            else f"{self.iterations} iterations were not enough; raise `iterations`, or go on from here",
            iterations=iteration,
            trace=np.asarray(trace),
            uncertainty=None,
            _problem=problem,
            **_report(problem.model.emission, state.edges, concentration),
            strength_scale=float(state.scale),
        ).warn_unless_converged()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OneHotResult(FitResult):
    """A fitted model, and what is believed of each of its connections.

    Arrays over connections are indexed by state, the channel acted on, and the channel that acts.

    Attributes:
        sign_probs: posterior probabilities of inhibitory, none and excitatory, shape ``(K, m, m, 3)``.
        coupling_std: posterior standard deviations of the coupling, shape ``(K, m, m)``; its means are
            ``model.coupling``. Each is given the other edges, so they are too small where the channels' pasts
            are correlated.
        connectivity: posterior means of the probabilities of the three signs that all states share, shape
            ``(m, m, 3)``.
        strength_scale: scale of the half-normal law of the strengths.
    """

    sign_probs: Float[np.ndarray, "K m m 3"]
    coupling_std: Float[np.ndarray, "K m m"]
    connectivity: Float[np.ndarray, "m m 3"]
    strength_scale: float

    def summary(self, level: float = 0.95) -> str:
        """The fit, and how many connections each state has; the arrays have them one by one."""
        names = getattr(self.model, "state_names", None) or range(len(self.sign_probs))
        rows = []
        for name, state in zip(names, self.sign_probs):
            counts = [*state.sum(axis=(0, 1)), (state[..., 1] < 0.5).sum()]
            rows.append((f"state {name}", *(f"{count:.1f}" for count in counts)))
        columns = ("inhibitory", "none", "excitatory", "likely connections")
        facts = [*self._facts(), ("Strengths", f"half-normal, scale {self.strength_scale:.4g}")]
        return "\n".join([*header("Fitted connections", facts), *table(columns, rows)])

    @property
    def inclusion(self) -> Float[np.ndarray, "K m m"]:
        """Posterior probability that there is a connection."""
        return 1 - self.sign_probs[..., 1]

    @property
    def signs(self) -> np.ndarray:
        """The most probable sign of each connection: -1, 0 or 1, shape ``(K, m, m)``."""
        return np.argmax(self.sign_probs, axis=-1) - 1


def _check(model: Any, priors: Priors) -> None:
    glm = getattr(model, "emission", None)
    if not isinstance(glm, GLM):
        raise TypeError(
            "OneHot learns the coupling of a GLMHMM (an HMM whose emission is ss.emissions.GLM), got "
            f"{type(model).__name__} with the observation {type(model.observation).__name__}."
        )
    if glm.coupling is None:
        raise ValueError(
            "OneHot needs a coupling to learn: `GLMHMM(..., history=ss.emissions.Exponential(lags=5))`."
        )
    if glm.coupling.shape[-1] != 1:
        raise ValueError(
            "OneHot gives each pair of channels one sign and one strength, but the coupling has "
            f"{glm.coupling.shape[-1]} basis functions: use a basis of one function."
        )
    begin = "emission."
    whole, free = (
        {name for name in parameters(model, frozen=frozen) if name.startswith(begin)}
        for frozen in (True, False)
    )
    if whole != free:
        raise ValueError(
            f"OneHot learns all of the emission, but {sorted(whole - free)} are frozen: do not freeze them."
        )
    taken = [name for name in priors if name.startswith(begin)]
    if taken:
        raise ValueError(
            f"`priors`: OneHot brings the prior of the emission itself; leave out {taken}."
        )


class _State(NamedTuple):
    values: dict[str, Array]
    edges: Edges
    likelihood: Site
    scale: Float[Array, ""]


@eqx.filter_jit
def _begin(problem: Problem, concentration: Float[Array, " 3"]) -> _State:
    """Beliefs around the given model before the signs are known."""
    glm = problem.model.emission
    edges = beliefs.start(glm.coefficients[..., 0], concentration)
    _, statistics = em_finite.expect(problem.model, problem)
    regression = _regression(problem, problem.model, statistics)
    some = 1 - concentration[1] / jnp.sum(concentration)
    scale = jnp.sqrt(jnp.mean(glm.coupling**2) / some)
    return _State(parameters(problem.model), edges, _site(regression, edges), scale)


@eqx.filter_jit
def _iterate(
    problem: Problem, state: _State, concentration: Float[Array, " 3"]
) -> tuple[_State, Array, Array]:
    """One E-step, then transitions by frequencies and edges by sweeps.

    Returns:
        The new state; the log likelihood of the old one; the largest change of a coefficient.
    """
    model = replace(problem.model, state.values)
    value, statistics = em_finite.expect(model, problem)
    held = freeze(model, "emission")
    rest = Problem(held, problem.data, problem.priors, problem.method)
    new, _ = em_finite.maximise(held, rest, statistics, jnp.zeros(()))
    regression = _regression(problem, model, statistics)
    likelihood = jax.tree.map(
        lambda old, new: _DAMPING * old + (1 - _DAMPING) * new,
        state.likelihood,
        _site(regression, state.edges),
    )
    kinds = _kinds(model.emission)
    found = beliefs.refine(state.edges, likelihood, kinds, concentration, state.scale, _SWEEPS)
    glm = model.emission.with_coefficients(found.mean[..., None])
    if glm.scale is not None:
        noise = regression.scale(glm.coefficients, 0.0)
        glm = eqx.tree_at(lambda e: e.scale, glm, noise)
    new |= {f"emission.{name}": value for name, value in parameters(glm).items()}
    change = jnp.max(jnp.abs(found.mean - state.edges.mean))
    scale = beliefs.strength_scale(found, kinds, state.scale)
    return _State(state.values | new, found, likelihood, scale), value, change


def _regression(problem: Problem, model: Any, statistics: em_finite.Statistics) -> Regression:
    """The data of the M-step, each moment weighted by its expected states."""
    data = problem.data
    kernel = em_finite.bare(model).transition
    weights = aggregates.fold(kernel.aggregate, statistics.occupancy)
    return model.emission.sums(channels(data), steps(data), weights)


def _site(regression: Regression, edges: Edges) -> Site:
    """The expected log likelihood near the means."""
    here = regression.curve(edges.mean[..., None])
    return beliefs.site(edges.mean, here.gradient, here.information)


def _kinds(glm: GLM) -> Kinds:
    """Of the coefficients inputs, coupling, bias."""
    p = glm.coefficients.shape[2]
    index = jnp.arange(p)
    inputs = p - 1 - glm.coupling[0, 0].size
    bias = index == p - 1
    return Kinds(
        edge=(index >= inputs) & ~bias,
        shared=bias & (len(glm.bias) < glm.states),
        precision=jnp.where(index < inputs, glm.ridge, 0),
    )


def _report(glm: GLM, edges: Edges, concentration: Array) -> dict[str, np.ndarray]:
    """Of the edges only, as arrays for the result."""
    m = glm.channels
    chosen = slice(-1 - m, -1)
    probs = edges.probs[:, :, chosen]
    variance = edges.square[:, :, chosen] - edges.mean[:, :, chosen] ** 2
    return {
        "sign_probs": np.asarray(probs),
        "coupling_std": np.sqrt(np.maximum(np.asarray(variance), 0)),
        "connectivity": np.asarray(beliefs.connectivity(probs, concentration)),
    }


@eqx.filter_jit
def _log_likelihood(problem: Problem) -> Float[Array, ""]:
    return log_likelihood(problem.model, problem.data, problem.method)
