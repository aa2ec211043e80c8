"""Regression by weighted means of the examples."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.decoding.regressor import Regressor, checked_pairs
from statespace.parameters import constant, parameter

_TRIED = 9  # bandwidths, from far too small to far too large, before the best is refined
_LEFT_OUT = (
    1000  # examples at most that are left out in their turn, evenly spaced; all are kept to predict
)
_ROWS = 64  # of them side by side


class NadarayaWatson(Regressor):
    """The mean of the responses, weighted by a Gaussian kernel of the distance (Nadaraya 1964; Watson 1964).

    Far from all examples it gives the response of the nearest one, unless there is a prior. Of responses that
    are positive semi-definite matrices it makes one.

    Args:
        bandwidth: of the kernel, in the units of the observations, the same for all channels. None: that with
            the least mean squared error on each example left out in its turn.
        kernel: "product" over channels, the Gaussian of the Euclidean distance; or "sum", their mean, in
            which one broken channel cannot make all examples look far away (Brandman et al. 2018).
        prior: weight of the mean response as one more example that is at no distance from anywhere.

    Raises:
        ValueError: for a bandwidth that is not positive, a negative prior or another kernel.
    """

    bandwidth: Float[Array, ""] | None = parameter("positive", default=None, converter=lambda x: x)
    kernel: Literal["product", "sum"] = eqx.field(static=True, default="product")
    prior: float = eqx.field(static=True, default=0.0)
    points: Float[Array, "N m"] | None = constant(default=None, converter=lambda x: x)
    responses: Float[Array, "N ..."] | None = constant(default=None, converter=lambda x: x)
    average: Float[Array, "..."] | None = constant(default=None, converter=lambda x: x)

    def __check_init__(self) -> None:
        if self.kernel not in ("product", "sum"):
            raise ValueError(
                f'`kernel` of NadarayaWatson must be "product" or "sum", got {self.kernel!r}.'
            )
        if not self.prior >= 0:
            raise ValueError(f"`prior` of NadarayaWatson must not be negative, got {self.prior}.")
        known = self.bandwidth is not None and not isinstance(self.bandwidth, jax.core.Tracer)
        if known and not np.all(self.bandwidth > 0):
            raise ValueError(
                f"`bandwidth` of NadarayaWatson must be positive, got {self.bandwidth}."
            )

    def fit(self, y: Float[Array, "N m"], responses: Float[Array, "N ..."]) -> NadarayaWatson:
        """Keep the examples, and choose the bandwidth if none was given."""
        y, responses = checked_pairs(y, responses, "NadarayaWatson")
        bandwidth: Any = self.bandwidth
        if bandwidth is None:
            bandwidth = self._best_bandwidth(y, responses)
        average = jnp.mean(responses, axis=0)
        return self.fitted(
            bandwidth=jnp.asarray(bandwidth, y.dtype),
            points=y,
            responses=responses,
            average=average,
        )

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, "..."]:
        """The response at one observation."""
        points, responses = self.found("points"), self.found("responses")
        logs, shared = _log_kernel(points, y, self.bandwidth, self.kernel)
        return _mean(logs, shared, responses, self.prior, self.average)

    def _best_bandwidth(self, y: Array, responses: Array) -> float:
        """By its error on each example left out: the best of a grid, refined."""
        from scipy.optimize import minimize_scalar

        def error(log_bandwidth: float) -> float:
            h = jnp.asarray(np.exp(log_bandwidth), y.dtype)
            return float(_left_out(y, responses, h, self.kernel, self.prior))

        size = float(np.log(np.sqrt(2 * np.mean(np.var(np.asarray(y), axis=0)) * y.shape[1])))
        grid = np.linspace(size - 4, size + 1, _TRIED)
        errors = [error(x) for x in grid]
        best = int(np.nanargmin(errors))
        bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _TRIED - 1)])
        found = minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 0.02})
        return float(np.exp(found.x if found.fun < errors[best] else grid[best]))


def _log_kernel(
    points: Float[Array, "N m"], y: Float[Array, " m"], h: Float[Array, ""], kernel: str
) -> tuple[Float[Array, " N"], Float[Array, ""]]:
    """Logarithms of the kernel but for a number that all points share, and that number.

    In double precision the product kernel is one product of a vector and a matrix, by ``|x - y|² = |x|² -
    2 x'y + |y|²`` about the mean of the points; the last term is the number. The others cancel, but for
    differences of logarithms to be wrong by 1e-6 points would have to lie 1e5 bandwidths apart. In single
    precision four bandwidths would do.
    """
    if kernel == "product" and points.dtype == jnp.float64:
        centre = jnp.mean(points, axis=0)
        x, y = (points - centre) / h, (y - centre) / h
        # laid out once by a decoder, whose points stay
        rows = jnp.concatenate([x.T, -0.5 * jnp.sum(x**2, axis=1)[None]])
        return jnp.append(y, jnp.ones((), y.dtype)) @ rows, -0.5 * (y @ y)
    # channels first: the sum over them is then one of long rows
    squares = (points.T - y[:, None]) ** 2
    zero = jnp.zeros((), squares.dtype)
    if kernel == "product":
        return -0.5 / h**2 * jnp.sum(squares, axis=0), zero
    logs = jax.scipy.special.logsumexp(-0.5 / h**2 * squares, axis=0)
    return logs - jnp.log(len(squares)), zero


def _mean(logs: Array, shared: Array, responses: Array, prior: float, average: Array) -> Array:
    # of all kernels the largest is made 1, so that far away something is left to divide by
    largest = jax.lax.stop_gradient(jnp.max(logs))
    floor = jnp.log(prior) - shared if prior > 0 else jnp.full_like(shared, -jnp.inf)
    largest = jnp.maximum(largest, jax.lax.stop_gradient(floor))
    weights = jnp.exp(logs - largest)
    more = jnp.exp(floor - largest)
    # a row of ones: their weighted sum is the sum of the weights
    flat = responses.reshape(len(responses), -1).T
    sums = jnp.concatenate([flat, jnp.ones_like(flat[:1])]) @ weights
    return (sums[:-1].reshape(average.shape) + more * average) / (sums[-1] + more)


@eqx.filter_jit
def _left_out(y: Array, responses: Array, h: Array, kernel: str, prior: float) -> Array:
    average = jnp.mean(responses, axis=0)

    def error(at: tuple[Array, Array, Array]) -> Array:
        i, one, response = at
        logs, shared = _log_kernel(y, one, h, kernel)
        mean = _mean(logs.at[i].set(-jnp.inf), shared, responses, prior, average)
        return jnp.sum((mean - response) ** 2)

    rows = np.unique(np.linspace(0, len(y) - 1, min(len(y), _LEFT_OUT)).round().astype(int))
    return jnp.mean(jax.lax.map(error, (rows, y[rows], responses[rows]), batch_size=_ROWS))
