"""Laws of the duration of a stay in each of finitely many states, counted in moments 1, 2, ….

A semi-Markov chain makes of each state a row of sub-states, which are passed one after the other and left
with probabilities that give the duration its law.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from statespace.checks import require_positive, require_shape, require_support
from statespace.conditionals.finite import check_probabilities, pattern, sparse_simplex
from statespace.parameters import as_array, parameter, parameters, replace, supports

__all__ = ["Durations", "Geometric", "NegativeBinomial", "Pascal", "Poisson", "Probabilities"]

_EVALUATIONS = (
    30  # of the expected log probability in one M-step, which starts where the last one ended
)
_BEYOND = 1000  # moments after the last sub-state over which a thin tail is summed


class Durations(eqx.Module):
    """The law of the duration of a stay in each of K states.

    The array fields of a subclass are its parameters, with a leading axis of the K states.
    """

    @property
    def parts(self) -> tuple[int, ...]:
        """How many sub-states each state needs."""
        raise NotImplementedError

    def log_moves(self) -> tuple[Float[Array, "K D"], Float[Array, "K D"], Float[Array, "K D"]]:
        """Log probability to stay in each sub-state, to go on to the next, and to leave the state."""
        raise NotImplementedError

    def m_step(
        self, hold: Float[Array, "K D"], onward: Float[Array, "K D"], leave: Float[Array, "K D"]
    ) -> Durations:
        """The law that maximises the expected log probability of moves from sub-states, or raises it.

        A state that was never entered keeps its law.

        Args:
            hold: expected number of moments after which a sub-state was kept.
            onward: of those after which the next one came.
            leave: of those after which the state was left.
        """
        from statespace.optimisation.climbing import climb

        def gain(values: dict[str, Array]) -> Array:
            logs = replace(self, values).log_moves()
            counts = (hold, onward, leave)
            each = [jnp.sum(_times(n, log)) for n, log in zip(counts, logs, strict=True)]
            return jnp.sum(jnp.stack(each))

        seen = jnp.sum(hold + onward + leave, axis=1) > 0
        old = parameters(self)
        new = climb(gain, old, supports(self), _EVALUATIONS)
        return replace(self, {k: jnp.where(seen, v, old[k]) for k, v in new.items()})

    @property
    def mean(self) -> Float[Array, " K"]:
        """Expected duration of a stay in each state."""
        raise NotImplementedError


class _ByHazards(Durations):
    """A law with a sub-state for each moment of a stay, from the probabilities to leave then."""

    def log_hazards(self) -> tuple[Float[Array, "K D"], Float[Array, "K D"]]:
        """Log probability to leave after moment 1 … D of a stay that has lasted so long, and to stay.

        From the last sub-state of a state on it does not change.
        """
        raise NotImplementedError

    def log_moves(self) -> tuple[Float[Array, "K D"], Float[Array, "K D"], Float[Array, "K D"]]:
        """Log probability to stay in each sub-state, to go on to the next, and to leave the state."""
        leave, stay = self.log_hazards()
        final = np.arange(leave.shape[1]) == np.asarray(self.parts)[:, None] - 1
        return jnp.where(final, stay, -jnp.inf), jnp.where(final, -jnp.inf, stay), leave

    @property
    def mean(self) -> Float[Array, " K"]:
        """Expected duration of a stay in each state."""
        _, stay = self.log_hazards()
        last = np.asarray(self.parts)[:, None] - 1
        inner = np.arange(stay.shape[1]) < last
        reached = jnp.exp(jnp.cumsum(jnp.where(inner, stay, 0), axis=1))
        leave = -jnp.expm1(jnp.take_along_axis(stay, last, axis=1)[:, 0])
        # 1 + sum over the inner sub-states of reaching the next, with the geometric stay in the last
        before = jnp.sum(jnp.where(inner, reached, 0), axis=1)
        end = jnp.exp(jnp.sum(jnp.where(inner, stay, 0), axis=1))
        return 1 + before + end * (1 - leave) / leave


class Geometric(_ByHazards):
    """Stays of the length that they have in a plain hidden Markov model.

    Args:
        leave: probability to leave at each moment, shape ``(K,)``; the mean duration is ``1 / leave``.

    Raises:
        ValueError: if an entry is not a probability above 0.
    """

    leave: Float[Array, " K"] = parameter("unit_interval")

    def __check_init__(self) -> None:
        _require_probability("leave", self.leave)

    @property
    def parts(self) -> tuple[int, ...]:
        """How many sub-states each state needs: one."""
        return (1,) * len(self.leave)

    def log_hazards(self) -> tuple[Float[Array, "K 1"], Float[Array, "K 1"]]:
        """Log probability to leave after each moment of a stay, and to stay."""
        return jnp.log(self.leave)[:, None], jnp.log1p(-self.leave)[:, None]

    def m_step(
        self, hold: Float[Array, "K 1"], onward: Float[Array, "K 1"], leave: Float[Array, "K 1"]
    ) -> Geometric:
        """Frequencies of leaving; see :meth:`Durations.m_step`."""
        return replace(self, {"leave": _frequency(leave, hold, self.leave)})


class Pascal(Durations):
    """Stays of several stages, each of geometric length: a few sub-states for long stays of any mean.

    The duration is negative binomial, of ``stages_k`` moments at least, with mean ``stages_k / leave_k`` and
    a relative deviation of about ``1 / sqrt(stages_k)``.

    Args:
        leave: probability to leave each stage at each moment, shape ``(K,)``.
        stages: the number of stages, of all states or of each.

    Raises:
        ValueError: if an entry is not a probability above 0, or there is not one number of stages of at
            least 1 for each state.

    References:
        Johnson & Willsky (2013), Bayesian nonparametric hidden semi-Markov models, section 4.
    """

    stages: tuple[int, ...] = eqx.field(static=True)
    leave: Float[Array, " K"] = parameter("unit_interval")

    def __init__(self, leave: Any, stages: Any):
        self.leave = as_array(leave)
        _require_probability("leave", self.leave)
        self.stages = _each_state("stages", stages, len(self.leave))

    @property
    def parts(self) -> tuple[int, ...]:
        """How many sub-states each state needs: its stages."""
        return self.stages

    @property
    def mean(self) -> Float[Array, " K"]:
        """Expected duration of a stay in each state."""
        return jnp.asarray(self.stages) / self.leave

    def log_moves(self) -> tuple[Float[Array, "K D"], Float[Array, "K D"], Float[Array, "K D"]]:
        """Log probability to stay in each stage, to go on to the next, and to leave the state."""
        stage, last = np.arange(max(self.stages)), np.asarray(self.stages)[:, None] - 1
        shape = (len(self.stages), max(self.stages))
        hold = jnp.broadcast_to(jnp.log1p(-self.leave)[:, None], shape)
        go = jnp.log(self.leave)[:, None]
        return hold, jnp.where(stage < last, go, -jnp.inf), jnp.where(stage == last, go, -jnp.inf)

    def m_step(
        self, hold: Float[Array, "K D"], onward: Float[Array, "K D"], leave: Float[Array, "K D"]
    ) -> Pascal:
        """Frequencies of leaving a stage; see :meth:`Durations.m_step`."""
        return replace(self, {"leave": _frequency(onward + leave, hold, self.leave)})


class _Counts(_ByHazards):
    """One moment and a count of further ones, exact up to a maximum, with a geometric tail beyond."""

    maximum: eqx.AbstractVar[tuple[int, ...]]

    def log_probs(self, more: Float[Array, " D"]) -> Float[Array, "K D"]:
        """Log probability of a stay of ``1 + more`` moments."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[int, ...]:
        """How many sub-states each state needs."""
        return self.maximum

    def log_hazards(self) -> tuple[Float[Array, "K D"], Float[Array, "K D"]]:
        """Log probability to leave after each moment of a stay that has lasted so long, and to stay."""
        end = np.asarray(self.maximum)[:, None]
        longest = int(end.max())
        more = np.arange(longest + _BEYOND)
        logs = self.log_probs(jnp.asarray(more, self._dtype))
        inside, tail = more < end - 1, (more >= end - 1) & (more < end - 1 + _BEYOND)
        least = jnp.finfo(logs.dtype).min
        below = jnp.sum(jnp.where(inside, jnp.exp(logs), 0), axis=1)
        # A thin tail is summed, as the difference to one would lose its digits; any other is that difference.
        thin = below > 1 - 1e-3
        summed = _with_rest(jnp.where(tail, logs, least), end - 2 + _BEYOND, logs)
        beyond = jnp.where(thin, summed, jnp.log1p(-jnp.where(thin, 0, below)))
        final = jnp.take_along_axis(logs, end - 1, axis=1)[:, 0]
        # u = log of P(duration >= d) / P(duration = d), backwards: sums of positive terms lose no digits
        u_last = jnp.maximum(beyond - final, jnp.finfo(logs.dtype).eps)
        ratios = jnp.diff(logs[:, : longest + 1], axis=1)

        def back(u: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            ratio, inner = at
            u = jnp.where(inner, jax.nn.softplus(ratio + u), u_last)
            return u, u

        each = (ratios.T, jnp.asarray(inside[:, :longest].T))
        _, u = jax.lax.scan(back, u_last, each, reverse=True)
        after = jnp.concatenate([u[1:], u[-1:]]) + ratios.T
        stay = jnp.where(each[1], after, jnp.log(jnp.expm1(u_last))) - u
        return -u.T, stay.T

    @property
    def _dtype(self) -> Any:
        raise NotImplementedError


def _with_rest(tail: Float[Array, "K N"], last: np.ndarray, logs: Array) -> Float[Array, " K"]:
    """Log of the sum of a tail whose terms after the last go on like a geometric series."""
    at = lambda i: jnp.take_along_axis(logs, i, axis=1)[:, 0]
    ratio = jnp.minimum(at(last) - at(last - 1), -1e-6)
    rest = at(last) + ratio - jnp.log(-jnp.expm1(ratio))
    return jnp.logaddexp(jax.nn.logsumexp(tail, axis=1), rest)


class Poisson(_Counts):
    """Stays of ``1 + Poisson(rate_k)`` moments.

    Args:
        rate: shape ``(K,)``; the mean duration is ``1 + rate``.
        maximum: the number of sub-states, of all states or of each: up to so many moments a stay has
            exactly this law, and beyond it is left at each moment with the same probability as at the last
            of these. Twice the mean is plenty.

    Raises:
        ValueError: if a rate is not positive, or there is not one maximum of at least 1 for each state.

    References:
        Langrock & Zucchini (2011), Hidden Markov models with arbitrary state dwell-time distributions.
    """

    rate: Float[Array, " K"] = parameter("positive")
    maximum: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, rate: Any, maximum: Any):
        self.rate = as_array(rate)
        _require_vector("rate", self.rate)
        require_positive("rate", self.rate, zero=False)
        self.maximum = _each_state("maximum", maximum, len(self.rate))

    def log_probs(self, more: Float[Array, " D"]) -> Float[Array, "K D"]:
        """Log probability of a stay of ``1 + more`` moments."""
        rate = self.rate[:, None]
        return more * jnp.log(rate) - rate - gammaln(more + 1)

    @property
    def _dtype(self) -> Any:
        return self.rate.dtype


