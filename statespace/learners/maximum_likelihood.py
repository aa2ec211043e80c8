"""Maximum likelihood, and with priors maximum a posteriori, by gradients through the chain."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.learners.information import Bends, bends, uncertainty
from statespace.learners.likelihood import bare
from statespace.learners.priors import Priors, checked_priors, log_prior
from statespace.learners.problem import (
    Problem,
    check_start,
    curvature,
    density,
    moved,
    not_finite,
    vector,
)
from statespace.learners.progress import bar
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_counts
from statespace.methods.particle_gradients import differentiable
from statespace.optimisation import descent

_BLOCK = 20  # evaluations between two looks at the progress bar
_MANY = 200  # parameters above which the Hessian is computed only when asked for
_ROUNDS = 8


class MaximumLikelihood(eqx.Module):
    """Climb the log likelihood (plus log priors, if any) by L-BFGS in the unconstrained space.

    The search ends when the gain that is still to be expected falls below ``tolerance``. Its end is then
    looked at through the Hessian: a saddle, such as a scale that started next to zero where the
    likelihood is flat, is left along its direction of ascent, and a maximum is polished by Newton steps.

    Args:
        starts: how many starting points to climb from at once; the first is the model as given, the
            others are dispersed around it, and the best end is kept. More than one needs ``key`` in
            :func:`statespace.fit`.
        spread: standard deviation of the dispersion in the unconstrained space, where a scale is its
            logarithm; real parameters larger than one are dispersed in proportion to their size.
        max_steps: evaluations of the log likelihood and its gradient in one search.
        tolerance: log likelihood that is not worth going on for.
        standard_errors: whether to compute them, which takes a Hessian; None: for up to 200
            free parameters.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    With priors the result is the mode of the posterior density of the parameters on the scale on which the
    model states them (no Jacobian of the transformation enters).

    References:
        Nocedal & Wright (2006), Numerical Optimization, algorithm 7.5; Lewis & Overton (2013) for the line
        search.
    """

    starts: int = eqx.field(static=True, default=1)
    spread: float = eqx.field(static=True, default=1.0)
    max_steps: int = eqx.field(static=True, default=1000)
    tolerance: float = eqx.field(static=True, default=1e-8)
    standard_errors: bool | None = eqx.field(static=True, default=None)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_counts(self, starts=1, max_steps=1)
        for name in ("spread", "tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")

    def fit(
        self,
        model: Any,
        data: Any,
        *,
        priors: Priors | None = None,
        key: PRNGKeyArray | None = None,
        method: Any = None,
        start: FitResult | None = None,
    ) -> FitResult:
        """The parameters that make the data most likely; see :func:`statespace.fit`."""
        method = differentiable(method)
        problem = Problem(model, bare(data), checked_priors(model, priors), method)
        check_start(problem, "MaximumLikelihood")
        z = vector(problem)
        states, trace = self._search(problem, self._disperse(z, key))
        values = np.atleast_1d(np.asarray(states.value))
        if not np.isfinite(values).any():
            raise not_finite("MaximumLikelihood", density(problem, z))
        best = int(np.nanargmin(values))
        state = states
        if states.x.ndim == 2:
            state = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[best]), states)
        wanted = self.standard_errors
        if wanted is None:
            wanted = len(z) <= _MANY
        if wanted:
            state, shape, reason, more = self._finish(problem, state)
            trace += more
        else:
            shape, reason = None, self._verdict(state)
        problem = moved(problem, state.x)
        total = -float(state.value)
        prior = float(log_prior(problem.model, problem.priors)) if problem.priors else None
        kind = "maximum a posteriori" if problem.priors else "maximum likelihood"
        many = f", {self.starts} starts" if self.starts > 1 else ""
        return FitResult(
            model=problem.model,
            data=data,
            learner=f"{kind} (L-BFGS{many})",
            log_likelihood=total - (prior or 0.0),
            log_prior=prior,
            converged=reason == _DONE,
            reason=reason,
            iterations=int(state.iterations),
            trace=np.asarray(trace),
            uncertainty=None if shape is None else uncertainty(problem, np.asarray(state.x), shape),
            _problem=problem,
        ).warn_unless_converged()

    def _disperse(self, z: Float[Array, " p"], key: PRNGKeyArray | None) -> Array:
        if self.starts == 1:
            return z
        if key is None:
            raise ValueError(
                f"MaximumLikelihood(starts={self.starts}) disperses its starting points at random: "
                "give `fit` a `key`, such as `jax.random.key(0)`."
            )
        noise = jax.random.normal(key, (self.starts - 1, len(z)), z.dtype)
        others = z + self.spread * jnp.maximum(jnp.abs(z), 1.0) * noise
        return jnp.concatenate([z[None], others])

    def _search(self, problem: Problem, z: Array) -> tuple[descent.Descent, list[float]]:
        """Run the searches to their end, block by block if there is a bar to move."""
        block = self.max_steps if self.progress is False else _BLOCK
        tolerance = jnp.asarray(self.tolerance, z.dtype)
        begin = descent.start if z.ndim == 1 else jax.vmap(descent.start)
        state, trace = begin(z), []
        with bar(self.max_steps, "maximum likelihood", self.progress) as shown:
            for limit in range(block, self.max_steps + block, block):
                end = jnp.asarray(min(limit, self.max_steps))
                state = _go_on(problem, state, tolerance, end)
                trace.append(-float(np.min(np.asarray(state.value))))
                shown.set_postfix_str(f"log likelihood {trace[-1]:.3f}", refresh=False)
                shown.update(int(np.max(np.asarray(state.evaluations))) - shown.n)
                if not np.any(np.asarray(state.status) == descent.RUNNING):
                    break
        return state, trace

    def _finish(
        self, problem: Problem, state: descent.Descent
    ) -> tuple[descent.Descent, Bends, str, list[float]]:
        """Look at the end of a search through the Hessian: polish a maximum, leave a saddle."""
        eps = float(jnp.finfo(state.x.dtype).eps)
        trace: list[float] = []
        polished, before = False, None
        for _ in range(_ROUNDS):
            value, gradient, hessian = (np.asarray(a, float) for a in curvature(problem, state.x))
            noise = float(descent.rounding(jnp.asarray(value, state.x.dtype)))
            if before is not None and not value <= float(before[0].value) + noise:
                state, shape = before  # the Newton step overshot
                break
            small = max(self.tolerance, noise)
            shape = bends(hessian, float(value), eps)
            state = state._replace(value=jnp.asarray(value, state.x.dtype))
            if np.any((shape.values < 0) & ~shape.flat):
                point = self._leave(problem, state, gradient, shape, small)
                if point is None:
                    return state, shape, _SADDLE, trace
                state, more = self._search(problem, point)
                trace += more
                polished, before = False, None
                continue
            keep = ~shape.flat
            along = shape.vectors.T @ (shape.scale * gradient)
            gain = float(np.sum(along[keep] ** 2 / shape.values[keep]) / 2)
            polished = polished or gain <= small
            if gain <= max(1e-6 * small, noise):
                return state, shape, _DONE, trace
            move = -shape.scale * (shape.vectors[:, keep] @ (along[keep] / shape.values[keep]))
            before = state, shape
            state = state._replace(x=state.x + jnp.asarray(move, state.x.dtype))
            trace.append(-float(value))
        return state, shape, _DONE if polished else self._verdict(state), trace

    def _leave(
        self,
        problem: Problem,
        state: descent.Descent,
        gradient: np.ndarray,
        shape: Bends,
        small: float,
    ) -> Array | None:
        """A better point along the most negative curvature, or None if there is none."""
        direction = shape.scale * shape.vectors[:, 0]
        direction *= -np.copysign(1.0, direction @ gradient) / np.linalg.norm(direction)
        steps = [sign * size for size in (0.25, 1.0, 2.0, 4.0, 8.0, 16.0) for sign in (1.0, -1.0)]
        points = [state.x + jnp.asarray(step * direction, state.x.dtype) for step in steps]
        values = np.asarray([-float(density(problem, x)) for x in points])
        values = np.where(np.isfinite(values), values, np.inf)
        best = int(np.argmin(values))
        return points[best] if values[best] < float(state.value) - small else None

    def _verdict(self, state: descent.Descent) -> str:
        if int(state.status) == descent.CONVERGED:
            return _DONE
        if int(state.status) == descent.STALLED:
            return (
                "the line search found no better point although the gradient is not small; the log "
                "likelihood may have a kink, or float32 may not resolve it"
            )
        return f"{self.max_steps} evaluations were not enough; raise `max_steps`"


_DONE = "no further gain to be expected"
_SADDLE = "the end point is a saddle of the log likelihood; try several starts"


@eqx.filter_jit
def _go_on(
    problem: Problem, state: descent.Descent, tolerance: Array, limit: Array
) -> descent.Descent:
    step = lambda s: descent.advance(problem.loss, s, tolerance, limit)
    return step(state) if state.x.ndim == 1 else jax.vmap(step)(state)
