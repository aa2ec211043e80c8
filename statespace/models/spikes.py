"""Spike counts of neurons that follow a hidden process."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.checks import (
    optional_array,
    require_finite,
    require_positive,
    require_reverting,
    require_shape,
)
from statespace.conditionals.affine import Gaussian
from statespace.conditionals.generalised import GeneralisedLinear
from statespace.conditionals.reverting import Reverting
from statespace.model import Step
from statespace.parameters import constant, parameter


class SpikeCounts(eqx.Module):
    """Counts ``y_t`` of one or more neurons driven by a hidden ``x_t`` that forgets slowly.

    ``x_t = mean + persistence (x_{t-1} - mean) + input_weights · u_t + scale e_t``; the predictor of neuron i
    is ``bias_i + gain_i x_t``. With ``trials`` the counts are binomial, the number of repetitions in which
    the neuron fired, with the logistic function of the predictor as probability; without, they are Poisson,
    with rate ``exposure exp(predictor)``. Smith & Brown (2003); Czanner, Sarma, Eden & Brown (2008).

    State: shape ``(1,)``. Over an interval ``dt`` the correlation is ``persistence^dt``.

    Args:
        persistence: correlation over one unit of time, between 0 and 1.
        scale: standard deviation of the noise of one unit of time, positive.
        mean: of the hidden process; 0 unless given as a parameter.
        bias: of each neuron, shape ``(m,)``; None for zero.
        gain: of each neuron, shape ``(m,)``; None for one neuron with a gain of one.
        input_weights: how the inputs drive the hidden process, shape ``(k,)``; None where they do not.
        trials: number of repetitions; None for Poisson counts.
        exposure: width of a bin, where counts are Poisson and biases logarithms of rates.
        initial_scale: standard deviation of the first state about the mean; None for the stationary one.

    Raises:
        ValueError: if a parameter has the wrong shape or is outside its support.

    Example:
        >>> counts = ss.datasets.load("thalamus")
        >>> model = ss.SpikeCounts(0.9981, 0.33, trials=50, initial_scale=1.0)
        >>> ss.log_likelihood(model, counts, method=ss.ParticleFilter(), key=jax.random.key(0))
    """

    persistence: Float[Array, ""] = parameter("unit_interval")
    scale: Float[Array, ""] = parameter("positive")
    mean: Float[Array, ""] | None = parameter(converter=optional_array, default=None)
    bias: Float[Array, " m"] | None = parameter(converter=optional_array, default=None)
    gain: Float[Array, " m"] | None = parameter(converter=optional_array, default=None)
    input_weights: Float[Array, " k"] | None = parameter(converter=optional_array, default=None)
    trials: int | None = eqx.field(static=True, default=None)
    exposure: float = eqx.field(static=True, default=1.0)
    initial_scale: Float[Array, ""] | None = constant(converter=optional_array, default=None)

    def __check_init__(self) -> None:
        require_reverting(self)
        neurons = self.channels
        for name in ("bias", "gain"):
            value = getattr(self, name)
            if value is not None:
                require_shape(name, value, (neurons,), "It has one value for each neuron.")
                require_finite(name, value)
        if self.input_weights is not None and self.input_weights.ndim != 1:
            raise ValueError(
                f"`input_weights` must have shape (k,), got {self.input_weights.shape}."
            )
        if self.trials is not None and not self.trials >= 1:
            raise ValueError(
                f"`trials` must be a positive number of repetitions, got {self.trials}."
            )
        if not self.exposure > 0:
            raise ValueError(f"`exposure` must be positive, got {self.exposure}.")
        if self.initial_scale is not None:
            require_shape("initial_scale", self.initial_scale, ())
            require_positive("initial_scale", self.initial_scale, zero=False)

    @property
    def channels(self) -> int:
        """Number m of neurons."""
        sized = [v for v in (self.bias, self.gain) if v is not None]
        return sized[0].shape[0] if sized and sized[0].ndim else 1

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name of the state."""
        return ("drive",)

    @property
    def initial(self) -> Gaussian:
        """The stationary law, or the given one about the mean."""
        law = self._process().stationary
        return law if self.initial_scale is None else Gaussian(law.mean, self.initial_scale[None])

    @property
    def transition(self) -> Reverting:
        """Law of the next state."""
        return self._process()

    @property
    def observation(self) -> GeneralisedLinear:
        """Law of the counts."""
        gain = jnp.ones(self.channels, self.scale.dtype) if self.gain is None else self.gain
        if self.trials is None:
            return GeneralisedLinear(gain[:, None], self.bias, "poisson", exposure=self.exposure)
        return GeneralisedLinear(gain[:, None], self.bias, "binomial", trials=self.trials)

    def _process(self) -> Reverting:
        mean = jnp.zeros_like(self.scale) if self.mean is None else self.mean
        drive = None if self.input_weights is None else InputDrive(self.input_weights)
        return Reverting(mean, self.persistence, self.scale, drive)


class InputDrive(eqx.Module):
    """``w · u_t``."""

    weights: Float[Array, " k"]

    def __call__(self, step: Step) -> Float[Array, ""]:
        """The drive at one step.

        Raises:
            ValueError: if the data have no inputs, or another number of them.
        """
        k = len(self.weights)
        if step.inputs is None or jnp.shape(step.inputs) != (k,):
            have = "none" if step.inputs is None else f"{jnp.shape(step.inputs)[0]}"
            raise ValueError(
                f"the model has `input_weights` for {k} inputs, but the data carry {have}: pass "
                f"`ss.Series(y, inputs=u)` with `u` of shape (T, {k})."
            )
        return self.weights @ step.inputs