class NegativeBinomial(_Counts):
    """Stays of ``1 + n`` moments, n negative binomial.

    The variance of n is ``further_k + further_k^2 / concentration_k``; with concentration 1 the law is
    geometric.

    Args:
        further: expected number of moments after the first, shape ``(K,)``; the mean duration is one more.
        concentration: shape ``(K,)``; the larger, the nearer to Poisson.
        maximum: as of :class:`Poisson`.

    Raises:
        ValueError: if shapes differ, an entry is not positive, or there is not one maximum of at least 1
            for each state.

    References:
        Langrock & Zucchini (2011); Johnson & Willsky (2013), Bayesian nonparametric hidden semi-Markov
        models.
    """

    further: Float[Array, " K"] = parameter("positive")
    concentration: Float[Array, " K"] = parameter("positive")
    maximum: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, further: Any, concentration: Any, maximum: Any):
        self.further, self.concentration = as_array(further), as_array(concentration)
        _require_vector("further", self.further)
        require_shape("concentration", self.concentration, self.further.shape)
        for name in ("further", "concentration"):
            require_positive(name, getattr(self, name), zero=False)
        self.maximum = _each_state("maximum", maximum, len(self.further))

    def log_probs(self, more: Float[Array, " D"]) -> Float[Array, "K D"]:
        """Log probability of a stay of ``1 + more`` moments."""
        mean, shape = self.further[:, None], self.concentration[:, None]
        spread = jnp.log1p(mean / shape)
        return (
            gammaln(more + shape)
            - gammaln(shape)
            - gammaln(more + 1)
            - (more + shape) * spread
            + more * (jnp.log(mean) - jnp.log(shape))
        )

    @property
    def _dtype(self) -> Any:
        return self.further.dtype


