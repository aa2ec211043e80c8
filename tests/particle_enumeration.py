"""Particle algorithms on a small finite chain, by going through all of their random choices.

A resampling scheme is piecewise constant in its uniform numbers: :func:`law` evaluates it once between
every two neighbouring places at which it can jump, and adds up the volumes. A run is given its states and
ancestors, and :func:`law` gives their probabilities.
"""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from statespace.chains import particle

STATES, STEPS = 2, 3


def vectors(count, size=None):
    """All vectors of ``count`` numbers below ``size`` (or ``count``)."""
    return np.array(list(itertools.product(range(size or count), repeat=count)))


# Laws of the schemes


def law(name, weights, conditional=False):
    """Probability of each vector of ancestors (as in `vectors`) for each row of weights ``(M, N)``."""
    weights = np.atleast_2d(weights)
    count = weights.shape[1]
    jumps = _jumps_conditional if conditional else _jumps
    rows, places, volumes, check = [], [], [], []
    for m, w in enumerate(weights):
        edges = [_edges(x) for x in jumps(name, w)]
        cells = [np.diff(e) for e in edges]
        low = [e[:-1] + 0.3 * c for e, c in zip(edges, cells)]
        high = [e[:-1] + 0.8 * c for e, c in zip(edges, cells)]
        places.append(_product(low))
        check.append(_product(high))
        volumes.append(_product(cells).prod(axis=1))
        rows.append(np.full(len(places[-1]), m))
    rows, volumes = np.concatenate(rows), np.concatenate(volumes)
    got = _draw(name, conditional, weights[rows], np.concatenate(places))
    again = _draw(name, conditional, weights[rows], np.concatenate(check))
    np.testing.assert_array_equal(got, again)  # or a place was left out at which it jumps
    code = rows * count**count + got @ count ** np.arange(count)[::-1]
    table = np.bincount(code, volumes, minlength=len(weights) * count**count)
    return table.reshape(len(weights), -1)


def _draw(name, conditional, weights, places):
    size = 4096  # one program for all
    out = []
    for i in range(0, len(places), size):
        w, u = weights[i : i + size], places[i : i + size]
        short = size - len(u)
        w, u = (np.pad(x, ((0, short), (0, 0)), mode="edge") for x in (w, u))
        out.append(np.asarray(_drawing(name, conditional)(u, np.log(w)))[: size - short])
    return np.concatenate(out)


@cache
def _drawing(name, conditional):
    scheme = particle.SCHEMES[name]
    return jax.jit(jax.vmap(scheme.conditional if conditional else scheme))


def _edges(jumps):
    inner = np.unique(np.concatenate([[0.0, 1.0], np.ravel(jumps)]))
    inner = inner[(inner >= 0) & (inner <= 1)]
    return np.concatenate([inner[:-1][np.diff(inner) > 1e-13], [1.0]])


def _product(axes):
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def _jumps(name, w):
    """For each uniform number the places in [0, 1] at which the scheme can jump."""
    n = len(w)
    sums, expected = np.cumsum(w), n * w
    rest = expected - np.floor(expected + 1e-12)
    drawn = np.cumsum(rest) / max(rest.sum(), 1e-300)
    return {
        "systematic": [n * sums % 1],
        "stratified": [n * sums % 1] * n,
        "multinomial": [sums] * n,
        "residual": [drawn] * n,
        "killing": [*(w / w.max())[:, None], *[sums] * n],
        "ssp": _games(rest),
    }[name]


