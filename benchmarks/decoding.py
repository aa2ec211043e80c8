"""Discriminative filters on the problems of their paper, real reaching, and the latency of online decoders.

Burkhart, Brandman, Franco, Hochberg & Harrison (2020), Neural Computation 32(5). Ten states with unit
variance are seen through n channels, ``y = H x + e`` or ``y = -H x + sqrt(5) e`` with even odds. The mean of
an observation is zero whatever the state is, so that Kalman filters of any kind decode zero; the law of the
state given one observation is known exactly. The dynamics are linear, or turn the state by an angle that is
its length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import statespace as ss
from benchmarks.harness import Options, store
from statespace.linearisation import Taylor

STATES = 10
CHANNELS = (1, 3, 10, 32, 100, 316, 1000)
RULES = ("clip", "fallback", "shrink", "robust")
A = 0.95 * np.eye(STATES) - 0.05
NOISE = np.eye(STATES) - A @ A.T  # so that the states have unit variance
SCALES = (1.0, np.sqrt(5.0))  # of the noise under either sign
LATENCY = 100e-6  # seconds, the median of an update at 10 channels


def turned(x: Any) -> Any:
    """Each pair of coordinates turned by the length of the whole."""
    angle = jnp.sqrt(jnp.sum(x**2))
    c, s = jnp.cos(angle), jnp.sin(angle)
    first, second = x[0::2], x[1::2]
    return jnp.stack([c * first - s * second, s * first + c * second], axis=1).reshape(-1)


class Problem(NamedTuple):
    """A recording with its states, and what is known of either."""

    states: np.ndarray
    y: np.ndarray
    H: np.ndarray
    transition: Any

    def model(self, observation: Any) -> ss.Model:
        """The law of the states with an observation."""
        unit = ss.Gaussian(np.zeros(STATES), covariance=np.eye(STATES))
        return ss.Model(unit, self.transition, observation)

    def decoder(self, regression: Any = None, rule: str = "clip") -> ss.Model:
        """The discriminative model, by default with the exact regression."""
        regression = exact_regression(self.H) if regression is None else regression
        return self.model(ss.Discriminative(regression, (np.zeros(STATES), np.eye(STATES)), rule))

    def mixture(self) -> ss.Model:
        """The model that the recording was drawn from."""
        import numpyro.distributions as dist

        def observation(x: Any, step: Any) -> Any:
            means = jnp.stack([self.H @ x, -self.H @ x])
            each = dist.Normal(means, jnp.asarray(SCALES)[:, None]).to_event(1)
            return dist.MixtureSameFamily(dist.CategoricalProbs(jnp.full(2, 0.5)), each)

        return self.model(observation)

    def error(self, decoded: Any) -> float:
        """Root mean squared error; decoding zero has 1."""
        return ss.decoding.normalised_rmse(self.states, decoded)


def synthetic(channels: int, length: int, seed: int, nonlinear: bool = False) -> Problem:
    """A problem of scripts 42 (linear dynamics) and 44 (nonlinear) of the paper's code."""
    import numpyro.distributions as dist

    rng = np.random.default_rng(seed)
    H = rng.normal(size=(max(CHANNELS), STATES))[:channels] / np.sqrt(STATES)
    law: Any = ss.AffineGaussian(A, covariance=NOISE)
    if nonlinear:
        factor = jnp.linalg.cholesky(jnp.asarray(NOISE))
        law = lambda x, step: dist.MultivariateNormal(A @ turned(x), scale_tril=factor)
    problem = Problem(np.zeros(0), np.zeros(0), H, law)
    states = latent(length, jax.random.key(seed), nonlinear)
    which = rng.integers(2, size=length)
    sign, scale = 1 - 2 * which, np.asarray(SCALES)[which]
    y = sign[:, None] * (states @ H.T) + scale[:, None] * rng.normal(size=(length, channels))
    return problem._replace(states=states, y=y)


def latent(length: int, key: Any, nonlinear: bool = False) -> np.ndarray:
    """States of either dynamics."""
    root = jnp.linalg.cholesky(jnp.asarray(NOISE))
    first, rest = jax.random.split(key)

    def step(x: Any, e: Any) -> Any:
        x = A @ (turned(x) if nonlinear else x) + root @ e
        return x, x

    start = jax.random.normal(first, (STATES,))
    later = jax.lax.scan(step, start, jax.random.normal(rest, (length - 1, STATES)))[1]
    return np.asarray(jnp.concatenate([start[None], later]))


