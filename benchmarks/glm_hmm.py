"""EM of a GLM-HMM: 3 states, Bernoulli choices on 4 inputs.

* iteration: one iteration, of a compiled step or of a fit of many.
* second fit: a whole call of `fit` with 20 iterations by a user who has called it before.

dynamax raises the weights by 50 steps of Adam in each M-step, statespace to the maximum by a few of Newton's
method. So their paths differ, and with them the log likelihoods after 20 iterations (the difference that the
second fit shows; ours is the higher one).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statespace as ss
from benchmarks.harness import Call, Options, Suite

STATES, INPUTS = 3, 4
LENGTHS = (1_000, 10_000)
FIT = 20

suite = Suite("glm_hmm", ops=("iteration", "second fit"))


class Problem:
    """Choices of a subject that weighs a constant and three inputs by its state."""

    def __init__(self, length: int):
        self.length = length
        r = np.random.default_rng(0)
        moves, to = r.uniform(size=length) < 0.05, r.integers(0, STATES, length)
        z = np.zeros(length, int)
        for t in range(1, length):
            z[t] = to[t] if moves[t] else z[t - 1]
        self.u = np.c_[np.ones(length), r.normal(size=(length, INPUTS - 1))]
        weights = 2 * r.normal(size=(STATES, INPUTS))
        odds = np.sum(self.u * weights[z], axis=1)
        self.y = (r.uniform(size=length) < 1 / (1 + np.exp(-odds))).astype(float)

    label = cached_property(lambda self: f"K=3 d=4 T={self.length}")
    facts = cached_property(
        lambda self: {"K": STATES, "d": INPUTS, "T": self.length, "dtype": "float64"}
    )


def run(options: Options) -> None:
    lengths = options.lengths or (LENGTHS[:1] if options.quick else LENGTHS)
    suite.run((Problem(t) for t in lengths), options)


@suite.column("statespace", kind="ours", fused=True)
def statespace(problem: Problem, op: str) -> Call:
    # the first input is the constant, so the bias is held at zero, as dynamax's model has none
    model = ss.freeze(ss.GLMHMM(STATES, inputs=INPUTS), "emission.bias")
    series = ss.Series(problem.y, inputs=problem.u)
    learner = ss.EM(iterations=FIT, tolerance=0.0, progress=False)

    def run() -> float:
        fitted = ss.fit(model, series, learner=learner)
        if fitted.iterations != FIT:
            raise RuntimeError(f"stopped after {fitted.iterations} iterations: {fitted.reason}")
        return float(fitted.trace[FIT - 1])

    return Call(run, float) if op == "second fit" else Call(run, per=FIT)


@suite.column("dynamax", needs="dynamax")
def dynamax(problem: Problem, op: str) -> Call:
    from dynamax.hidden_markov_model import LogisticRegressionHMM

    model = LogisticRegressionHMM(STATES, INPUTS)
    params, properties = model.initialize(jax.random.key(0))
    y, u = jnp.asarray(problem.y), jnp.asarray(problem.u)
    if op == "second fit":

        def fit() -> Any:
            return model.fit_em(params, properties, y, u, num_iters=FIT, verbose=False)[1]

        return Call(fit, lambda values: values[-1])
    memory = model.initialize_m_step_state(params, properties)

    @jax.jit
    def step(params: Any, memory: Any) -> tuple:
        e_step = jax.vmap(lambda y, u: model.e_step(params, y, u))
        statistics, value = e_step(y[None], u[None])
        return *model.m_step(params, properties, statistics, memory), value.sum()

    return Call(lambda: step(params, memory))
