"""A small switching linear model, and sums over all its paths of regimes: the oracle of methods for such."""

import itertools

import numpy as np
import scipy.linalg
import scipy.special
import scipy.stats

import statespace as ss

K, N, T = 2, 2, 6
ARRAYS = {
    "initial_probs": [0.6, 0.4],
    "transition": [[0.8, 0.2], [0.3, 0.7]],
    "matrix": [[[0.9, 0.2], [-0.2, 0.9]], [[0.3, 0.0], [0.5, 0.4]]],
    "scale": [[0.3, 0.2], [1.0, 0.6]],
    "observation_matrix": [[[1.0, 0.0]], [[1.0, 1.0]]],
    "observation_scale": [[0.3], [0.5]],
    "initial_mean": [[0.0, 0.0], [1.0, -1.0]],
    "initial_scale": [[1.0, 1.0]],
    "offset": [[0.0, 0.0], [1.0, 0.5]],
    "observation_offset": [[0.1], [-0.2]],
}
MODEL = ss.SwitchingLinearGaussian(**ARRAYS)
Y = np.array([0.4, -1.2, np.nan, 2.1, 0.3, -0.5])


def of(name, k, arrays=ARRAYS):
    value = np.asarray(arrays[name])
    return value[k if len(value) > 1 else 0]


def prior(path, arrays=ARRAYS):
    """Log probability of a path of regimes."""
    first, moves = np.log(arrays["initial_probs"]), np.log(arrays["transition"])
    return first[path[0]] + sum(moves[a, b] for a, b in itertools.pairwise(path))


def along(path, y, arrays=ARRAYS):
    """Joint law of path and data as one big Gaussian: log density, means (T, n), covariances (T, n, n)."""
    lead = np.eye(N)
    lifts, mean, noise = [], [], []
    for t, k in enumerate(path):
        f = of("matrix", k, arrays)
        if t == 0:
            mean.append(of("initial_mean", k, arrays))
            noise.append(np.diag(of("initial_scale", k, arrays) ** 2))
            lifts.append([lead])
        else:
            mean.append(f @ mean[-1] + of("offset", k, arrays))
            noise.append(np.diag(of("scale", k, arrays) ** 2))
            lifts.append([f @ x for x in lifts[-1]] + [lead])
    length = len(path)
    lift = np.block([[*row, *[np.zeros((N, N))] * (length - len(row))] for row in lifts])
    joint = lift @ scipy.linalg.block_diag(*noise) @ lift.T
    mean = np.concatenate(mean)
    h = scipy.linalg.block_diag(*[of("observation_matrix", k, arrays) for k in path])
    d = np.concatenate([of("observation_offset", k, arrays) for k in path])
    r = np.diag(np.concatenate([of("observation_scale", k, arrays) for k in path]) ** 2)
    seen = ~np.isnan(y)
    h, d, r = h[seen], d[seen], r[np.ix_(seen, seen)]
    s = h @ joint @ h.T + r
    log_density = scipy.stats.multivariate_normal(h @ mean + d, s).logpdf(y[seen])
    gain = joint @ h.T @ np.linalg.inv(s)
    after = mean + gain @ (y[seen] - h @ mean - d)
    left = joint - gain @ h @ joint
    blocks = [left[N * t : N * t + N, N * t : N * t + N] for t in range(length)]
    return log_density, after.reshape(length, N), np.array(blocks)


def mixture(y, arrays=ARRAYS):
    """All K^T paths, their log joint densities with the data, means and covariances of the states."""
    paths = list(itertools.product(range(K), repeat=len(y)))
    laws = [along(p, y, arrays) for p in paths]
    logs = np.array([prior(p, arrays) + law[0] for p, law in zip(paths, laws)])
    return np.array(paths), logs, *(np.array([law[i] for law in laws]) for i in (1, 2))


def summed(y, arrays=ARRAYS):
    """Log likelihood, probabilities (T, K), means and covariances, from all K^T paths."""
    paths, logs, means, covariances = mixture(y, arrays)
    total = scipy.special.logsumexp(logs)
    w = np.exp(logs - total)
    probs = np.stack([w @ (paths == k) for k in range(K)], axis=1)
    mean = np.einsum("p,ptn->tn", w, means)
    error = means - mean
    covariance = np.einsum("p,ptij->tij", w, covariances)
    covariance += np.einsum("p,pti,ptj->tij", w, error, error)
    return total, probs, mean, covariance


EXACT = summed(Y)
