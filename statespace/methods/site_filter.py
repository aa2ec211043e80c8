"""Assumed-density filtering: sites one moment after another, each from the past and its own observation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.chains import gaussian
from statespace.chains.gaussian.algebra import matmul_t
from statespace.chains.gaussian.covariances import predict
from statespace.chains.gaussian.step import absorb_site, move
from statespace.densities import mean_and_variance
from statespace.linearisation import Affine, GaussHermite, Linearisation, moments_of
from statespace.methods.linearised import make_affine
from statespace.methods.site_problem import (
    Iterate,
    Settings,
    SiteConvergence,
    SiteProblem,
    differentiable,
    solve,
)
from statespace.methods.sites import Site, SiteRule, default_points, view_of
from statespace.model import Step

_HERMITE = 20  # points for the moments of a channel


class Updated(NamedTuple):
    """A predicted state after its observation."""

    mean: Float[Array, " n"]
    spread: Float[Array, "n n"]
    site: Site
    log_density: Float[Array, ""]
    convergence: SiteConvergence


class SiteRun(NamedTuple):
    """What the filter leaves, stacked over the moments."""

    site: Site
    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    predicted: Float[Array, "T n"]
    predicted_spread: Float[Array, "T n n"]
    moves: Affine
    log_density: Float[Array, " T"]
    convergence: SiteConvergence


def update(
    rule: SiteRule,
    settings: Settings,
    observation: Any,
    step: Step,
    y: Float[Array, " m"],
    mean: Float[Array, " n"],
    spread: Float[Array, "n n"],
    form: gaussian.Form,
) -> Updated:
    """A state, known by a normal law, after one observation.

    The site is the rule's fixed point with that law as the prior; the iteration begins at the mode.
    """
    stack = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)
    view = view_of(observation, step, len(mean), mean.dtype)
    newton = SiteRule(at_mean=True)
    problem = SiteProblem(
        rule=newton,
        observation=observation,
        steps=stack(step),
        y=y[None],
        view=stack(view),
        initial=gaussian.Initial(mean, spread),
        moves=lambda _: None,  # there are none within a moment
        linear=True,
        form=form,
    )
    found, report, share = solve(
        problem, Iterate(problem.nothing(), None), settings._replace(damping=None)
    )
    if rule is not newton and not rule.at_mean:
        problem = problem._replace(rule=rule)
        found, report, share = solve(problem, found, settings)
    found = differentiable(problem, found, share)
    site = jax.tree.map(lambda x: x[0], found.site)
    precision, shift, constant = view.potential(site)
    columns, filtered, log_scale, gram = absorb_site(mean[:, None], spread, precision, shift, form)
    surplus = problem.surplus(found, problem.states(found))[0]
    log_density = log_scale - 0.5 * gram[0, 0] + constant + surplus
    return Updated(columns[:, 0], filtered, site, log_density, report)


def run(
    model: Any,
    rule: SiteRule,
    settings: Settings,
    linearisation: Linearisation,
    initial: gaussian.Initial,
    steps: Step,
    y: Float[Array, "T m"],
    form: gaussian.Form,
) -> SiteRun:
    """The filter over a recording. Transitions that are not affine are made so round the filtered state."""
    dtype = initial.mean.dtype

    def moment(carry: tuple[Array, Array], row: tuple) -> tuple[tuple[Array, Array], SiteRun]:
        mean, spread = carry
        step, following, y = row
        new = update(rule, settings, model.observation, step, y, mean, spread, form)
        moves = make_affine(
            model.transition, following, linearisation, new.mean, new.spread, form, "transition"
        )
        moves = Affine(*(a.astype(dtype) for a in moves))
        covariance = new.spread if form == "covariance" else matmul_t(new.spread, new.spread)
        ahead = move(new.mean[:, None], moves.matrix, moves.offset)[:, 0]
        out = SiteRun(
            site=new.site,
            mean=new.mean,
            covariance=covariance,
            predicted=mean,
            predicted_spread=spread,
            moves=moves,
            log_density=new.log_density,
            convergence=new.convergence,
        )
        return (ahead, predict(new.spread, moves.matrix, moves.noise, form)), out

    following = jax.tree.map(lambda x: jnp.concatenate([x[1:], x[-1:]]), steps)
    return jax.lax.scan(moment, (initial.mean, initial.noise), (steps, following, y))[1]


def together(each: SiteConvergence) -> SiteConvergence:
    """One report of the reports of all moments: the worst of them."""
    return SiteConvergence(
        iterations=jnp.max(each.iterations),
        change=jnp.max(each.change),
        converged=jnp.all(each.converged),
        cost=jnp.sum(each.cost),
        oscillates=jnp.any(each.oscillates),
        guarded=jnp.sum(each.guarded),
    )


def observation_moments(
    observation: Any,
    step: Step,
    mean: Float[Array, " n"],
    spread: Float[Array, "n n"],
    form: gaussian.Form,
) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Mean and covariance of an observation, from the normal law of the state.

    Channels of linear predictors take one-dimensional Gauss–Hermite rules, and Mehler's expansion for their
    covariances, ``Cov[f(z_i), g(z_j)] = sum_k corr_ij^k f_k g_k`` with Hermite coefficients; any other
    observation takes points in the state.

    Raises:
        TypeError: if the distribution has no covariance that is known here.
    """
    covariance = spread if form == "covariance" else matmul_t(spread, spread)
    if not hasattr(observation, "predictor"):
        moments = moments_of(observation, step, form, "observation")
        seen = default_points(len(mean))(moments, mean, spread, form)
        noise = seen.noise if form == "covariance" else matmul_t(seen.noise, seen.noise)
        return seen.matrix @ mean + seen.offset, seen.matrix @ covariance @ seen.matrix.T + noise
    dtype = mean.dtype
    matrix, offset = (x.astype(dtype) for x in observation.predictor(step))
    s = matrix @ covariance @ matrix.T
    sd = jnp.sqrt(jnp.maximum(jnp.diagonal(s), 0))
    z, w = (x.astype(dtype) for x in map(jnp.asarray, _hermite()[:2]))
    eta = matrix @ mean + offset + z[:, None] * sd

    def one(eta: Array) -> tuple[Array, Array]:
        mean, variance = mean_and_variance(observation.law_of(eta, step))
        return jnp.ravel(mean), jnp.ravel(variance)

    means, variances = jax.vmap(one)(eta)
    centre = w @ means
    own = w @ variances + w @ (means - centre) ** 2
    coefficients = jnp.asarray(_hermite()[2], dtype) @ (w[:, None] * (means - centre))  # (K, m)
    scale = jnp.where(sd > 0, sd, 1)
    correlation = jnp.clip(s / (scale[:, None] * scale[None, :]), -1, 1)
    # a channel may have several entries, as both bounds of a value, which are then the same number
    channel = np.repeat(np.arange(len(sd)), len(centre) // len(sd))
    correlation = correlation[channel][:, channel]
    powers = jnp.cumprod(
        jnp.broadcast_to(correlation, (len(coefficients), *correlation.shape)), axis=0
    )
    shared = jnp.einsum("kij,ki,kj->ij", powers, coefficients, coefficients)
    return centre, jnp.where(channel[:, None] == channel, own, shared)


def _hermite() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, weights, and the normalised Hermite polynomials 1 to K at the points, ``(K, p)``."""
    points, weights = GaussHermite(_HERMITE).points(1)[:2]
    z = points[:, 0]
    rows = [np.ones_like(z), z]
    for k in range(2, _HERMITE):
        rows.append((z * rows[-1] - np.sqrt(k - 1) * rows[-2]) / np.sqrt(k))
    return z, weights, np.array(rows[1:])
