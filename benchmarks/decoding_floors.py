"""States that turn back and forth, seen through floors: the table of nonlinear dynamics of the thesis.

Burkhart (2019), A discriminative approach to Bayesian filtering, section "Example with nonlinear state
dynamics": ``z_t ~ N(A (sin z + z), Γ)`` and ``x_t ~ N(h(z_t) + z_t / 3, Λ)``, where h concatenates
``floor(z - a_j)`` over some a_j. Almost everywhere the derivative of h is zero, so that a filter which
linearises the observation takes it to say a third of the state where it says four thirds. f is a network
learned from ten thousand draws, Q the covariance of its residuals on draws held out. The thesis gives neither
the sizes nor A, Γ, Λ and a_j: those here are chosen such that the network alone errs about as it does there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import statespace as ss
from statespace.linearisation import Taylor, Unscented

STATES, FLOORS = 2, 5  # and as many channels as their product
A = 0.42 * np.eye(STATES) + 0.04 * np.roll(np.eye(STATES), 1, axis=1)
MOVES = 0.45 * np.eye(STATES)  # factor of Γ
NOISE = 0.76  # standard deviation of each channel
OFFSETS = (np.arange(FLOORS) + 0.5) / FLOORS  # the a_j, the same for all coordinates
LEARNED, HELD_OUT = 10_000, 3_000

PUBLISHED = {
    "particles": 0.329,
    "particles, discriminative weights": 0.332,
    "extended": 0.415,
    "extended, discriminative update": 0.331,
    "unscented": 0.472,
    "unscented, discriminative update": 0.331,
    "network alone": 0.353,
}
"""RMSE over the root mean square of the states, the mean of five trials."""


def seen(x: Any) -> Any:
    """The mean of an observation, shape ``(FLOORS * STATES,)``."""
    return (jnp.floor(x - OFFSETS[:, None]) + x / 3).reshape(-1)


def transition(x: Any, step: Any) -> Any:
    """Law of the next state."""
    return dist.MultivariateNormal(A @ (jnp.sin(x) + x), scale_tril=jnp.asarray(MOVES))


def observation(x: Any, step: Any) -> Any:
    """Law of an observation."""
    return dist.Normal(seen(x), NOISE).to_event(1)


def start(covariance: Any) -> ss.Gaussian:
    """Of the first state."""
    return ss.Gaussian(np.zeros(STATES), covariance=covariance)


def drawn(length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States and observations, from states that have forgotten where they began."""
    model = ss.Model(start(np.eye(STATES)), transition, observation)
    path = ss.simulate(model, length + 100, key=jax.random.key(seed))
    return np.asarray(path.states)[100:], np.asarray(path.y)[100:]


def learned() -> tuple[ss.Discriminative, np.ndarray]:
    """The discriminative observation, and the covariance of the states."""
    states, y = drawn(LEARNED + HELD_OUT, seed=1_000)
    network = ss.decoding.NeuralNetwork().fit(y[:LEARNED], states[:LEARNED])
    left = states[LEARNED:] - np.asarray(jax.vmap(network)(jnp.asarray(y[LEARNED:])))
    marginal = np.cov(states.T)
    regression = ss.decoding.Moments(network, left.T @ left / HELD_OUT)
    return ss.Discriminative(regression, (np.zeros(STATES), marginal)), marginal


def errors(seed: int, length: int, particles: int, discriminative: Any, marginal: Any) -> dict:
    """Of every method on one recording; those of the table's rows."""
    states, y = drawn(length, seed)
    truth, decoder = (
        ss.Model(start(marginal), transition, each) for each in (observation, discriminative)
    )
    cloud, key = ss.ParticleFilter(particles=particles), jax.random.key(seed)
    extended, unscented = ss.ExtendedKalman(), ss.SigmaPointKalman(rule="unscented")
    updated = lambda rule: ss.DiscriminativeKalman(linearisation=rule)
    found = {
        "particles": ss.filter(truth, y, method=cloud, key=key).mean,
        "particles, discriminative weights": ss.filter(decoder, y, method=cloud, key=key).mean,
        "extended": ss.filter(truth, y, method=extended).mean,
        "extended, discriminative update": ss.filter(decoder, y, method=updated(Taylor())).mean,
        "unscented": ss.filter(truth, y, method=unscented).mean,
        "unscented, discriminative update": ss.filter(decoder, y, method=updated(Unscented())).mean,
        "network alone": discriminative.moments(jnp.asarray(y))[0],
    }
    return {name: ss.decoding.normalised_rmse(states, mean) for name, mean in found.items()}


def table(quick: bool, seeds: int) -> list[dict]:
    """The mean over recordings beside the published one."""
    length, particles = (300, 1_000) if quick else (1_000, 10_000)
    decoder = learned()
    every = [errors(seed, length, particles, *decoder) for seed in range(1 if quick else seeds)]
    print(
        "\n== decoding | sine dynamics seen through floors: normalised RMSE, published, of each recording"
    )
    rows = []
    for name, published in PUBLISHED.items():
        of = [one[name] for one in every]
        each = "".join(f"{x:8.3f}" for x in of)
        print(f"{name:36s}{np.mean(of):8.3f}{published:8.3f}  {each}", flush=True)
        rows.append({"table": "floors", "T": length, "method": name, "errors": of})
    return rows
