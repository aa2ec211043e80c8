"""The pendulum: a nonlinear oscillator under random torques."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.gaussian import algebra as la
from statespace.checks import (
    optional_scale,
    require_finite,
    require_positive,
    require_shape,
)
from statespace.conditionals.affine import Gaussian
from statespace.model import Step
from statespace.models.lorenz import runge_kutta
from statespace.parameters import as_array, parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

Seen = Literal["sine", "position"]


class Pendulum(eqx.Module):
    """``da = v dt``, ``dv = -(gravity sin a + damping v) dt + scale dW``, seen from the side or in the plane.

    The noisy pendulum on which Gaussian filters are compared (Särkkä & Svensson 2023, examples 4.5 and 7.6).
    The mean follows the equation by Runge–Kutta steps of fourth order, the covariance the equation made
    linear along it: as exact as the noise is small, at any interval, with enough ``substeps``. The book takes
    one Euler step with the noise of a free body, which is the same to first order in the interval.

    State: ``(angle, velocity)``, in radians from hanging down and per unit of time; angles count whole turns.

    Args:
        gravity: that of the Earth over the pendulum's length, ``1 / time^2``.
        damping: friction, ``1 / time``; None for none.
        scale: square root of the spectral density of the random torque, ``1 / time^(3/2)``.
        noise_scale: standard deviation of an observation, in lengths of the pendulum; a scalar, or of shape
            ``(2,)`` for positions.
        initial_mean: of ``(angle, velocity)``, shape ``(2,)``.
        initial_scale: standard deviations, shape ``(2,)``.
        seen: "sine" for the horizontal position ``sin(angle)``, "position" for ``(sin, -cos)``, the place in
            the plane. Both in lengths of the pendulum, from its pivot.
        substeps: Runge–Kutta steps in each interval.

    Raises:
        ValueError: if a parameter has the wrong shape or is outside its support, or ``seen`` is neither.

    Example:
        >>> model = ss.Pendulum(gravity=9.81, scale=0.1, noise_scale=0.3)
        >>> ss.fit(model, series, method=ss.ExtendedKalman()).summary()
    """

    gravity: Float[Array, ""] = parameter("positive", default=9.81)
    damping: Float[Array, ""] | None = parameter("positive", converter=optional_scale, default=None)
    scale: Float[Array, ""] = parameter("positive", default=0.1)
    noise_scale: Float[Array, "..."] = parameter("positive", default=0.3)
    initial_mean: Float[Array, " 2"] = parameter(
        converter=lambda value: jnp.array([1.5, 0.0]) if value is None else as_array(value),
        default=None,
    )
    initial_scale: Float[Array, " 2"] = parameter(
        "positive",
        converter=lambda value: jnp.full(2, 0.3) if value is None else as_array(value),
        default=None,
    )
    seen: Seen = eqx.field(static=True, default="sine")
    substeps: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.seen not in ("sine", "position"):
            raise ValueError(f'`seen` must be "sine" or "position", got {self.seen!r}.')
        if self.substeps < 1:
            raise ValueError(f"`substeps` must be at least 1, got {self.substeps}.")
        for name in ("gravity", "damping", "scale"):
            if getattr(self, name) is not None:
                require_shape(name, getattr(self, name), ())
        for name in ("initial_mean", "initial_scale"):
            require_shape(name, getattr(self, name), (2,), "It is of (angle, velocity).")
        if self.noise_scale.ndim:
            require_shape("noise_scale", self.noise_scale, (self.channels,))
        require_finite("initial_mean", self.initial_mean)
        for name in ("gravity", "damping", "scale", "noise_scale", "initial_scale"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name), zero=False)

    @property
    def channels(self) -> int:
        """Number of observed coordinates."""
        return 1 if self.seen == "sine" else 2

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return ("angle", "velocity")

    @property
    def initial(self) -> Gaussian:
        """Law of the state at the first observation."""
        return Gaussian(self.initial_mean, self.initial_scale)

    @property
    def transition(self) -> Swing:
        """Law of the state some time later."""
        return Swing(self.gravity, self.damping, self.scale, self.substeps)

    @property
    def observation(self) -> Bob:
        """Law of what is seen of the pendulum's bob."""
        return Bob(self.noise_scale, self.seen)


class Swing(eqx.Module):
    """The pendulum's motion over an interval: its equation, and the noise carried along by its slope."""

    gravity: Float[Array, ""]
    damping: Float[Array, ""] | None
    scale: Float[Array, ""]
    substeps: int = eqx.field(static=True)

    def velocity(self, x: Float[Array, " 2"]) -> Float[Array, " 2"]:
        """The right-hand side of the differential equation, without noise."""
        pull = self.gravity * jnp.sin(x[0])
        if self.damping is not None:
            pull = pull + self.damping * x[1]
        return jnp.stack([x[1], -pull])

    def __call__(self, state: Float[Array, " 2"], step: Step) -> Distribution:
        """The distribution of the next state."""
        from numpyro.distributions import MultivariateNormal

        h = jnp.asarray(step.dt, state.dtype) / self.substeps
        torque = jnp.array([0.0, 1.0], state.dtype)
        weights = jnp.array([1.0, 4.0, 1.0], state.dtype) / 6  # Simpson's rule

        def advance(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            x, spread = carry
            move = lambda x: runge_kutta(self.velocity, x, h)
            half = lambda x: runge_kutta(self.velocity, x, h / 2)
            slope = jax.jacfwd(move)(x)
            # what torques at the beginning, in the middle and at the end have become at the end
            middle = jax.jvp(half, (half(x),), (torque,))[1]
            pushed = jnp.stack([slope @ torque, middle, torque], axis=1)
            new = la.matmul_t(pushed * weights, pushed)  # over scale² h
            return (move(x), la.sandwich(slope, spread) + new), None

        begin = (state, jnp.zeros((2, 2), state.dtype))
        if self.substeps == 1:
            mean, spread = advance(begin, None)[0]
        else:
            mean, spread = jax.lax.scan(advance, begin, None, length=self.substeps)[0]
        root = self.scale * jnp.sqrt(h) * la.cholesky(spread)
        return MultivariateNormal(mean, scale_tril=root, validate_args=False)


class Bob(eqx.Module):
    """Where the pendulum's bob is, with noise, in lengths of the pendulum."""

    scale: Float[Array, "..."]
    seen: Seen = eqx.field(static=True)

    def __call__(self, state: Float[Array, " 2"], step: Step) -> Distribution:
        """The distribution of an observation."""
        from numpyro.distributions import Normal

        place = jnp.stack([jnp.sin(state[0]), -jnp.cos(state[0])])
        return Normal(place[:1] if self.seen == "sine" else place, self.scale).to_event(1)
