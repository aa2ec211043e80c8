"""Small neural networks: for the mean, and for a covariance that is below the marginal's by construction."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.decoding.regressor import Regressor, checked_pairs
from statespace.parameters import constant

_CHECKED_EVERY = 25  # steps of the optimiser between two looks at the held-out error


class NeuralNetwork(Regressor):
    """A network with one hidden layer of tanh units, trained with early stopping.

    A part of the examples is kept apart, the weights with the least error there are kept, and training stops
    when the error has not fallen for a while. Observations and responses are standardised first.

    Args:
        width: number of hidden units.
        iterations: steps of Adam at most, each on all examples.
        learning_rate: of Adam.
        validation: share of the examples that are kept apart.
        patience: steps without progress before it stops.
        key: of the first weights and of the choice of examples; default: a fixed one.

    Raises:
        ValueError: if ``width`` is not positive or ``validation`` not inside (0, 1).
    """

    width: int = eqx.field(static=True, default=10)
    iterations: int = eqx.field(static=True, default=3000)
    learning_rate: float = eqx.field(static=True, default=0.01)
    validation: float = eqx.field(static=True, default=0.2)
    patience: int = eqx.field(static=True, default=300)
    key: PRNGKeyArray | None = None
    network: eqx.nn.MLP | None = None
    units: tuple[Array, Array, Array, Array] | None = constant(default=None, converter=lambda x: x)

    def __check_init__(self) -> None:
        if self.width < 1 or not 0 < self.validation < 1:
            raise ValueError(
                "NeuralNetwork needs a positive `width` and a `validation` inside (0, 1), got "
                f"{self.width} and {self.validation}."
            )

    def fit(self, y: Float[Array, "N m"], responses: Float[Array, "N n"]) -> NeuralNetwork:
        """Train the network; one that is fitted already goes on from where it is."""
        y, responses = checked_pairs(y, responses, "NeuralNetwork")
        first, shuffle = jax.random.split(jax.random.key(0) if self.key is None else self.key)
        units, network = self.units, self.network
        if network is None:
            units = (*_units(y), *_units(responses))
            network = eqx.nn.MLP(
                y.shape[1], responses.shape[1], self.width, 1, jnp.tanh, dtype=y.dtype, key=first
            )
        order = np.asarray(jax.random.permutation(shuffle, len(y)))
        held = max(1, int(self.validation * len(y)))
        x, z = (y - units[0]) / units[1], (responses - units[2]) / units[3]
        apart, used = order[:held], order[held:]

        def loss(network: eqx.nn.MLP, rows: tuple[Array, Array]) -> Array:
            return jnp.mean((jax.vmap(network)(rows[0]) - rows[1]) ** 2)

        network = descend(
            loss,
            network,
            (x[used], z[used]),
            (x[apart], z[apart]),
            self.iterations,
            self.learning_rate,
            self.patience,
        )
        return self.fitted(network=network, units=units)

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, " n"]:
        """The response at one observation."""
        centre, size, mean, spread = self.found("units")
        return mean + spread * self.found("network")((y - centre) / size)


class BoundedCovariance(Regressor):
    """``Q = (S^-1 + L L^T)^-1`` with L from a network: below the marginal's covariance S in every direction.

    No rule is then ever needed. `fit` makes it constant, as near to the mean of the residuals' outer
    products as it can be; `train` with the states known lets it depend on the observation.

    Args:
        width: number of hidden units, tanh.
        marginal: S, shape ``(n, n)``; `learn_decoder` gives the one it finds.
        key: of the first weights; default: a fixed one.
    """

    width: int = eqx.field(static=True, default=10)
    marginal: Float[Array, "n n"] | None = constant(default=None, converter=lambda x: x)
    key: PRNGKeyArray | None = None
    network: eqx.nn.MLP | None = None
    units: tuple[Array, Array] | None = constant(default=None, converter=lambda x: x)

    def fit(self, y: Float[Array, "N m"], responses: Float[Array, "N n n"]) -> BoundedCovariance:
        """The constant covariance that is nearest to the mean, and hidden units that do not count yet.

        Raises:
            ValueError: if the marginal is not known.
        """
        y, responses = checked_pairs(y, responses, "BoundedCovariance")
        if self.marginal is None:
            raise ValueError(
                "`marginal` of BoundedCovariance is not known: give the covariance (n, n) of the states."
            )
        n = responses.shape[1]
        root = jnp.linalg.cholesky(self.marginal)
        white = solve_triangular(root, jnp.eye(n, dtype=root.dtype), lower=True)
        values, vectors = jnp.linalg.eigh(white @ jnp.mean(responses, axis=0) @ white.T)
        surplus = jnp.maximum(1 / values - 1, 1e-3)
        level = (vectors * jnp.sqrt(surplus)) @ vectors.T
        key = jax.random.key(0) if self.key is None else self.key
        network = eqx.nn.MLP(y.shape[1], n * n, self.width, 1, jnp.tanh, dtype=y.dtype, key=key)
        last = lambda net: (net.layers[-1].weight, net.layers[-1].bias)
        flat = (jnp.zeros_like(network.layers[-1].weight), level.ravel())
        return self.fitted(network=eqx.tree_at(last, network, flat), units=_units(y))

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, "n n"]:
        """The covariance at one observation."""
        centre, size = self.found("units")
        n = len(self.marginal)
        half = self.found("network")((y - centre) / size).reshape(n, n)
        inner = jnp.linalg.cholesky(jnp.eye(n, dtype=half.dtype) + half @ half.T)
        root = jnp.linalg.cholesky(self.marginal)
        factor = solve_triangular(inner, root.T, lower=True)
        return factor.T @ factor


def descend(loss, network, used, apart, iterations, learning_rate, patience):
    """Adam on ``loss(network, used)`` from where the network is; the best by ``loss(network, apart)``.

    Every array of the network that holds real numbers is moved.
    """
    import optax

    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    optimiser = optax.adam(learning_rate)

    def value(arrays, rows):
        return loss(eqx.combine(arrays, rest), rows)

    def step(carry, _):
        arrays, memory = carry
        slope = jax.grad(value)(arrays, used)
        change, memory = optimiser.update(slope, memory, arrays)
        return (optax.apply_updates(arrays, change), memory), None

    @jax.jit
    def several(arrays, memory):
        arrays, memory = jax.lax.scan(step, (arrays, memory), length=_CHECKED_EVERY)[0]
        return arrays, memory, value(arrays, apart)

    memory = optimiser.init(arrays)
    best, lowest, since = arrays, float(jax.jit(value)(arrays, apart)), 0
    for _ in range(0, iterations, _CHECKED_EVERY):
        arrays, memory, error = several(arrays, memory)
        if error < lowest:
            best, lowest, since = arrays, float(error), 0
            continue
        since += _CHECKED_EVERY
        if since >= patience or not np.isfinite(error):
            break
    return eqx.combine(best, rest)


def _units(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, 1 where it does not vary."""
    size = jnp.std(values, axis=0)
    return jnp.mean(values, axis=0), jnp.where(size > 0, size, 1.0)
