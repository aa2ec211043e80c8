"""Counts of a population that follows linear dynamics: the Poisson linear dynamical system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.checks import (
    known,
    optional_array,
    require_finite,
    require_positive,
    require_scale,
    require_shape,
    scale_support,
)
from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.conditionals.generalised import GeneralisedLinear
from statespace.models.count_moments import (
    count_covariances,
    dynamics,
    log_linear_moments,
    logistic_moments,
)
from statespace.models.linear_gaussian import driven
from statespace.parameters import constant, parameter

FAMILIES = ("poisson", "negative_binomial", "bernoulli", "binomial")


class PoissonLinearDynamics(eqx.Module):
    """``x_t = F x_{t-1} + B u_t + L_Q e_t``, ``y_t ~ Poisson(exposure exp(H x_t + d + D u_t))``.

    A few hidden states move all of m counters, such as neurons; given them the counters are independent.
    With another ``family`` the same predictors are log means of overdispersed counts or log odds of events.
    The states are determined only up to an invertible linear map. There is no exact likelihood: give a
    method, such as ``ConjugateVI()`` or ``ParticleFilter(proposal="linearised")``.

    Args:
        transition_matrix: ``F``, shape ``(n, n)``.
        transition_scale: ``L_Q``, shape ``(n, n)``, lower triangular with a positive diagonal; or ``(n,)``
            standard deviations of independent noise.
        observation_matrix: ``H``, shape ``(m, n)``.
        observation_offset: ``d``, shape ``(m,)``: log rates at the state 0.
        initial_mean: shape ``(n,)``.
        initial_scale: shape ``(n, n)`` or ``(n,)``, as ``transition_scale``.
        transition_input_matrix: ``B``, shape ``(n, k)``; None where the inputs do not drive the states.
        observation_input_matrix: ``D``, shape ``(m, k)``; None where they do not act on the counters.
        concentration: of negative binomial counts, shape ``(m,)``: their variance is
            ``mean + mean² / concentration``.
        family: "poisson", "negative_binomial", "bernoulli" (whether there was an event) or "binomial".
        exposure: factor of the rates, such as the width of a bin, a number or ``(m,)``; not learned.
        trials: of binomial counts, a whole number.

    Raises:
        ValueError: if shapes do not fit together, a parameter is outside its support, or the family is not
            known or lacks an argument.

    References:
        Smith & Brown (2003), Estimating a state-space model from point process observations; Macke, Buesing,
        Cunningham, Yu, Shenoy & Sahani (2011), Empirical models of spiking in neural populations, NIPS 24.

    Example:
        >>> start = ss.PoissonLinearDynamics.from_counts(counts, state_dim=2, exposure=0.1)
        >>> result = ss.fit(start, counts, method=ss.ConjugateVI())
    """

    transition_matrix: Float[Array, "n n"] = parameter()
    transition_scale: Float[Array, "..."] = parameter(scale_support)
    observation_matrix: Float[Array, "m n"] = parameter()
    observation_offset: Float[Array, " m"] = parameter()
    initial_mean: Float[Array, " n"] = parameter()
    initial_scale: Float[Array, "..."] = parameter(scale_support)
    transition_input_matrix: Float[Array, "n k"] | None = parameter(
        converter=optional_array, default=None
    )
    observation_input_matrix: Float[Array, "m k"] | None = parameter(
        converter=optional_array, default=None
    )
    concentration: Float[Array, " m"] | None = parameter(
        "positive", converter=optional_array, default=None
    )
    family: str = eqx.field(static=True, default="poisson")
    exposure: Float[Array, "*m"] | None = constant(converter=optional_array, default=None)
    trials: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(
                f"`family` of PoissonLinearDynamics must be one of {', '.join(map(repr, FAMILIES))}, got "
                f"{self.family!r}."
            )
        if self.transition_matrix.ndim != 2 or self.observation_matrix.ndim != 2:
            raise ValueError(
                "`transition_matrix` must have shape (n, n) and `observation_matrix` (m, n), got "
                f"{self.transition_matrix.shape} and {self.observation_matrix.shape}."
            )
        m, n = self.observation_matrix.shape
        require_shape("transition_matrix", self.transition_matrix, (n, n))
        require_shape("observation_offset", self.observation_offset, (m,))
        require_shape("initial_mean", self.initial_mean, (n,))
        require_scale("transition_scale", self.transition_scale, n)
        require_scale("initial_scale", self.initial_scale, n)
        if self.concentration is not None:
            require_shape("concentration", self.concentration, (m,), "One value for each counter.")
            require_positive("concentration", self.concentration, zero=False)
        for name, d in (("transition_input_matrix", n), ("observation_input_matrix", m)):
            matrix = getattr(self, name)
            if matrix is not None and (matrix.ndim != 2 or len(matrix) != d):
                raise ValueError(f"`{name}` must have shape ({d}, k), got {matrix.shape}.")
        for name in ("transition_matrix", "observation_matrix", "observation_offset"):
            require_finite(name, getattr(self, name))
        if known(self.observation_matrix):
            _ = self.observation  # which refuses arguments of another family

    @property
    def initial(self) -> Gaussian:
        """Law of the states at the first observation."""
        return Gaussian(self.initial_mean, self.initial_scale)

    @property
    def transition(self) -> AffineGaussian:
        """Law of the next states."""
        offset = driven(None, self.transition_input_matrix)
        return AffineGaussian(self.transition_matrix, offset, self.transition_scale)

    @property
    def observation(self) -> GeneralisedLinear:
        """Law of the counts."""
        return GeneralisedLinear(
            self.observation_matrix,
            driven(self.observation_offset, self.observation_input_matrix),
            self.family,
            concentration=self.concentration,
            trials=self.trials,
            exposure=self.exposure,
        )

    @classmethod
    def from_counts(
        cls,
        counts: Float[Any, "T m"] | Sequence[Float[Any, "T m"]],
        state_dim: int,
        *,
        family: str = "poisson",
        inputs: int = 0,
        exposure: Any = None,
        trials: int | None = None,
    ) -> PoissonLinearDynamics:
        """Starting values from the moments of counts: no iterations, and consistent for Poisson counts.

        Means and covariances at several lags are turned into those of the predictors, whose leading
        directions become the loadings and whose decay the dynamics (Buesing, Macke & Sahani 2012). The
        moments are taken to be at equal distances in time. Input matrices start at zero.

        Args:
            counts: shape ``(T, m)``, NaN where missing; or a list of recordings.
            state_dim: number of states n, at most m.
            family: as above.
            inputs: number of inputs k; 0 for a model without.
            exposure: as above.
            trials: as above.

        Raises:
            ValueError: if the family is not known, there are fewer channels than states or too few moments,
                or a channel is never observed.
        """
        if family not in FAMILIES:
            raise ValueError(
                f"`family` of `from_counts` must be one of {', '.join(map(repr, FAMILIES))}, got {family!r}."
            )
        several = isinstance(counts, (list, tuple)) and np.ndim(counts[0]) == 2
        recordings = [np.asarray(y, float) for y in (counts if several else [counts])]
        shapes = [y.shape for y in recordings]
        least = state_dim + 2
        if any(len(s) != 2 or s[1] != shapes[0][-1] for s in shapes) or not (
            1 <= state_dim <= shapes[0][1] and max(s[0] for s in shapes) >= least
        ):
            raise ValueError(
                "`from_counts` needs `counts` of shape (T, m), or several such of the same m, with "
                f"`state_dim` from 1 to m and T at least {least}, got shapes {shapes} and "
                f"state_dim={state_dim}."
            )
        mean, covariances = count_covariances(recordings)
        total = sum(len(y) for y in recordings)
        m = len(mean)
        if family in ("bernoulli", "binomial"):
            most = np.full(m, 1.0 if trials is None else float(trials))
            mean = np.clip(mean, 0.5 / total, most - 0.5 / total)
            moments = logistic_moments(mean, covariances, most, states=state_dim)
            offset = moments.mean
        else:
            mean = np.maximum(mean, 0.5 / total)
            poisson = family == "poisson"
            moments = log_linear_moments(mean, covariances, poisson=poisson, states=state_dim)
            offset = moments.mean - (0 if exposure is None else np.log(np.asarray(exposure)))
        found = dynamics(moments.covariances, state_dim)
        concentration = None
        if family == "negative_binomial":
            concentration = 1 / np.clip(moments.overdispersion, 0.01, 10.0)
        dtype = jnp.zeros(()).dtype
        return cls(
            transition_matrix=jnp.asarray(found.matrix, dtype),
            transition_scale=jnp.asarray(np.linalg.cholesky(found.noise), dtype),
            observation_matrix=jnp.asarray(found.loadings, dtype),
            observation_offset=jnp.asarray(offset, dtype),
            initial_mean=jnp.zeros(state_dim),
            initial_scale=jnp.eye(state_dim),
            transition_input_matrix=jnp.zeros((state_dim, inputs)) if inputs else None,
            observation_input_matrix=jnp.zeros((m, inputs)) if inputs else None,
            concentration=concentration,
            family=family,
            exposure=exposure,
            trials=trials,
        )
