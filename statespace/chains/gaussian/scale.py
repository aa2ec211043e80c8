"""A chain whose covariances share an unknown factor: what the data say of it.

With all covariances multiplied by ``s`` the gains stay what they are, and the log likelihood is
``free - entries log(s) / 2 - square / (2 s)``: all that the data say of ``s`` is in two numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from statespace.chains.gaussian import diffuse
from statespace.chains.gaussian.evidence import evidence
from statespace.chains.gaussian.forward import forward
from statespace.chains.gaussian.likelihood import log_likelihood
from statespace.chains.gaussian.types import Chain, Form, length


class Terms(NamedTuple):
    """Of a whole chain, or with a leading axis of the moments that each adds its share.

    Attributes:
        free: the log likelihood at ``s = 1`` but for ``square``.
        square: squared errors of the predictions, each in units of its variance.
        entries: observed numbers, less the flat directions that they are spent on.
    """

    free: Float[Array, "*T"]
    square: Float[Array, "*T"]
    entries: Float[Array, "*T"]


class InverseGamma(NamedTuple):
    """``s ~ InverseGamma(shape, rate)``, density proportional to ``s^(-shape - 1) exp(-rate / s)``."""

    shape: Float[Array, "*T"]
    rate: Float[Array, "*T"]

    def after(self, terms: Terms) -> InverseGamma:
        """The law given the data that the terms are of."""
        return InverseGamma(self.shape + 0.5 * terms.entries, self.rate + 0.5 * terms.square)


def log_evidence(before: InverseGamma, terms: Terms) -> Float[Array, "*T"]:
    """``log int p(y | s) p(s) ds``: a multivariate Student t density of the observations."""
    after = before.after(terms)
    normaliser = lambda law: gammaln(law.shape) - law.shape * jnp.log(law.rate)
    return terms.free + normaliser(after) - normaliser(before)


def total(chain: Chain, form: Form = "covariance", parallel: bool = False) -> Terms:
    """The terms of a whole chain of observations, differentiable as its log likelihood is."""
    free, square = _total(chain, form, parallel)
    q = 0 if chain.initial.diffuse is None else chain.initial.diffuse.shape[1]
    return Terms(free, square, jnp.sum(_observed(chain)) - q)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _total(chain: Chain, form: Form, parallel: bool) -> tuple[Array, Array]:
    constant, gram = evidence(chain, form, parallel)
    free = constant + diffuse.integrate(_without_means(gram)).log_evidence
    return free, 2 * (free - constant - diffuse.integrate(gram).log_evidence)


@_total.defjvp
def _total_jvp(form: Form, parallel: bool, primals: tuple, tangents: tuple) -> tuple:
    """By the score of the likelihood, which inverts no noise covariance."""
    run = lambda chain: log_likelihood(chain, form, parallel)
    _, slope = jax.jvp(run, primals, tangents)
    _, slope_free = jax.jvp(lambda chain: run(_centred(chain)), primals, tangents)
    return _total(*primals, form, parallel), (slope_free, 2 * (slope_free - slope))


def each(chain: Chain, form: Form = "covariance", parallel: bool = False) -> Terms:
    """What each moment adds to the terms, given the observations before it."""
    run = forward(chain, form, parallel)
    observed = _observed(chain)
    if run.gram.shape[1] == 1:
        return Terms(run.constant, run.gram[:, 0, 0], observed)
    q = run.gram.shape[1] - 1
    law = diffuse.running(run.gram)
    free = diffuse.running(_without_means(run.gram)).log_evidence
    known = q - jnp.trace(law.flat, axis1=1, axis2=2)
    added = lambda x: jnp.diff(x, prepend=jnp.zeros(1, x.dtype))
    return Terms(
        run.constant + added(free), added(2 * (free - law.log_evidence)), observed - added(known)
    )


def _without_means(gram: Float[Array, "*T c c"]) -> Float[Array, "*T c c"]:
    """What it would be if every observation were where it is predicted."""
    return gram.at[..., 0, :].set(0).at[..., :, 0].set(0)


def _centred(chain: Chain) -> Chain:
    """The chain with all means zero, and the observations too."""
    zero = jnp.zeros_like
    p: Any = chain.potentials
    return chain._replace(
        initial=chain.initial._replace(mean=zero(chain.initial.mean)),
        transitions=chain.transitions._replace(offset=zero(chain.transitions.offset)),
        potentials=p._replace(offset=zero(p.offset), value=zero(p.value)),
    )


def _observed(chain: Chain) -> Float[Array, " T"]:
    """How many numbers were observed at each moment."""
    p: Any = chain.potentials
    dtype = p.value.dtype
    if p.mask is None:
        return jnp.full(length(chain), p.value.shape[1], dtype)
    return jnp.sum(p.mask, axis=1, dtype=dtype)