class Probabilities(_ByHazards):
    """Stays of 1 … D moments with probabilities of any form, and never longer.

    Args:
        probs: shape ``(K, D)``, rows summing to one. An entry that is exactly zero stays zero when it is
            learned.

    Raises:
        ValueError: if the probabilities are negative, do not sum to one, or have another shape.
    """

    possible: Any = eqx.field(static=True)
    probs: Float[Array, "K D"] = parameter(sparse_simplex, of_owner=True)

    def __init__(self, probs: Any):
        self.probs = as_array(probs)
        if self.probs.ndim != 2:
            raise ValueError(
                f"`probs` of Probabilities must have shape (K, D), got {self.probs.shape}."
            )
        check_probabilities("probs", self.probs)
        self.possible = pattern(self.probs)

    @property
    def parts(self) -> tuple[int, ...]:
        """How many sub-states each state needs: up to its longest stay."""
        return tuple(int(np.flatnonzero(row)[-1]) + 1 for row in self.possible)

    def log_hazards(self) -> tuple[Float[Array, "K D"], Float[Array, "K D"]]:
        """Log probability to leave after each moment of a stay that has lasted so long, and to stay."""
        longest = max(self.parts)
        probs = self.probs[:, :longest]
        survival = jnp.cumsum(probs[:, ::-1], axis=1)[:, ::-1]
        after = jnp.concatenate([survival[:, 1:], jnp.zeros_like(survival[:, :1])], axis=1)
        return _log_ratio(probs, survival), _log_ratio(after, survival)

    def m_step(
        self, hold: Float[Array, "K D"], onward: Float[Array, "K D"], leave: Float[Array, "K D"]
    ) -> Probabilities:
        """Frequencies of leaving after each moment; see :meth:`Durations.m_step`."""
        longest = max(self.parts)
        hazards = _share(leave, onward, jnp.exp(self.log_hazards()[0]))
        hazards = hazards.at[jnp.arange(len(self.parts)), np.asarray(self.parts) - 1].set(1)
        reached = jnp.cumprod(1 - hazards, axis=1)
        reached = jnp.concatenate([jnp.ones_like(reached[:, :1]), reached[:, :-1]], axis=1)
        probs = jnp.zeros_like(self.probs).at[:, :longest].set(hazards * reached)
        return replace(self, {"probs": probs / jnp.sum(probs, axis=1, keepdims=True)})