def exact_regression(H: np.ndarray) -> Callable[[Any], Any]:
    """Mean and covariance of a standard normal state given one observation of the mixture."""
    gram, eye = H.T @ H, np.eye(STATES)
    D = jnp.asarray([np.linalg.inv(eye + gram / s**2) for s in SCALES])
    signs, squares = jnp.array([1.0, -1.0]), jnp.asarray(SCALES) ** 2
    log_det = jnp.linalg.slogdet(eye + gram / squares[:, None, None])[1] + len(H) * jnp.log(squares)

    def regression(y: Any) -> tuple[Any, Any]:
        pull = H.T @ y / squares[:, None]
        each = jnp.einsum("kij,kj->ki", D, pull)
        distance = y @ y / squares - jnp.sum(pull * each, axis=1)
        weight = jax.nn.softmax(-0.5 * (log_det + distance))
        means = signs[:, None] * each
        mean = weight @ means
        second = jnp.einsum("k,kij->ij", weight, D + means[:, :, None] * means[:, None, :])
        return mean, second - jnp.outer(mean, mean)

    return regression


# The tables


def tabulated(pair: Any) -> tuple[Any, Any]:
    """A regression that has been evaluated already: its mean and covariance are what is observed."""
    return pair[:STATES], pair[STATES:].reshape(STATES, STATES)


def errors_of_rules(problem: Problem) -> dict[str, float]:
    """Of each rule, and of the regression alone; and how often Q is not below S.

    Filters of tabulated regressions are the same program for any number of channels.
    """
    mean, covariance = jax.vmap(exact_regression(problem.H))(jnp.asarray(problem.y))
    pairs = jnp.concatenate([mean, covariance.reshape(len(mean), -1)], axis=1)
    found = {rule: ss.filter(problem.decoder(tabulated, rule), pairs) for rule in RULES}
    errors = {"alone": problem.error(mean)}
    errors |= {rule: problem.error(one.mean) for rule, one in found.items()}
    return errors | {"flagged": float(found["clip"].flag_rate)}


def synthetic_table(options: Options, length: int = 1500) -> list[dict]:
    """Errors of the rules, and how often Q is not below S."""
    print("\n== decoding | synthetic mixtures: RMSE relative to decoding zero, and share flagged")
    columns = ("alone", *RULES, "flagged")
    print(f"{'n':>6s}" + "".join(f"{name:>10s}" for name in columns))
    rows = []
    for channels in CHANNELS[2:5] if options.quick else CHANNELS:
        row = errors_of_rules(synthetic(channels, length, seed=0))
        rows.append({"table": "synthetic", "T": length, "n": channels} | row)
        print(f"{channels:6d}" + "".join(f"{row[c]:10.3f}" for c in columns), flush=True)
    return rows


def nonlinear_errors(channels: int, length: int, seed: int, particles: int) -> dict[str, float]:
    """Errors on nonlinear dynamics of everything that can be done there."""
    problem = synthetic(channels, length, seed, nonlinear=True)
    decoder, mixture = problem.decoder(), problem.mixture()
    filtered = lambda method, model=decoder, **key: ss.filter(
        model, problem.y, method=method, **key
    )
    cloud, key = ss.ParticleFilter(particles=particles), jax.random.key(seed)
    means = {
        "regression alone": jax.vmap(exact_regression(problem.H))(jnp.asarray(problem.y))[0],
        "EKF prediction, discriminative update": filtered(
            ss.DiscriminativeKalman(linearisation=Taylor())
        ).mean,
        "sigma-point prediction, discriminative update": filtered(None).mean,
        "particles, discriminative weights": filtered(cloud, key=key).mean,
        "particles, exact weights": filtered(cloud, mixture, key=key).mean,
    }
    return {name: problem.error(mean) for name, mean in means.items()}


def nonlinear_table(options: Options) -> list[dict]:
    """The mean of several recordings, and each."""
    channels, length, runs = (
        100,
        300 if options.quick else 1000,
        1 if options.quick else options.seeds,
    )
    particles = 1000 if options.quick else 10_000
    every = [nonlinear_errors(channels, length, seed, particles) for seed in range(runs)]
    print(f"\n== decoding | rotating dynamics, n = {channels}: RMSE relative to decoding zero")
    rows = []
    for name in every[0]:
        errors = [errors[name] for errors in every]
        each = "".join(f"{error:8.3f}" for error in errors)
        print(f"{name:48s}{np.mean(errors):8.3f}  {each}")
        rows.append({"table": "nonlinear", "n": channels, "method": name, "errors": errors})
    return rows


# Reaching: needs the data


