"""What an observation says of the state when it is the posterior that was learned: ``p(x | y)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.conditionals.affine import Gaussian

RULES = ("clip", "fallback", "shrink", "robust")
_PROBED = 8  # observations at which the covariances of a regression are looked at before tracing
_AT_ONCE = 4096  # observations whose regression is evaluated side by side

Regression = Callable[[Any], Any]
"""``y (m,) -> (mean (n,), covariance (n, n))`` of the state given one observation."""


class Discriminative(eqx.Module):
    """``x | y ~ N(f(y), Q(y))``, learned by regression of states on observations.

    It stands where ``p(y | x)`` stands in other models, and says as much of the state: by Bayes' rule
    ``p(y | x) / p(y) = N(x; f, Q) / N(x; m, S)`` with the law ``N(m, S)`` of the states from which f and Q
    were learned. There is no law of ``y``, so such a model cannot be simulated and predicts states only.

    The quotient is a Gaussian potential if ``Q <= S`` in every direction. Estimates need not obey, and
    ``rule`` says what then happens to a moment at which they do not (with D the eigenvalues of Q relative
    to S):

    * "clip": directions with D > 1 are given D = 1, where the observation says nothing.
    * "fallback": the moment is treated as by "robust", in all directions.
    * "shrink": Q is replaced by ``(Q^-1 + S^-1)^-1``.
    * "robust": the quotient's denominator is left out, at every moment: f is an observation of the state
      with noise of covariance Q.

    Source: Burkhart, Brandman, Franco, Hochberg & Harrison (2020), The discriminative Kalman filter for
    Bayesian filtering with nonlinear and nongaussian observation models, Neural Computation 32(5).

    Args:
        regression: a function of one observation ``(m,)`` that gives f ``(n,)`` and Q ``(n, n)``; see
            :mod:`statespace.decoding` for those that are learned there. No learner moves it: the likelihood
            here is relative to p(y), which says nothing of how well f and Q fit.
        marginal: the law of the states under which the regression was learned: a ``Gaussian``, or its mean
            ``(n,)`` and covariance ``(n, n)``. None if it is not known, which leaves the rule "robust".
        rule: one of the above. Default: "clip" with a marginal, "robust" without.

    Raises:
        TypeError: if ``regression`` is no function.
        ValueError: if there is no such rule, the rule needs a marginal, or S is not positive definite.
    """

    regression: Any = eqx.field(metadata={"constant": True})
    marginal: Gaussian | None = eqx.field(metadata={"constant": True})
    rule: str = eqx.field(static=True)

    def __init__(self, regression: Any, marginal: Any = None, rule: str | None = None):
        if _unfitted(regression):
            raise TypeError(
                f"`regression` of Discriminative is a {type(regression).__name__} that is not fitted: fit it "
                "first, and wrap it: `decoding.Moments(regressor, covariance)`; or use `learn_decoder`, "
                "which does both."
            )
        if not callable(regression):
            wrap = "; wrap it: `decoding.Moments(regressor, covariance)`"
            raise TypeError(
                "`regression` of Discriminative must be a function of one observation that gives the mean "
                f"and the covariance of the state, got {type(regression).__name__}"
                f"{wrap if hasattr(regression, 'predict') else ''}."
            )
        if rule is None:
            rule = "robust" if marginal is None else "clip"
        if rule not in RULES:
            raise ValueError(
                f"`rule` of Discriminative must be one of {', '.join(RULES)}, got {rule!r}."
            )
        if marginal is None and rule != "robust":
            raise ValueError(
                f'`rule` "{rule}" of Discriminative compares Q with the covariance of the `marginal`, which '
                "was not given: give the mean and covariance of the states that the regression was learned "
                'from, or use rule="robust".'
            )
        self.regression = regression
        self.marginal = None if marginal is None else _law(marginal)
        self.rule = rule

    def __call__(self, state: Any, step: Any) -> NoReturn:
        """Refuse: there is no law of the observation.

        Raises:
            TypeError: always; it names the method that fits.
        """
        raise TypeError(
            "`observation` of the model is Discriminative: it knows p(x | y) and has no p(y | x) to evaluate "
            "or draw from. The methods that fit are DiscriminativeKalman() and particles, such as "
            "BackwardSampling(), for `filter`, `smooth`, `log_likelihood`, `sample_states` and `online`; "
            "such a model cannot be simulated, and predicts no observations."
        )

    def check(self, y: np.ndarray) -> None:
        """Refuse observations that the regression cannot use, before anything is traced.

        Args:
            y: shape ``(T, m)``.

        Raises:
            ValueError: if a moment is missing in part, or a covariance is not positive definite.
        """
        missing = np.isnan(y)
        partly = missing.any(axis=1) & ~missing.all(axis=1)
        if partly.any():
            raise ValueError(
                f"the moment in row {np.flatnonzero(partly)[0]} is missing in part, and a regression has no "
                "marginals: set the whole row to NaN, or fill in the missing channels."
            )
        seen = np.flatnonzero(~missing.any(axis=1))
        if not len(seen) or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(self)):
            return
        rows = seen[np.unique(np.linspace(0, len(seen) - 1, _PROBED).astype(int))]
        for row, covariance in zip(rows, np.asarray(self.moments(jnp.asarray(y[rows]))[1])):
            if not (np.isfinite(covariance).all() and np.linalg.eigvalsh(covariance)[0] > 0):
                raise ValueError(
                    f"`regression` of Discriminative gives at row {row} of the data a covariance that is not "
                    f"positive definite: {covariance.tolist()}."
                )

    def moments(self, y: Float[Array, "T m"]) -> tuple[Float[Array, "T n"], Float[Array, "T n n"]]:
        """The mean f and the covariance Q of each of several complete observations."""
        if len(y) == 1:  # a decoder's: nothing to lay out side by side
            mean, covariance = self.regression(y[0])
            return mean[None], covariance[None]
        if len(y) <= _AT_ONCE:
            return jax.vmap(self.regression)(y)
        return jax.lax.map(self.regression, y, batch_size=_AT_ONCE)


def _unfitted(regressor: Any) -> bool:
    """Whether a regressor of scikit-learn's kind, where what is found is named ``coef_``, is not fitted."""
    if not (hasattr(regressor, "get_params") and hasattr(regressor, "predict")):
        return False
    return not any(name.endswith("_") and not name.startswith("__") for name in vars(regressor))


def _law(marginal: Any) -> Gaussian:
    """The marginal as a Gaussian with its covariance written out, if that is positive definite."""
    if not isinstance(marginal, Gaussian):
        mean, covariance = marginal
        marginal = Gaussian(mean, covariance=covariance)
    if marginal.diffuse is not None:
        raise ValueError(
            "`marginal` of Discriminative is diffuse in some directions: it is the law of the states from "
            'which the regression was learned; where there is none use rule="robust" without a marginal.'
        )
    if marginal.covariance is None:
        scale = marginal.scale
        factor = scale[:, None] * np.eye(len(scale)) if scale.ndim == 1 else scale
        marginal = Gaussian(marginal.mean, covariance=factor @ factor.T)
    covariance = marginal.covariance
    if not isinstance(covariance, jax.core.Tracer):
        smallest, largest = np.linalg.eigvalsh(np.asarray(covariance))[[0, -1]]
        if not smallest > len(covariance) * float(jnp.finfo(covariance.dtype).eps) * largest:
            raise ValueError(
                "`marginal` of Discriminative must have a positive definite covariance, but its eigenvalues "
                f"go from {smallest:.3g} to {largest:.3g}: leave out coordinates of the state that never "
                'vary, or use rule="robust" without a marginal.'
            )
    return marginal
