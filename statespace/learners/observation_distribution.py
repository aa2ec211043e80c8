"""A state-space model as one NumPyro distribution over its observations."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import IdentityTransform

from statespace.densities import shape_of
from statespace.methods.choice import method_for
from statespace.methods.lowering import at, steps_of
from statespace.series import Series, assemble
from statespace.simulation import states_and_observations


class _RealOrMissing(constraints.ParameterFreeConstraint):
    """Any number, and NaN for a missing one; no infinity."""

    def __call__(self, x: Any) -> Any:
        return abs(x) != math.inf

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)


real_or_missing = _RealOrMissing()


@biject_to.register(real_or_missing)
def _identity(constraint: Any) -> IdentityTransform:
    return IdentityTransform()


class ObservationDistribution(dist.Distribution):
    """The law of a whole observation sequence, the states integrated out.

    It stands inside any NumPyro program as a distribution does; what the program samples above it become the
    model's parameters, and their posterior is sampled without the states:

    Example:
        >>> def program(y):
        ...     level = numpyro.sample("level_scale", dist.HalfNormal(100.0))
        ...     noise = numpyro.sample("noise_scale", dist.HalfNormal(100.0))
        ...     model = ss.LocalLevel(level_scale=level, noise_scale=noise)
        ...     numpyro.sample("y", ss.ObservationDistribution(model, length=len(y)), obs=y)

    The event shape is ``(T, m)``, or ``(T,)`` for a model of a single channel. NaN in the value of
    :meth:`log_prob` is a missing entry.

    Args:
        model: a model that ``method`` fits.
        times: shape ``(T,)``, strictly increasing; default 0 … T-1.
        inputs: covariates, shape ``(T, k)``; None for none.
        length: the number T of moments, where neither times nor inputs say it.
        method: how the states are integrated out; if None, the exact method for the model.
        validate_args: as everywhere in NumPyro.

    Raises:
        ValueError: if the number of moments is not given or not consistent, or times do not increase.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("model", "recording")
    pytree_aux_fields = ("method",)

    def __init__(
        self,
        model: Any,
        times: Any = None,
        inputs: Any = None,
        length: int | None = None,
        method: Any = None,
        *,
        validate_args: bool | None = None,
    ):
        self.model = model
        self.method = method_for(model, method)
        if times is None:
            times = np.arange(_length(inputs, length), dtype=float)
        elif length is not None and length != len(times):
            raise ValueError(f"`length` is {length}, but `times` has {len(times)} entries.")
        moments = Series.unobserved(times, inputs, dtype=_dtype(model))
        steps, _ = steps_of(moments)
        channels = _channels(model, at(steps, 0))
        y = jnp.full((len(moments), channels), jnp.nan, moments.y.dtype)
        self.recording = _observing(moments, y, complete=False)
        event = y.shape if channels > 1 else y.shape[:1]
        super().__init__((), event, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Any numbers, NaN (missing) included."""
        return constraints.independent(real_or_missing, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:
        """Samples are not meant to be differentiated."""
        return False

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        """Log density of observation sequences; NaN entries are integrated out.

        Args:
            value: shape ``(..., T, m)``, or ``(..., T)`` for a model of a single channel.
            intermediates: not used.

        Raises:
            ValueError: if the value has another shape.
        """
        value = jnp.asarray(value)
        event = self.event_shape
        batch = value.shape[: value.ndim - len(event)]
        if value.shape[len(batch) :] != event or value.ndim < len(event):
            raise ValueError(
                f"the value of ObservationDistribution must have shape (..., "
                f"{', '.join(map(str, event))}), got {value.shape}."
            )
        if self._validate_args:
            self._validate_sample(value)
        # Where the values are known, a complete recording lets the filter share its covariances.
        known = not isinstance(value, jax.core.Tracer)
        complete = not np.isnan(np.asarray(value)).any() if known else None
        value = value.astype(jnp.result_type(value.dtype, self.recording.y.dtype))

        def one(y: Array) -> Array:
            y = y.reshape(self.recording.y.shape)
            return self.method.log_likelihood(self.model, _observing(self.recording, y, complete))

        each = jax.vmap(one)(value.reshape(-1, *event)) if batch else one(value)
        return each.reshape(batch)

    def sample(
        self, key: PRNGKeyArray | None, sample_shape: tuple[int, ...] = ()
    ) -> Float[Array, "..."]:
        """Independent observation sequences, shape ``sample_shape + event_shape``.

        Raises:
            ValueError: if the initial state is diffuse, or there is no key.
        """
        if key is None:
            raise ValueError("`sample` needs a key, such as `jax.random.key(0)`.")
        self._check_proper("sampled")
        keys = jax.random.split(key, math.prod(sample_shape))
        draw = lambda k: states_and_observations(self.model, self.recording, k)[1]
        return jax.vmap(draw)(keys).reshape(sample_shape + self.event_shape)

    @property
    def mean(self) -> Float[Array, "..."]:
        """Expected observations, of the event shape."""
        return self._moments().mean.reshape(self.event_shape)

    @property
    def variance(self) -> Float[Array, "..."]:
        """Variance of each observation, of the event shape."""
        return jnp.square(self._moments().std).reshape(self.event_shape)

    def _moments(self) -> Any:
        """The forecast of all moments from nothing."""
        self._check_proper("averaged")
        return self.method.forecast(self.model, self.recording, jnp.arange(len(self.recording)))

    def _check_proper(self, what: str) -> None:
        if getattr(self.model.initial, "diffuse", None) is not None:
            raise ValueError(
                f"the model's initial state is diffuse, so its observations cannot be {what}: give the "
                "initial law a finite scale."
            )


def _channels(model: Any, step: Any) -> int:
    """Number of channels of a model's observations."""
    observation = model.observation
    if hasattr(observation, "at"):
        return jax.eval_shape(observation.at, step).matrix.shape[0]
    known = getattr(observation, "channels", None)
    if known is not None:
        return known
    shape = shape_of(observation(0, step))
    return shape[0] if shape else 1


def _length(inputs: Any, length: int | None) -> int:
    if inputs is not None:
        if length is not None and length != len(inputs):
            raise ValueError(f"`length` is {length}, but `inputs` has {len(inputs)} rows.")
        return len(inputs)
    if length is None:
        raise ValueError(
            "ObservationDistribution needs the number of moments: give `times`, `inputs` or `length`."
        )
    if length < 1:
        raise ValueError(f"`length` must be at least 1, got {length}.")
    return length


def _dtype(model: Any) -> Any:
    """The precision of the model's arrays."""
    floats = [
        x.dtype
        for x in jax.tree.leaves(model)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.result_type(*floats) if floats else None


def _observing(moments: Series, y: Array, complete: bool | None) -> Series:
    """The same moments with observations."""
    return assemble(
        Series,
        y=y,
        times=moments.times,
        inputs=moments.inputs,
        intervals=moments.intervals,
        state_weights=moments.state_weights,
        complete=complete,
        dt=moments.dt,
        labels=None,
    )