def reaching_models(states: np.ndarray, y: np.ndarray) -> dict[str, tuple[ss.Model, Any]]:
    """Decoders of the paper, each with its method, learned from states and observations.

    Those of the Kalman kind regress observations on states: linearly, or by a network of ten hidden units
    whose noise has the covariance of its residuals on the last 30 % of the moments.
    """
    import numpyro.distributions as dist

    kinds = {
        "Nadaraya–Watson": ss.decoding.NadarayaWatson(),
        "Gaussian process": ss.decoding.GaussianProcess(),
        "neural network": ss.decoding.NeuralNetwork(),
    }
    made: dict[str, tuple[ss.Model, Any]] = {}
    for name, regression in kinds.items():
        for rule in ("clip", "shrink"):
            model = ss.learn_decoder(states, y, regression=regression, rule=rule)
            made[f"discriminative, {name}, {rule}"] = model, None
    law = model.initial, model.transition
    H = np.linalg.lstsq(states, y, rcond=None)[0].T
    linear = ss.AffineGaussian(H, covariance=np.cov((y - states @ H.T).T))
    cut = int(0.7 * len(y))
    network = ss.decoding.NeuralNetwork().fit(states[:cut], y[:cut])
    residuals = y[cut:] - np.asarray(jax.vmap(network)(jnp.asarray(states[cut:])))
    factor = jnp.linalg.cholesky(jnp.cov(residuals.T))
    bent = lambda x, step: dist.MultivariateNormal(network(x), scale_tril=factor)
    made["Kalman"] = ss.Model(*law, linear), None
    made["extended Kalman"] = ss.Model(*law, bent), ss.ExtendedKalman()
    made["unscented Kalman"] = ss.Model(*law, bent), ss.SigmaPointKalman(rule="unscented")
    return made


def reaching_table(options: Options) -> list[dict]:
    """Run 1 of Flint et al. (2012): 5,000 bins to learn from, 1,000 to decode."""
    data = ss.datasets.load("flint_run1").to_numpy()
    y, states = data[:, :10], data[:, 10:]
    train, test = slice(0, 5000), slice(5000, 6000)
    print("\n== decoding | reaching: normalised RMSE and mean angular error (rad)")
    rows = []
    for name, (model, method) in reaching_models(states[train], y[train]).items():
        mean = ss.filter(model, y[test], method=method).mean
        rmse = ss.decoding.normalised_rmse(states[test], mean)
        angle = ss.decoding.angular_error(states[test], mean)
        print(f"{name:44s}{rmse:8.3f}{angle:8.3f}", flush=True)
        rows.append({"table": "reaching", "method": name, "rmse": rmse, "angle": angle})
    return rows


# Latency


def latencies(options: Options) -> list[dict]:
    """Online decoders of two states from ten channels, learned from 4,000 moments."""
    rng = np.random.default_rng(0)
    states = np.zeros((5000, 2))
    for t in range(1, 5000):
        states[t] = 0.95 * states[t - 1] + 0.1 * rng.normal(size=2)
    y = states @ rng.normal(size=(2, 10)) + 0.3 * rng.normal(size=(5000, 10))
    known, seen, stream = states[:4000], y[:4000], y[4000:]
    plain = ss.decoding.Average()
    learn = lambda *what: ss.learn_decoder(known, seen, regression=what[0], covariance=what[1])
    models = {
        "ridge": learn(ss.decoding.Ridge(), plain),
        "neural network": learn(ss.decoding.NeuralNetwork(iterations=300), plain),
        "Nadaraya–Watson": learn(ss.decoding.NadarayaWatson(), plain),
        "Nadaraya–Watson, and of the covariance": learn(None, None),
    }
    H = np.linalg.lstsq(known, seen, rcond=None)[0].T
    first = models["ridge"]
    sees = ss.AffineGaussian(H, covariance=np.cov((seen - known @ H.T).T))
    models["Kalman filter"] = ss.Model(first.initial, first.transition, sees)
    print("\n== decoding | one update of an online decoder, 2 states, 10 channels")
    rows = []
    for name, model in models.items():
        found = ss.diagnostics.latency(ss.online(model), stream)
        met = "yes" if found.median <= LATENCY else "NO"
        print(f"{name:40s}{found}   goal {met}", flush=True)
        rows.append({"table": "latency", "decoder": name} | found._asdict())
    return rows


def run(options: Options) -> None:
    from benchmarks import decoding_bernoulli, decoding_floors  # which use the problems above

    begin = time.perf_counter()
    tables: dict[str, Callable[[], list[dict]]] = {
        "latency": lambda: latencies(options),
        "synthetic": lambda: synthetic_table(options),
        "rotation": lambda: nonlinear_table(options),
        "bernoulli": lambda: decoding_bernoulli.table(options.quick, options.seeds),
        "floors": lambda: decoding_floors.table(options.quick, options.seeds),
        "reaching": lambda: reaching_table(options),
    }
    rows = []
    for name, table in tables.items():
        if options.ops and name not in options.ops:
            continue
        try:
            rows += table()
        except OSError as error:
            print(f"   ({name}: left out, {error})")
    if options.save:
        store("decoding", rows, options)
    print(f"   {time.perf_counter() - begin:.0f} s")
