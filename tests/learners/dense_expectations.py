"""EM's expected complete-data log likelihood by one big Gaussian: no filter, no smoother, no residuals."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import multivariate_normal


def covariance(scale):
    return jnp.diag(scale**2) if jnp.ndim(scale) == 1 else scale @ scale.T


def offsets(p, inputs, T):
    """Offsets of the transition and the observation at each moment."""
    n, m = p["transition_matrix"].shape[0], p["observation_matrix"].shape[0]
    b = jnp.broadcast_to(p.get("transition_offset", jnp.zeros(n)), (T, n))
    d = jnp.broadcast_to(p.get("observation_offset", jnp.zeros(m)), (T, m))
    if "transition_input_matrix" in p:
        b = b + inputs @ p["transition_input_matrix"].T
    if "observation_input_matrix" in p:
        d = d + inputs @ p["observation_input_matrix"].T
    return b, d


def complete_moments(p, y, inputs):
    """Mean and covariance of all states, then all observations, given the observed ones."""
    p = {k: np.asarray(v) for k, v in p.items()}
    T = len(y)
    F, H = p["transition_matrix"], p["observation_matrix"]
    n = len(F)
    b, d = (np.asarray(v) for v in offsets(p, inputs, T))
    Q, R = (np.asarray(covariance(p[k])) for k in ("transition_scale", "observation_scale"))
    G = np.zeros((T * n, T * n))
    noise = np.zeros((T * n, T * n))
    shift = np.zeros(T * n)
    for t in range(T):
        for s in range(t + 1):
            G[t * n : t * n + n, s * n : s * n + n] = np.linalg.matrix_power(F, t - s)
        block = slice(t * n, t * n + n)
        noise[block, block] = Q if t else covariance(p["initial_scale"])
        shift[block] = b[t] if t else p["initial_mean"]
    C = np.kron(np.eye(T), H)
    mean = G @ shift
    cov = G @ noise @ G.T
    mean = np.concatenate([mean, C @ mean + d.ravel()])
    cov = np.block([[cov, cov @ C.T], [C @ cov, C @ cov @ C.T + np.kron(np.eye(T), R)]])
    seen = np.concatenate([np.zeros(T * n, bool), ~np.isnan(y).ravel()])
    gain = np.linalg.solve(cov[np.ix_(seen, seen)], cov[seen]).T
    mean = mean + gain @ (y.ravel()[seen[T * n :]] - mean[seen])
    return mean, cov - gain @ cov[seen]


def expected_log_likelihood(new, old, y, inputs=None):
    """``E[log p(x, y; new) | observed; old]``, moments without any observation left out of ``p(y | x)``."""
    mean, cov = complete_moments(old, y, inputs)
    T, m = y.shape
    n = len(old["initial_mean"])
    b, d = offsets(new, inputs, T)

    def expected(matrix, offset, noise):
        """E[log N(matrix z; -offset, noise)] for z ~ N(mean, cov)."""
        e = matrix @ mean + offset
        density = multivariate_normal.logpdf(e, jnp.zeros_like(e), noise)
        return density - jnp.trace(jnp.linalg.solve(noise, matrix @ cov @ matrix.T)) / 2

    def select(moment, size, start):
        return np.eye(len(mean))[start + moment * size : start + (moment + 1) * size]

    total = expected(select(0, n, 0), -new["initial_mean"], covariance(new["initial_scale"]))
    for t in range(1, T):
        matrix = select(t, n, 0) - new["transition_matrix"] @ select(t - 1, n, 0)
        total += expected(matrix, -b[t], covariance(new["transition_scale"]))
    for t in range(T):
        if not np.isnan(y[t]).all():
            matrix = select(t, m, T * n) - new["observation_matrix"] @ select(t, n, 0)
            total += expected(matrix, -d[t], covariance(new["observation_scale"]))
    return total
