"""Gaussian chains to try: the same arrays for the oracle and for `statespace.chains.gaussian`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from oracle import REAL, Dense

from statespace.chains import gaussian

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A chain by factors of its covariances; the leading axes are 1 (constant) or T (T - 1 for f, b, q).

    ``J`` and ``h`` given: potentials in information form, in place of observations.
    """

    m0: np.ndarray
    L0: np.ndarray
    F: np.ndarray
    b: np.ndarray
    L: np.ndarray
    H: np.ndarray
    d: np.ndarray
    K: np.ndarray
    y: np.ndarray
    A: np.ndarray | None = None
    J: np.ndarray | None = None
    h: np.ndarray | None = None

    def but(self, **changes: Any) -> Problem:
        return dataclasses.replace(self, **changes)

    @property
    def arrays(self) -> Arrays:
        return {k: v for k, v in self.__dict__.items() if v is not None}

    @property
    def dense(self) -> Dense:
        return dense({k: np.asarray(v, REAL) for k, v in self.arrays.items()})

    def chain(self, form: str, dtype: Any = float, mask: bool | None = None) -> gaussian.Chain:
        """The chain; ``mask`` None: when something is missing."""
        with_mask = bool(np.isnan(self.y).any()) if mask is None else mask
        observed = jnp.asarray(~np.isnan(self.y)) if with_mask else None
        return chain({k: jnp.asarray(v, dtype) for k, v in self.arrays.items()}, form, observed)


def dense(a: Arrays) -> Dense:
    """The oracle of the arrays of a problem."""
    y = a["y"] if "J" not in a else np.full_like(a["y"], np.nan)
    cov = lambda factor: factor @ np.swapaxes(factor, -1, -2)
    return Dense(
        a["m0"], cov(a["L0"]), a["F"], a["b"], cov(a["L"]), a["H"], a["d"], cov(a["K"]), y,
        a.get("A"), a.get("J"), a.get("h"),
    )  # fmt: skip


def chain(a: Arrays, form: str, mask: Any = None) -> gaussian.Chain:
    """The chain of the arrays of a problem; differentiable in them."""

    def noise(factor):
        return factor if form == "sqrt" else factor @ jnp.swapaxes(factor, -1, -2)

    if "J" in a:
        potentials = gaussian.Sites(a["J"], a["h"])
    else:
        potentials = gaussian.Observed(a["H"], a["d"], noise(a["K"]), a["y"], mask)
    return gaussian.Chain(
        gaussian.Initial(a["m0"], noise(a["L0"]), a.get("A")),
        gaussian.Transitions(a["F"], a["b"], noise(a["L"])),
        potentials,
    )


def random(seed: int = 0, T: int = 6, n: int = 3, m: int = 2, varying: bool = True) -> Problem:
    """Nothing zero, nothing diagonal: means, offsets, cross-correlated noises, all varying in time."""
    r = np.random.default_rng([seed, T, n, m])
    S, O = (T - 1, T) if varying else (1, 1)
    rotation = np.linalg.qr(r.normal(size=(S, n, n)))[0]
    return Problem(
        m0=2 + r.normal(size=n),
        L0=np.eye(n) + 0.4 * r.normal(size=(n, n)),
        F=0.9 * rotation + 0.1 * r.normal(size=(S, n, n)),
        b=1 + r.normal(size=(S, n)),
        L=0.5 * np.eye(n) + 0.3 * r.normal(size=(S, n, n)),
        H=r.normal(size=(O, m, n)),
        d=-3 + r.normal(size=(O, m)),
        K=0.7 * np.eye(m) + 0.3 * r.normal(size=(O, m, m)),
        y=3 * r.normal(size=(T, m)),
    )


def without(y: np.ndarray, *entries: Any) -> np.ndarray:
    """``y`` with some entries missing."""
    y = y.copy()
    for entry in entries:
        y[entry] = np.nan
    return y