def _jumps_conditional(name, w):
    n = len(w)
    turns = [np.roll(w, -b) for b in range(n)]
    before = np.array(
        [w[b:].sum() if b else 0.0 for b in range(n)]
    )  # of particle 0, from each begin
    expected = n * w
    copies = np.floor(expected + 1e-12)
    share = copies[0] / expected[0]
    parts = np.array([i / m for m in range(1, n + 1) for i in range(1, m)])
    whole = np.arange(n + 1) / expected[0]
    begins = np.arange(n) / n
    if name == "systematic":
        return [(n * np.cumsum(w)[:, None] - np.arange(n + 1)) / expected[0]]
    if name == "stratified":
        points = np.concatenate([n * np.cumsum(x) % 1 for x in turns])
        places = (np.arange(n + 1) - n * before[:, None]) / expected[0]
        return [*[points] * n, begins, places]
    if name == "multinomial":
        return _jumps(name, w)[1:]
    if name == "residual":
        return [*_jumps(name, w), np.concatenate([whole, [share], share + (1 - share) * parts])]
    if name == "killing":
        slots = 1 - w / w.max()
        slots[0] = n - slots[1:].sum()
        return [*_jumps(name, w), np.cumsum(slots) / n]
    games = [_games(np.roll(expected - copies, -b), (-b) % n) for b in range(n)]
    return [*map(np.concatenate, zip(*games)), begins, whole]


def _games(rest, winner=None):
    """Probabilities with which a round of the sampling process can be won, whoever is in it."""
    left, rounds = {rest[0]}, []
    for q in rest[1:]:
        chances, after = set(), set()
        for p in left:
            total = p + q
            if total < 1:
                chances |= {p / total if total > 0 else 1.0}
            else:
                i_wins, j_wins = (1 - q) / (2 - total), (1 - p) / (2 - total)
                chances |= {i_wins}
                if winner is not None:
                    chances |= {i_wins / p, 1 - j_wins / q}
            after |= {total if total < 1 else total - 1}
        left = after
        rounds.append(np.array(sorted(chances)))
    return rounds


# Runs


RNG = np.random.default_rng(7)
INITIAL = np.array([0.3, 0.7])
TRANSITION = np.array([[0.8, 0.2], [0.35, 0.65]])
POTENTIALS = np.log(RNG.uniform(0.1, 1.0, (STEPS, STATES)))
PROPOSAL = np.array(
    [[0.6, 0.4], [0.45, 0.55]]
)  # not the transition, so that weights depend on pairs
START = np.array([0.5, 0.5])
AHEAD = np.log(RNG.uniform(0.3, 1.0, (STEPS, STATES)))


def chain(steps, look_ahead=False, model=(INITIAL, TRANSITION, POTENTIALS)):
    """The finite chain with a proposal of its own; what is random is given: states, and ancestors."""
    initial, transition, potentials = model
    log_initial, log_start = jnp.log(initial), jnp.log(START)
    log_transition, log_proposal = jnp.log(transition), jnp.log(PROPOSAL)

    return particle.Chain(
        {"potentials": jnp.asarray(potentials[:steps]), "ahead": jnp.asarray(AHEAD[:steps])},
        start=lambda random, count, moment: random,
        weigh_start=lambda x, moment: (log_initial - log_start + moment["potentials"])[x],
        propose=lambda random, previous, moment: random,
        weigh=lambda before, x, moment: (
            (log_transition - log_proposal)[before, x] + moment["potentials"][x]
        ),
        transition=lambda before, x, moment: log_transition[before, x],
        look_ahead=(lambda x, moment: moment["ahead"][x]) if look_ahead else None,
    )


class Given:
    """The scheme whose ancestors are its random input."""

    def __call__(self, random, log_weights):
        return random

    def conditional(self, random, log_weights):
        return random


def given(steps, count, threshold=1.0, look_ahead=False, ancestor=False):
    """``(states, ancestors, path, chosen) -> Run`` with its history, for many at once.

    Without ``path`` (None) the filter, with one the conditional filter; ``chosen``: its ancestors.
    """

    def one(states, ancestors, path, chosen):
        resample = (ancestors, chosen) if ancestor else ancestors
        return particle.run(
            chain(steps, look_ahead),
            particle.Random(states, resample),
            count,
            resample=Given(),
            threshold=threshold,
            path=path,
            ancestor=(lambda random, before, state, moment: random) if ancestor else None,
            observer=particle.history,
        )

    return jax.jit(jax.vmap(one))