def _times(count: Array, log: Array) -> Array:
    """``count * log``, where zero counts count for nothing."""
    return jnp.where(count > 0, count * jnp.where(count > 0, log, 0), 0)


def _share(part: Array, rest: Array, old: Array) -> Array:
    """The share of the part in both; the old one where there is nothing."""
    both = part + rest
    return jnp.where(both > 0, part / jnp.where(both > 0, both, 1), old)


def _log_ratio(part: Array, whole: Array) -> Array:
    there = part > 0
    ratio = jnp.where(there, part, 1) / jnp.where(there, whole, 1)
    return jnp.where(there, jnp.log(ratio), -jnp.inf)


def _frequency(
    leave: Float[Array, "K D"], hold: Float[Array, "K D"], old: Float[Array, " K"]
) -> Float[Array, " K"]:
    """How often sub-states were left, inside (0, 1)."""
    eps = jnp.finfo(old.dtype).eps
    return jnp.clip(_share(jnp.sum(leave, axis=1), jnp.sum(hold, axis=1), old), eps, 1 - eps)


def _require_probability(name: str, value: Array) -> None:
    _require_vector(name, value)
    require_support(name, value, lambda p: (p > 0) & (p < 1), "be strictly between 0 and 1")


def _require_vector(name: str, value: Array) -> None:
    if value.ndim != 1:
        raise ValueError(f"`{name}` of durations must have shape (K,), got {value.shape}.")


def _each_state(name: str, count: Any, states: int) -> tuple[int, ...]:
    """A number of sub-states for each state."""
    each = np.asarray(count)
    if each.shape not in ((), (states,)) or each.dtype.kind not in "iu" or (each < 1).any():
        raise ValueError(
            f"`{name}` of durations must be a whole number of at least 1, or one for each of the {states} "
            f"states, got {count!r}."
        )
    return tuple(int(d) for d in np.broadcast_to(each, states))
