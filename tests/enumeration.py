"""A finite chain by enumeration of all its paths, in extended precision: the oracle of the finite models."""

import itertools
from functools import cached_property

import numpy as np
from oracle import REAL


class Paths:
    """All K^T paths with the log of their joint probability with the data."""

    def __init__(self, initial, transitions, potentials):
        initial, transitions, potentials = (
            np.asarray(x, REAL) for x in (initial, transitions, potentials)
        )
        self.T, self.K = potentials.shape
        self.paths = np.array(list(itertools.product(range(self.K), repeat=self.T)))
        a = np.broadcast_to(transitions, (self.T - 1, self.K, self.K))
        with np.errstate(divide="ignore"):
            terms = [np.log(initial)[self.paths[:, 0]] + potentials[0, self.paths[:, 0]]]
            for t in range(1, self.T):
                before, now = self.paths[:, t - 1], self.paths[:, t]
                terms.append(np.log(a[t - 1])[before, now] + potentials[t, now])
            self.law = np.log(initial), np.log(a), potentials
        self.log_probs = np.sum(terms, axis=0)

    @cached_property
    def log_likelihood(self):
        return logsumexp(self.log_probs)

    @cached_property
    def weights(self):
        """Posterior probability of each path."""
        return np.exp(self.log_probs - self.log_likelihood)

    def marginals(self):
        """``(T, K)``."""
        return np.array([self._sums(self.paths[:, t], self.K) for t in range(self.T)])

    def pairs(self):
        """``(T - 1, K, K)``."""
        code = self.paths[:, :-1] * self.K + self.paths[:, 1:]
        flat = np.array([self._sums(code[:, t], self.K**2) for t in range(self.T - 1)])
        return flat.reshape(self.T - 1, self.K, self.K)

    def _sums(self, code, size):
        return np.array([self.weights[code == k].sum() for k in range(size)])

    def best(self):
        """The most probable path and the log of its probability."""
        i = self.log_probs.argmax()
        return self.paths[i], self.log_probs[i]

    def prefix(self, t):
        """The chain of the first t + 1 moments."""
        initial, a, potentials = self.law
        return Paths(np.exp(initial), np.exp(a[:t]), potentials[: t + 1])

    def filtered(self):
        """Laws given the past ``(T, K)``, and the evidence of each moment ``(T,)``."""
        runs = [self.prefix(t) for t in range(self.T)]
        values = np.array([r.log_likelihood for r in runs])
        return np.array([r.marginals()[-1] for r in runs]), np.diff(values, prepend=REAL(0))

    def predicted(self):
        """Laws before each moment's own potential ``(T, K)``."""
        initial, a, potentials = self.law
        out = [np.exp(initial)]
        for t in range(1, self.T):
            blind = potentials[: t + 1].copy()
            blind[t] = 0
            out.append(Paths(np.exp(initial), np.exp(a[:t]), blind).marginals()[-1])
        return np.array(out)

    def draw(self, uniforms):
        """The path whose states, from the last to the first, are where their laws' distribution passes u."""
        alive = np.ones(len(self.paths), bool)
        for t in reversed(range(self.T)):
            law = [self.weights[alive & (self.paths[:, t] == k)].sum() for k in range(self.K)]
            below = np.cumsum(law)
            state = int(np.argmax(below > uniforms[t] * below[-1]))
            alive &= self.paths[:, t] == state
        return self.paths[alive][0]


def logsumexp(x):
    peak = np.max(x)
    return peak + np.log(np.sum(np.exp(x - peak))) if np.isfinite(peak) else peak


def random_chain(seed, states=3, moments=6, varying=False, spread=1.0):
    """``(initial, transitions, potentials)`` with every path possible."""
    r = np.random.default_rng(seed)
    entries = max(moments - 1, 1) if varying else 1
    return (
        r.dirichlet(np.ones(states)),
        r.dirichlet(np.ones(states), size=(entries, states)),
        spread * r.normal(size=(moments, states)),
    )


def normalised(a):
    a = np.asarray(a, float)
    return a / a.sum(-1, keepdims=True)


def cases():
    """Chains of three states and six moments, by name."""
    out = {
        "plain": random_chain(0),
        "varying": random_chain(1, varying=True),
        "potentials far apart": random_chain(2, spread=300.0),
    }
    initial, a, w = random_chain(3)
    cyclic = normalised(a * [[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    out["structural zeros"] = (np.array([1.0, 0, 0]), cyclic, w)
    blocked = w.copy()
    blocked[0, 2] = blocked[2, 1] = blocked[3, 0] = blocked[5, :2] = -np.inf
    out["impossible states"] = (initial, a, blocked)
    out["zeros and impossible states"] = (np.array([0.5, 0.5, 0]), cyclic, blocked)
    varying = random_chain(4, varying=True)
    gates = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])[None] * np.ones((5, 1, 1))
    gates[2] = np.eye(3)
    out["varying zeros"] = (varying[0], normalised(varying[1] * gates), varying[2])

    # what is lost to underflow and comes back
    left_to_right = normalised([[[8, 1, 1], [0, 9, 1], [0, 0, 1]]])
    late = np.zeros((6, 3))
    late[0] = 0, 1000, 990
    late[1:, 0] = 250
    out["the first moment misleads"] = (np.array([0.5, 0.25, 0.25]), left_to_right, late)
    tracks = normalised([[[9, 0, 0], [0, 5, 4], [0, 4, 5]]])
    even = np.zeros((6, 3))
    even[1, 0], even[4, 0] = -2000, 2000.5
    out["two tracks that never meet"] = (np.array([0.4, 0.3, 0.3]), tracks, even)
    nearly = normalised([[[1, 1e-200, 1e-250], [1e-180, 1, 1e-170], [1e-300, 1e-160, 1]]])
    pulled = np.array(
        [[0, 0, -900], [500, 0, 0], [0, 300, 0], [0, 0, 700], [0, 600, 0], [800, 0, 0.0]]
    )
    out["nearly impossible transitions"] = (np.array([1.0, 1e-220, 0]), nearly, pulled)
    alone = w.copy()
    alone[:, 2] = 2000
    closed = normalised([[[1, 1, 0], [1, 2, 0], [1, 1, 1]]])
    out["a state out of reach with all the weight"] = (np.array([0.5, 0.5, 0]), closed, alone)
    out["a first state nearly impossible"] = (np.array([1 - 1e-300, 1e-300, 0]), a, alone[:, ::-1])
    return out


IMPOSSIBLE = {
    "at once": (
        np.array([0.5, 0.5, 0]),
        random_chain(5)[1],
        [[-np.inf, -np.inf, 0]] + [[0, 1, 2]] * 5,
    ),
    "at every state": (*random_chain(6)[:2], [[0, 1, 2]] * 3 + [[-np.inf] * 3] + [[2, 1, 0]] * 2),
    "after a transition": (
        np.array([1.0, 0, 0]),
        np.array([[[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]]),
        [[0, 1, 2]] * 2 + [[-np.inf, -np.inf, 5]] + [[2, 1, 0]] * 3,
    ),
}
"""Chains whose data are impossible, and the moment at which they are: they have no posterior."""
