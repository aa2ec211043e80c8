"""The law of states and regimes by structured variational inference: two independent chains."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import finite, gaussian
from statespace.conditionals.switching import RegimeState
from statespace.labels import Labels
from statespace.posteriors.switching import RegimesAndStates


class StructuredPosterior(RegimesAndStates):
    """``q(x) q(z)``: a Gaussian chain of states times a finite chain of regimes, given all data.

    Attributes:
        mean: ``E[x_t | data]``, shape ``(T, n)``.
        covariance: ``Cov[x_t | data]``, shape ``(T, n, n)``.
        probs: ``P(r_t = k | data)``, shape ``(T, K)``.
        times: shape ``(T,)``.
        log_likelihood: a lower bound of the log density of all observations.
        pointwise: the share of each moment in it, shape ``(T,)``.
        y: the observations, shape ``(T, m)``, NaN where missing.
        lag_one: ``Cov[x_t, x_{t+1} | data]``, shape ``(T - 1, n, n)``.
        pairs: ``P(r_t = j, r_{t+1} = k | data)``, shape ``(T - 1, K, K)``.
        states_chain: the Gaussian chain.
        regimes_chain: the finite chain.
        convergence: how the iteration ended, as of :class:`~statespace.IteratedSmoother`; ``cost`` is minus
            the bound.
        labels: names of moments and channels, or None.
        state_names: names of the n states, or None.
        form: of the Gaussian chain's arithmetic.
    """

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    probs: Float[Array, "T K"]
    times: Float[Array, " T"]
    labels: Labels | None = eqx.field(static=True)
    log_likelihood: Float[Array, ""]
    pointwise: Float[Array, " T"]
    y: Float[Array, "T m"]
    lag_one: Float[Array, "T-1 n n"]
    pairs: Float[Array, "T-1 K K"]
    states_chain: gaussian.Chain
    regimes_chain: finite.Chain
    convergence: Any
    components: dict[str, Any] | None = None
    state_names: tuple[str, ...] | None = eqx.field(static=True, default=None)
    form: gaussian.Form = eqx.field(static=True, default="covariance")
    kind: str = eqx.field(static=True, default="smoothed")

    @property
    def most_likely(self) -> Int[Array, " T"]:
        """The most probable path of regimes."""
        return _path(self.regimes_chain)

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> RegimeState:
        """Joint trajectories, ``regime`` ``(draws, T)`` and ``state`` ``(draws, T, n)``.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        return _sample(self.states_chain, self.regimes_chain, key, draws, self.form)

    def labelled(self, labels: Labels | None) -> StructuredPosterior:
        """The same with names of moments and channels."""
        return dataclasses.replace(self, labels=labels)

    def cut(self, size: int) -> StructuredPosterior:
        """The first moments of a padded recording."""
        t = len(self)

        def first(x: Array) -> Array:
            return x[:size] if x.shape[:1] == (t,) else x

        before = lambda x: x if len(x) == 1 else x[: size - 1]
        chain, regimes = self.states_chain, self.regimes_chain
        chain = chain._replace(
            transitions=jax.tree.map(before, chain.transitions),
            potentials=jax.tree.map(first, chain.potentials),
        )
        parts = {name: first(getattr(self, name)) for name in _OVER_TIME}
        return dataclasses.replace(
            self,
            **parts,
            log_likelihood=parts["pointwise"].sum(),
            lag_one=before(self.lag_one),
            pairs=before(self.pairs),
            states_chain=chain,
            regimes_chain=regimes._replace(
                transitions=before(regimes.transitions), potentials=first(regimes.potentials)
            ),
        )


_OVER_TIME = ("mean", "covariance", "probs", "times", "pointwise", "y")


@jax.jit
def _path(chain: finite.Chain) -> Int[Array, " T"]:
    return finite.viterbi(chain, parallel=False)[0]


@eqx.filter_jit
def _sample(
    states: gaussian.Chain, regimes: finite.Chain, key: Array, draws: int, form: gaussian.Form
) -> RegimeState:
    one, two = jax.random.split(key)
    paths = finite.sample(regimes, one, draws, parallel=False)
    return RegimeState(paths, gaussian.sample(states, two, draws, form))
