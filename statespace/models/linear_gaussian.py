"""The linear Gaussian state-space model with free matrices."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.checks import (
    optional_array,
    require_finite,
    require_scale,
    require_shape,
    scale_support,
)
from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.model import Step
from statespace.models.starting import least_squares_autoregression, principal_components
from statespace.parameters import parameter


class InputOffset(eqx.Module):
    """``b + B u_t``: an offset that follows the inputs."""

    offset: Float[Array, " d"] | None
    matrix: Float[Array, "d k"]

    def __call__(self, step: Step) -> Float[Array, " d"]:
        """The offset at one step.

        Raises:
            ValueError: if the data have no inputs, or another number of them.
        """
        k = self.matrix.shape[1]
        if step.inputs is None:
            raise ValueError(
                f"the model has input matrices for {k} inputs, but the data carry none: pass "
                f"`ss.Series(y, inputs=u)` with `u` of shape (T, {k})."
            )
        if jnp.shape(step.inputs) != (k,):
            raise ValueError(
                f"the model has input matrices for {k} inputs, got inputs of shape "
                f"{jnp.shape(step.inputs)} at each moment."
            )
        driven = self.matrix @ step.inputs
        return driven if self.offset is None else self.offset + driven


class LinearGaussian(eqx.Module):
    """``x_t = F x_{t-1} + b + B u_t + L_Q e_t``, ``y_t = H x_t + d + D u_t + L_R v_t``.

    ``x_0 ~ N(initial_mean, L_0 L_0^T)`` is the state at the first observation, ``u_t`` the inputs
    at the moment of ``y_t``. Every matrix is a parameter. This is the model that :class:`EM` fits
    in closed form; its states are determined only up to an invertible linear map, so freeze some
    matrices where the coordinates have a meaning.

    Args:
        transition_matrix: ``F``, shape ``(n, n)``.
        transition_scale: ``L_Q``, shape ``(n, n)``, lower triangular with a positive diagonal; or
            ``(n,)`` standard deviations of independent noise, which then stays independent when
            learned.
        observation_matrix: ``H``, shape ``(m, n)``.
        observation_scale: ``L_R``, shape ``(m, m)`` or ``(m,)``, likewise.
        initial_mean: shape ``(n,)``.
        initial_scale: ``L_0``, shape ``(n, n)`` or ``(n,)``, likewise.
        transition_offset: ``b``, shape ``(n,)``; None for none.
        observation_offset: ``d``, shape ``(m,)``; None for none.
        transition_input_matrix: ``B``, shape ``(n, k)``; None where the inputs do not drive the
            state.
        observation_input_matrix: ``D``, shape ``(m, k)``; None where they do not act on the
            observation.

    Raises:
        ValueError: if shapes do not fit together, or a scale is not a Cholesky factor.
    """

    transition_matrix: Float[Array, "n n"] = parameter()
    transition_scale: Float[Array, "..."] = parameter(scale_support)
    observation_matrix: Float[Array, "m n"] = parameter()
    observation_scale: Float[Array, "..."] = parameter(scale_support)
    initial_mean: Float[Array, " n"] = parameter()
    initial_scale: Float[Array, "..."] = parameter(scale_support)
    transition_offset: Float[Array, " n"] | None = parameter(converter=optional_array, default=None)
    observation_offset: Float[Array, " m"] | None = parameter(
        converter=optional_array, default=None
    )
    transition_input_matrix: Float[Array, "n k"] | None = parameter(
        converter=optional_array, default=None
    )
    observation_input_matrix: Float[Array, "m k"] | None = parameter(
        converter=optional_array, default=None
    )

    def __check_init__(self) -> None:
        if self.transition_matrix.ndim != 2 or self.observation_matrix.ndim != 2:
            raise ValueError(
                "`transition_matrix` must have shape (n, n) and `observation_matrix` (m, n), got "
                f"{self.transition_matrix.shape} and {self.observation_matrix.shape}."
            )
        m, n = self.observation_matrix.shape
        require_shape("transition_matrix", self.transition_matrix, (n, n))
        require_shape("initial_mean", self.initial_mean, (n,))
        require_scale("transition_scale", self.transition_scale, n)
        require_scale("observation_scale", self.observation_scale, m)
        require_scale("initial_scale", self.initial_scale, n)
        if self.transition_offset is not None:
            require_shape("transition_offset", self.transition_offset, (n,))
        if self.observation_offset is not None:
            require_shape("observation_offset", self.observation_offset, (m,))
        self._check_inputs(n, m)
        for name in ("transition_matrix", "observation_matrix", "initial_mean"):
            require_finite(name, getattr(self, name))

    def _check_inputs(self, n: int, m: int) -> None:
        widths = set()
        for name, d in (("transition_input_matrix", n), ("observation_input_matrix", m)):
            matrix = getattr(self, name)
            if matrix is None:
                continue
            if matrix.ndim != 2 or matrix.shape[0] != d:
                raise ValueError(f"`{name}` must have shape ({d}, k), got {matrix.shape}.")
            widths.add(matrix.shape[1])
        if len(widths) > 1:
            raise ValueError(
                "`transition_input_matrix` and `observation_input_matrix` act on the same inputs "
                f"and must have as many columns, got {self.transition_input_matrix.shape} and "
                f"{self.observation_input_matrix.shape}; put zeros where an input does not act."
            )

    @property
    def initial(self) -> Gaussian:
        """Law of the state at the first observation."""
        return Gaussian(self.initial_mean, self.initial_scale)

    @property
    def transition(self) -> AffineGaussian:
        """Law of the next state."""
        offset = driven(self.transition_offset, self.transition_input_matrix)
        return AffineGaussian(self.transition_matrix, offset, self.transition_scale)

    @property
    def observation(self) -> AffineGaussian:
        """Law of the observation."""
        offset = driven(self.observation_offset, self.observation_input_matrix)
        return AffineGaussian(self.observation_matrix, offset, self.observation_scale)

    @classmethod
    def random(
        cls,
        state_dim: int,
        channels: int,
        *,
        key: PRNGKeyArray,
        inputs: int = 0,
        radius: float = 0.95,
    ) -> LinearGaussian:
        """A random stable model: a starting value for learning, or something to simulate from.

        The dynamics are a random rotation shrunk to ``radius``, the loadings have orthonormal
        columns (rows, if there are fewer channels than states), and the noise is such that the
        states have unit variance when stationary and the observation noise variance 1/4.

        Args:
            state_dim: number of states n.
            channels: number of channels m.
            key: source of randomness.
            inputs: number of inputs k; 0 for a model without.
            radius: modulus of the eigenvalues of the transition matrix, in (0, 1).

        Raises:
            ValueError: if a size is not positive or the radius not in (0, 1).
        """
        if state_dim < 1 or channels < 1 or inputs < 0:
            raise ValueError(
                "`state_dim` and `channels` must be at least 1 and `inputs` at least 0, got "
                f"{state_dim}, {channels} and {inputs}."
            )
        if not 0 < radius < 1:
            raise ValueError(f"`radius` must be in (0, 1), got {radius}.")
        k1, k2, k3, k4 = jax.random.split(key, 4)
        rotation = _orthonormal(k1, state_dim, state_dim)
        loadings = _orthonormal(k2, max(channels, state_dim), min(channels, state_dim))
        return cls(
            transition_matrix=radius * rotation,
            transition_scale=jnp.sqrt(1 - radius**2) * jnp.eye(state_dim),
            observation_matrix=loadings if channels >= state_dim else loadings.T,
            observation_scale=0.5 * jnp.ones(channels),
            initial_mean=jnp.zeros(state_dim),
            initial_scale=jnp.eye(state_dim),
            transition_offset=jnp.zeros(state_dim),
            observation_offset=jnp.zeros(channels),
            transition_input_matrix=0.1 * jax.random.normal(k3, (state_dim, inputs))
            if inputs
            else None,
            observation_input_matrix=0.1 * jax.random.normal(k4, (channels, inputs))
            if inputs
            else None,
        )

    @classmethod
    def from_principal_components(
        cls, y: Float[Any, "T m"], state_dim: int, *, inputs: int = 0
    ) -> LinearGaussian:
        """Starting values from data: principal components as states, and their autoregression.

        The components are scaled to unit variance; what they leave of each channel is its
        observation noise. Missing entries count as the mean of their channel. Input matrices start
        at zero.

        Args:
            y: observations, shape ``(T, m)``, NaN where missing.
            state_dim: number of states n, at most m.
            inputs: number of inputs k; 0 for a model without.

        Raises:
            ValueError: if there are fewer channels or moments than states, or a channel is never
                observed.
        """
        y = np.asarray(y, dtype=jnp.zeros(()).dtype)
        if y.ndim != 2 or not 1 <= state_dim <= min(y.shape[1], y.shape[0] - 1):
            raise ValueError(
                f"`from_principal_components` needs `y` of shape (T, m) and `state_dim` from 1 to "
                f"min(m, T - 1), got shape {y.shape} and state_dim={state_dim}."
            )
        loadings, states, rest, mean = principal_components(y, state_dim)
        dynamics, noise = least_squares_autoregression(states, 1)
        m = y.shape[1]
        return cls(
            transition_matrix=dynamics[0],
            transition_scale=np.linalg.cholesky(noise),
            observation_matrix=loadings,
            # A channel that the components reproduce exactly still needs some noise to learn from.
            observation_scale=np.maximum(rest.std(axis=0), 0.05 * np.nanstd(y, axis=0) + 1e-6),
            initial_mean=np.zeros(state_dim),
            initial_scale=np.eye(state_dim),
            transition_offset=np.zeros(state_dim),
            observation_offset=mean,
            transition_input_matrix=np.zeros((state_dim, inputs)) if inputs else None,
            observation_input_matrix=np.zeros((m, inputs)) if inputs else None,
        )


def driven(offset: Array | None, matrix: Array | None) -> Array | InputOffset | None:
    """An offset that is constant where there are no inputs to follow."""
    return offset if matrix is None else InputOffset(offset, matrix)


def _orthonormal(key: PRNGKeyArray, rows: int, columns: int) -> Array:
    q, r = jnp.linalg.qr(jax.random.normal(key, (rows, columns)))
    return q * jnp.where(jnp.diagonal(r) < 0, -1, 1)
