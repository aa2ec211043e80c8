"""What regressions have in common, and the two that need no search: ridge regression and the mean."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.parameters import constant


class Regressor(eqx.Module):
    """A regression of responses on observations: settings, and once it is fitted a function.

    A response may have any shape ``(...)``: a state, or the outer product of a residual with itself.
    """

    @abstractmethod
    def fit(self, y: Float[Array, "N m"], responses: Float[Array, "N ..."]) -> Self:
        """The same regression, fitted."""

    @abstractmethod
    def __call__(self, y: Float[Array, " m"]) -> Float[Array, "..."]:
        """The response at one observation.

        Raises:
            ValueError: if the regression is not fitted.
        """

    def fitted(self, **found: Any) -> Self:
        """The same with what was found."""
        return dataclasses.replace(self, **found)

    def found(self, name: str) -> Any:
        """Something that fitting finds.

        Raises:
            ValueError: if the regression is not fitted.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"{type(self).__name__} is not fitted: use what `fit(y, responses)` returns, or give it to "
                "`learn_decoder`, which fits it."
            )
        return value


def checked_pairs(y: Any, responses: Any, owner: str) -> tuple[Array, Array]:
    """Observations and responses as arrays of one precision.

    Raises:
        ValueError: if they are not as many, too few, or not finite.
    """
    y, responses = np.asarray(y, float), np.asarray(responses, float)
    if y.ndim != 2 or len(y) != len(responses) or len(y) < 2:
        raise ValueError(
            f"`fit` of {owner} needs observations (N, m) and as many responses, at least 2, got shapes "
            f"{y.shape} and {responses.shape}."
        )
    for name, values in (("y", y), ("responses", responses)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"`{name}` of `fit` of {owner} must be finite: leave out what is missing."
            )
    return jnp.asarray(y), jnp.asarray(responses)


class Ridge(Regressor):
    """Linear regression with an intercept, shrunk.

    Args:
        penalty: how many observations the prior that all weights are zero is worth, not negative.

    Raises:
        ValueError: if the penalty is negative.
    """

    penalty: float = eqx.field(static=True, default=1e-3)
    weights: Float[Array, "m ..."] | None = None
    intercept: Float[Array, "..."] | None = None

    def __check_init__(self) -> None:
        if not self.penalty >= 0:
            raise ValueError(f"`penalty` of Ridge must not be negative, got {self.penalty}.")

    def fit(self, y: Float[Array, "N m"], responses: Float[Array, "N ..."]) -> Ridge:
        """Least squares with ``penalty`` times the variance of each channel on its squared weight."""
        y, responses = checked_pairs(y, responses, "Ridge")
        centre, mean = jnp.mean(y, axis=0), jnp.mean(responses, axis=0)
        size = jnp.std(y, axis=0)
        flat = (responses - mean).reshape(len(y), -1)
        rows = jnp.concatenate([y - centre, jnp.sqrt(self.penalty) * jnp.diag(size)])
        values = jnp.concatenate([flat, jnp.zeros((y.shape[1], flat.shape[1]), flat.dtype)])
        weights = jnp.linalg.lstsq(rows, values)[0].reshape(-1, *responses.shape[1:])
        return self.fitted(weights=weights, intercept=mean - jnp.tensordot(centre, weights, 1))

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, "..."]:
        """The response at one observation."""
        return self.found("intercept") + jnp.tensordot(y, self.found("weights"), 1)


class Average(Regressor):
    """The mean of the responses, whatever is observed: of residuals' outer products a constant covariance."""

    mean: Float[Array, "..."] | None = None

    def fit(self, y: Float[Array, "N m"], responses: Float[Array, "N ..."]) -> Average:
        """The mean."""
        return self.fitted(mean=jnp.mean(checked_pairs(y, responses, "Average")[1], axis=0))

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, "..."]:
        """The mean."""
        return self.found("mean")


class Predictor(eqx.Module):
    """A fitted regressor of another library, by its ``predict``: ``(N, m) -> (N,)`` or ``(N, k)``.

    It is called back from the compiled program, on all observations of a recording at once. It has no
    derivatives.

    Args:
        regressor: what has the ``predict``.

    Raises:
        TypeError: if it has none.
    """

    regressor: Any = eqx.field(static=True)

    def __check_init__(self) -> None:
        if isinstance(self.regressor, type) or not callable(
            getattr(self.regressor, "predict", None)
        ):
            raise TypeError(
                f"`regressor` of Predictor must be a fitted object with a method `predict`, got "
                f"{self.regressor!r}."
            )

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, " k"]:
        """The prediction at one observation.

        Raises:
            ValueError: if the regressor refuses, as one that is not fitted does.
        """
        try:
            size = np.asarray(self.regressor.predict(np.zeros((1, y.shape[-1]), y.dtype))).size
        except Exception as error:
            raise ValueError(
                f"`predict` of {type(self.regressor).__name__} cannot be used on observations of "
                f"{y.shape[-1]} channels: {error}"
            ) from error

        def predict(y: np.ndarray) -> np.ndarray:
            rows = np.asarray(y).reshape(-1, y.shape[-1])
            return np.asarray(self.regressor.predict(rows), y.dtype).reshape(*y.shape[:-1], size)

        out = jax.ShapeDtypeStruct((size,), y.dtype)
        return jax.pure_callback(predict, out, y, vmap_method="broadcast_all")


class Moments(eqx.Module):
    """Mean and covariance of the state given one observation, from a function for each.

    Args:
        mean: a function of one observation that gives ``(n,)``; or a fitted regressor with ``predict``.
        covariance: a function that gives ``(n, n)``; or a regressor whose ``predict`` gives ``n²`` numbers;
            or an array ``(n, n)``, constant.

    Raises:
        TypeError: if either is none of these.
        ValueError: if the array is not a square matrix.

    Example:
        >>> from sklearn.neighbors import KNeighborsRegressor
        >>> regressor = KNeighborsRegressor(20).fit(y[:700], states[:700])
        >>> residuals = states[700:] - regressor.predict(y[700:])
        >>> regression = ss.decoding.Moments(regressor, np.cov(residuals.T))
    """

    mean: Any
    covariance: Any

    def __init__(self, mean: Any, covariance: Any):
        self.mean = _function("mean", mean)
        if callable(covariance) or hasattr(covariance, "predict"):
            self.covariance = _function("covariance", covariance)
            return
        covariance = jnp.asarray(covariance)
        if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
            raise ValueError(
                f"`covariance` of Moments must be a function, a regressor or an array (n, n), got shape "
                f"{covariance.shape}."
            )
        self.covariance = Constant(covariance)

    def __call__(self, y: Float[Array, " m"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        """The two moments at one observation."""
        mean = self.mean(y)
        covariance = self.covariance(y).reshape(len(mean), len(mean))
        return mean, 0.5 * (covariance + covariance.T)


class Constant(eqx.Module):
    """A value, whatever is observed."""

    value: Float[Array, "..."] = constant()

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, "..."]:
        """The value."""
        return self.value


def _function(name: str, part: Any) -> Any:
    if callable(part):
        return part
    if hasattr(part, "predict"):
        return Predictor(part)
    raise TypeError(
        f"`{name}` of Moments must be a function of one observation or a regressor with `predict`, got "
        f"{type(part).__name__}."
    )