def _discretised(lam: np.ndarray, dt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Independent Ornstein-Uhlenbeck processes of unit variance at irregular times."""
    decay = np.exp(-dt[:, None] * lam)
    return decay[:, :, None] * np.eye(len(lam)), np.sqrt(1 - decay**2)[:, :, None] * np.eye(
        len(lam)
    )


def cases() -> dict[str, Problem]:
    """Chains of the same shapes (6 moments, 3 states, 2 channels) first, then the odd shapes."""
    base, some = random(), random(1)
    missing = some.but(y=without(some.y, (1, 0), (2, 1), 3))
    F, L = _discretised(np.array([0.1, 1.0, 5.0]), np.array([0.01, 0.3, 4.0, 1e-3, 30.0]))
    singular = base.L.copy()
    singular[:, :, 2] = 0
    singular[:, 1] = 0
    exact_start = base.but(L0=np.zeros((3, 3)))
    mask = (5, 1)  # one entry, so that all of these share one compiled program
    return {
        "missing entries and rows": missing,
        "first row missing": some.but(y=without(some.y, 0)),
        "last row missing": some.but(y=without(some.y, 5)),
        "irregular times": base.but(F=F, L=L, y=without(base.y, mask)),
        "inputs": base.but(b=base.b + 10 * np.sin(np.arange(5))[:, None], y=without(base.y, mask)),
        "singular Q": base.but(L=singular, y=without(base.y, mask)),
        "no process noise": base.but(L=0 * base.L, y=without(base.y, mask)),
        "known initial state": exact_start.but(y=without(base.y, mask)),
        "vague initial state": base.but(L0=np.sqrt(1e7) * np.eye(3), y=without(base.y, mask)),
        "exact observations": base.but(K=0 * base.K, y=without(base.y, mask)),
        "known noise per step": base.but(
            K=base.K * 10.0 ** np.arange(-3, 3)[:, None, None], y=without(base.y, mask)
        ),
        "complete": base,
        "constant": random(2, varying=False),
        "constant, missing entries": missing.but(
            **{k: getattr(missing, k)[:1] for k in ("F", "b", "L", "H", "d", "K")}
        ),
        "one moment": random(3, T=1),
        "two moments": random(4, T=2),
        "one state": random(5, n=1, m=1),
        "more channels than states": random(6, n=2, m=5),
        "ten channels": random(7, T=4, n=3, m=10),
        "twelve states": random(8, T=4, n=12, m=3),
        "twelve states, ten channels": _large(),
    }


def _large() -> Problem:
    problem = random(9, T=3, n=12, m=10)
    return problem.but(y=without(problem.y, (1, slice(0, 4)), (2, 7)))


def diffuse_cases() -> dict[str, Problem]:
    """Flat directions of the initial state: coordinates, oblique directions, all of them."""
    base = random(11)
    identity = np.eye(3)
    left = np.diag([0.0, 1.0, 1.0])
    oblique = np.array([[1.0], [2.0], [-0.5]])
    return {
        "one coordinate": base.but(A=identity[:, :1], L0=left @ base.L0),
        "one oblique direction": base.but(A=oblique),
        "two coordinates": base.but(A=identity[:, 1:], L0=np.diag([1.0, 0, 0]) @ base.L0),
        "all": base.but(A=identity, L0=0 * base.L0),
        "all, first row missing": base.but(A=identity, L0=0 * base.L0, y=without(base.y, 0)),
        "all, first entries missing": base.but(
            A=identity, L0=0 * base.L0, y=without(base.y, 0, (1, 1), 3)
        ),
        "one, first rows missing": base.but(
            A=identity[:, :1], L0=left @ base.L0, y=without(base.y, 0, 1)
        ),
    }


def site_cases() -> dict[str, Problem]:
    """Potentials in information form: of full rank, of low rank, empty ones."""
    base = random(21)
    T, n = 6, 3
    r = np.random.default_rng(22)
    root = r.normal(size=(T, n, n))
    full = root @ np.swapaxes(root, 1, 2)
    low = root[:, :, :1] @ np.swapaxes(root[:, :, :1], 1, 2)
    low[[0, 4]] = 0
    shift = r.normal(size=(T, n))
    empty = shift.copy()
    empty[[0, 4]] = 0
    return {
        "full rank": base.but(J=full, h=shift),
        "low rank, two empty": base.but(J=low, h=np.einsum("tij,tj->ti", low, shift)),
        "known initial state": base.but(J=full, h=shift, L0=0 * base.L0),
        "singular Q": base.but(J=full, h=shift, L=base.L * np.array([1.0, 1.0, 0.0])),
    }
