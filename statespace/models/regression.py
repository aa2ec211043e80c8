"""Regression on inputs, with coefficients that stay or wander, as a structural component."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.checks import optional_scale, require_positive
from statespace.model import Step
from statespace.models.components import Block, Component
from statespace.parameters import parameter


class InputLoading(eqx.Module):
    """The chosen inputs of the moment, as the loading of the coefficients."""

    columns: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, step: Step) -> Float[Array, " k"]:
        """The inputs at one step.

        Raises:
            ValueError: if the data have no inputs, or too few.
        """
        need = max(self.columns) + 1
        if step.inputs is None:
            raise ValueError(
                f"Regression uses column {need - 1} of the inputs, but the data carry none: pass "
                "`ss.Series(y, inputs=u)` with `u` of shape (T, k)."
            )
        if step.inputs.shape[-1] < need:
            raise ValueError(
                f"Regression uses column {need - 1} of the inputs, but there are only "
                f"{step.inputs.shape[-1]} of them."
            )
        return step.inputs[jnp.array(self.columns)]


class Regression(Component):
    """``x_t' beta_t`` with ``beta_t = beta_{t-1} + scale e_t`` (Durbin & Koopman 2012, section 3.6).

    The coefficients are states: they are estimated exactly together with the other states (generalised
    least squares, when ``scale`` is None and the start diffuse), and the posterior has their uncertainty.
    An input that does not vary is a level; leave it out where the model has one.

    Args:
        columns: which columns of the inputs: a number k for the first k of them, or their indices.
        scale: standard deviation of the coefficients' steps, a scalar for all or shape ``(k,)``; None for
            coefficients that do not change.
        labels: names of the inputs, for the names of the states; None for their indices.
        name: name in a sum, ``"regression"`` unless given.
        initial_law: proper Gaussian prior of the first coefficients, in place of the diffuse one, as
            ``Gaussian(mean=jnp.zeros(k), scale=jnp.ones(k))``.

    Raises:
        ValueError: if columns are negative, repeated or none; if there are not as many labels; if the scale
            is negative or of another shape.
    """

    columns: tuple[int, ...] = eqx.field(static=True)
    scale: Float[Array, "..."] | None = parameter(
        "positive", converter=optional_scale, default=None
    )
    labels: tuple[str, ...] = eqx.field(static=True, default=())

    def __init__(
        self,
        columns: int | tuple[int, ...],
        scale: Any = None,
        labels: tuple[str, ...] | None = None,
        *,
        name: str | None = None,
        initial_law: Any = None,
    ):
        if isinstance(columns, (int, np.integer)):
            columns = tuple(range(columns))
        self.columns = tuple(int(c) for c in columns)
        self.scale = scale
        self.labels = (
            tuple(str(c) for c in self.columns) if labels is None else tuple(map(str, labels))
        )
        self.name = name
        self.initial_law = initial_law

    def __check_init__(self) -> None:
        k = len(self.columns)
        if not k or min(self.columns) < 0 or len(set(self.columns)) < k:
            raise ValueError(
                "`columns` of Regression must be a positive number of inputs, or distinct indices from 0, "
                f"got {self.columns}."
            )
        if len(self.labels) != k:
            raise ValueError(
                f"`labels` of Regression must name its {k} inputs, got {len(self.labels)}."
            )
        if self.scale is not None:
            if jnp.shape(self.scale) not in ((), (k,)):
                raise ValueError(
                    f"`scale` of Regression must be a scalar or have shape ({k},), got "
                    f"{jnp.shape(self.scale)}."
                )
            require_positive("scale", self.scale)

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "regression"

    def _block(self) -> Block:
        k = len(self.columns)
        eye = jnp.eye(k, dtype=self.dtype)
        return Block(
            states=self.labels,
            loading=InputLoading(self.columns),
            matrix=eye,
            scale=jnp.zeros((k, 0), self.dtype) if self.scale is None else self.scale * eye,
            covariance=lambda: jnp.zeros((k, k), self.dtype),
            diffuse=(True,) * k,
        )
