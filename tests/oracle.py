"""The dense oracle: a whole linear Gaussian chain as one big Gaussian, in extended precision.

No recursion, no gain, no trick of a filter: the states of all moments are one vector, whose mean and
covariance are written down, and everything is conditioned by linear algebra. ``numpy.longdouble`` has
64 bits of mantissa on x86, so the oracle's own rounding (about 1e-19 times a condition number) stays
far below the 1e-9 that the tests ask for, and its finite differences are good to 1e-12.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

REAL = np.longdouble
LOG_2PI = np.log(2 * np.arccos(REAL(-1)))


class LU:
    """Gaussian elimination with partial pivoting, because LAPACK has no extended precision."""

    def __init__(self, matrix: np.ndarray):
        a = np.array(matrix, REAL)
        self.order = np.arange(len(a))
        for k in range(len(a)):
            pivot = k + int(np.argmax(np.abs(a[k:, k])))
            a[[k, pivot]] = a[[pivot, k]]
            self.order[[k, pivot]] = self.order[[pivot, k]]
            a[k + 1 :, k] /= a[k, k]
            a[k + 1 :, k + 1 :] -= np.outer(a[k + 1 :, k], a[k, k + 1 :])
        self.a = a

    def solve(self, right: np.ndarray) -> np.ndarray:
        x = np.array(right, REAL)[self.order]
        for k in range(len(x)):
            x[k] -= self.a[k, :k] @ x[:k]
        for k in reversed(range(len(x))):
            x[k] = (x[k] - self.a[k, k + 1 :] @ x[k + 1 :]) / self.a[k, k]
        return x

    def log_abs_det(self) -> np.longdouble:
        return np.log(np.abs(np.diagonal(self.a))).sum()


@dataclasses.dataclass(frozen=True)
class Posterior:
    """The states of all moments given some observations.

    A coordinate whose variance is infinite, because a flat direction is not determined yet, is NaN.
    """

    log_normaliser: np.longdouble
    mean: np.ndarray  # (T, n)
    covariance: np.ndarray  # (T, n, T, n)

    def at(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        return self.mean[t], self.covariance[t, :, t, :]


@dataclasses.dataclass(frozen=True)
class Dense:
    """A chain of T moments, by its arrays.

    ``x_0 ~ N(m0, P0)``, plus ``A`` times a vector with a flat prior of density one;
    ``x_t = F_t x_{t-1} + b_t + N(0, Q_t)``, entry t - 1 of the arrays leading into moment t;
    ``y_t = H_t x_t + d_t + N(0, R_t)``, NaN in ``y`` for what was not observed; and, in place of or
    besides ``y``, factors ``exp(-x_t' J_t x_t / 2 + h_t' x_t)``.
    """

    m0: np.ndarray  # (n,)
    P0: np.ndarray  # (n, n)
    F: np.ndarray  # (T-1, n, n)
    b: np.ndarray  # (T-1, n)
    Q: np.ndarray  # (T-1, n, n)
    H: np.ndarray  # (T, m, n)
    d: np.ndarray  # (T, m)
    R: np.ndarray  # (T, m, m)
    y: np.ndarray  # (T, m)
    A: np.ndarray | None = None  # (n, q)
    J: np.ndarray | None = None  # (T, n, n)
    h: np.ndarray | None = None  # (T, n)

    def __post_init__(self):
        length = len(self.y)
        for name, steps in {
            **dict.fromkeys("FbQ", length - 1),
            **dict.fromkeys("HdR", length),
        }.items():
            value = np.asarray(getattr(self, name), REAL)
            object.__setattr__(self, name, np.broadcast_to(value, (steps, *value.shape[1:])))
        for name in ("m0", "P0", "y", "A", "J", "h"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else np.asarray(value, REAL))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """T, n, m."""
        return (len(self.y), len(self.m0), self.y.shape[1])

    def prior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean (T n,), covariance (T n, T n) and flat directions (T n, q) of all states.

        The states are ``G u`` of the independent ``u_0 = x_0`` and ``u_t = b_t + noise``. Along a flat
        direction any finite variance may be added, and unit variance is: nothing changes, and a first
        observation without noise leaves no singular matrix.
        """
        T, n, _ = self.sizes
        A = np.zeros((n, 0), REAL) if self.A is None else self.A
        G = np.zeros((T, n, T, n), REAL)
        noise = np.zeros((T, n, T, n), REAL)
        for t in range(T):
            G[t, :, t, :] = np.eye(n)
            for s in range(t):
                G[t, :, s, :] = self.F[t - 1] @ G[t - 1, :, s, :]
            noise[t, :, t, :] = self.P0 + A @ A.T if t == 0 else self.Q[t - 1]
        u = np.concatenate([self.m0, self.b.reshape(-1)])
        G, noise = G.reshape(T * n, T * n), noise.reshape(T * n, T * n)
        return G @ u, G @ noise @ G.T, G[:, :n] @ A

    def observed(self, upto: int) -> tuple[np.ndarray, ...]:
        """Matrix, offset, noise covariance and values of what was observed at moments < upto."""
        T, n, m = self.sizes
        C, R = np.zeros((T, m, T, n), REAL), np.zeros((T, m, T, m), REAL)
        for t in range(T):
            C[t, :, t, :], R[t, :, t, :] = self.H[t], self.R[t]
        keep = (~np.isnan(self.y) & (np.arange(T) < upto)[:, None]).reshape(-1)
        C, R = C.reshape(T * m, T * n), R.reshape(T * m, T * m)
        return C[keep], self.d.reshape(-1)[keep], R[keep][:, keep], self.y.reshape(-1)[keep]

    def posterior(self, upto: int | None = None) -> Posterior:
        """All states given everything at the moments < upto (None: everything)."""
        T, n, _ = self.sizes
        upto = T if upto is None else upto
        mean, cov, flat = self.prior()

        C, d, R, y = self.observed(upto)
        V, X, r = C @ cov @ C.T + R, C @ flat, y - d - C @ mean
        lu = LU(V)
        gain = lu.solve(C @ cov).T
        value = -(len(y) * LOG_2PI + lu.log_abs_det() + r @ lu.solve(r)) / 2
        # The logarithm of the integrand is value + g' delta - delta' M delta / 2.
        M, g = X.T @ lu.solve(X), X.T @ lu.solve(r)
        mean, cov, flat = mean + gain @ r, cov - gain @ C @ cov, flat - gain @ X

        if self.J is not None:
            J, h = np.zeros((T, n, T, n), REAL), np.zeros((T, n), REAL)
            for t in range(upto):
                J[t, :, t, :], h[t] = self.J[t], self.h[t]
            J, h = J.reshape(T * n, T * n), h.reshape(-1)
            lu = LU(np.eye(T * n) + cov @ J)
            new, e = lu.solve(cov), h - J @ mean
            value += (e @ new @ e - mean @ J @ mean - lu.log_abs_det()) / 2 + h @ mean
            M = M + flat.T @ (J - J @ new @ J) @ flat
            g = g + flat.T @ (e - J @ new @ e)
            mean, cov, flat = lu.solve(mean + cov @ h), new, lu.solve(flat)

        # Integrate delta out, over the directions that the observations determine.
        size, directions = np.linalg.eigh(M.astype(float))
        known, unknown = directions[:, size > 1e-9], directions[:, size <= 1e-9]
        lu = LU(known.T @ M @ known)
        spread = known @ lu.solve(known.T.astype(REAL))
        value += (g @ spread @ g + known.shape[1] * LOG_2PI - lu.log_abs_det()) / 2
        mean, cov = mean + flat @ spread @ g, cov + flat @ spread @ flat.T
        infinite = np.any(np.abs(flat @ unknown) > 1e-9, axis=1)
        mean, cov = np.where(infinite, np.nan, mean), cov.copy()
        cov[infinite], cov[:, infinite] = np.nan, np.nan
        return Posterior(value, mean.reshape(T, n), cov.reshape(T, n, T, n))

    def log_likelihood(self) -> np.longdouble:
        """log p(y); a flat direction contributes no -log(2 pi) / 2 (Durbin & Koopman 2012, 7.2.2)."""
        return self.posterior().log_normaliser

    def pointwise(self) -> np.ndarray:
        """log p(y_t | y_{0:t-1}), shape (T,)."""
        values = [self.posterior(t).log_normaliser for t in range(len(self.y) + 1)]
        return np.diff(values)

    def predicted(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (T, n) and covariance (T, n, n) of x_t given y_{0:t-1}."""
        return _stack([self.posterior(t).at(t) for t in range(len(self.y))])

    def filtered(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (T, n) and covariance (T, n, n) of x_t given y_{0:t}."""
        return _stack([self.posterior(t + 1).at(t) for t in range(len(self.y))])

    def smoothed(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (T, n) and covariance (T, n, n) of x_t given everything."""
        posterior = self.posterior()
        return _stack([posterior.at(t) for t in range(len(self.y))])

    def lag_one(self) -> np.ndarray:
        """Cov(x_t, x_{t+1} | everything), shape (T-1, n, n)."""
        T, n, _ = self.sizes
        cov = self.posterior().covariance
        return np.array([cov[t, :, t + 1, :] for t in range(T - 1)]).reshape(T - 1, n, n)

    def predicted_observations(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (T, m) and covariance (T, m, m) of y_t given y_{0:t-1}, missing channels included."""
        mean, cov = self.predicted()
        return (
            np.einsum("tij,tj->ti", self.H, mean) + self.d,
            np.einsum("tij,tjk,tlk->til", self.H, cov, self.H) + self.R,
        )


def kalman(chain: Dense) -> tuple[np.longdouble, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The textbook filter and smoother in extended precision, for series too long for one big matrix.

    Returns the log likelihood, filtered means and covariances, smoothed means and covariances.
    """
    T, n, _ = chain.sizes
    value, mean, cov = REAL(0), chain.m0, chain.P0
    filtered, predicted = [], []
    for t in range(T):
        if t:
            mean = chain.F[t - 1] @ mean + chain.b[t - 1]
            cov = chain.F[t - 1] @ cov @ chain.F[t - 1].T + chain.Q[t - 1]
        predicted.append((mean, cov))
        keep = ~np.isnan(chain.y[t])
        if keep.any():
            H = chain.H[t][keep]
            S, r = (
                H @ cov @ H.T + chain.R[t][keep][:, keep],
                (chain.y[t] - chain.d[t])[keep] - H @ mean,
            )
            lu = LU(S)
            gain = lu.solve(H @ cov).T
            value -= (keep.sum() * LOG_2PI + lu.log_abs_det() + r @ lu.solve(r)) / 2
            left = np.eye(n) - gain @ H
            mean = mean + gain @ r
            cov = left @ cov @ left.T + gain @ chain.R[t][keep][:, keep] @ gain.T
        filtered.append((mean, cov))
    smoothed = [filtered[-1]]
    for t in reversed(range(T - 1)):
        (mean, cov), (mean1, cov1) = filtered[t], predicted[t + 1]
        back = LU(cov1).solve(chain.F[t] @ cov).T
        later_mean, later_cov = smoothed[-1]
        smoothed.append(
            (mean + back @ (later_mean - mean1), cov + back @ (later_cov - cov1) @ back.T)
        )
    return (value, *_stack(filtered), *_stack(smoothed[::-1]))


def derivative(function: Callable[[np.longdouble], np.longdouble], step: float) -> np.longdouble:
    """f'(0) by the central difference of sixth order; in extended precision good to about 1e-14."""
    weights = {1: REAL(3) / 4, 2: REAL(-3) / 20, 3: REAL(1) / 60}
    return sum(
        w * (function(k * REAL(step)) - function(-k * REAL(step))) for k, w in weights.items()
    ) / REAL(step)


def _stack(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([mean for mean, _ in pairs]), np.array([cov for _, cov in pairs])
