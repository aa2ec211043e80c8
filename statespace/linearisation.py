"""Linearisation: affine Gaussian stand-ins for conditionals, round a Gaussian law of their argument.

A conditional ``p(y | x)`` has a mean ``f(x)`` and a noise covariance ``R(x)``. Round ``x ~ N(m, P)`` a rule
gives ``y = F x + b + noise``, the noise of which covers both ``R`` and what the affine map leaves out.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace import angles
from statespace.chains.gaussian import Form
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import root
from statespace.conditionals.affine import psd_factor
from statespace.densities import law_at, mean_and_variance, of_one_event
from statespace.dependence import dependence

_FEW = 2048  # products up to which a sum over points is written out


class Affine(NamedTuple):
    """``y = F x + b + noise``.

    Attributes:
        matrix: ``F``, shape ``(m, n)``.
        offset: ``b``, shape ``(m,)``.
        noise: covariance ``(m, m)``, or a factor ``(m, k)`` of it where the recursion is on factors.
    """

    matrix: Float[Array, "m n"]
    offset: Float[Array, " m"]
    noise: Float[Array, "m k"]


class Joint(NamedTuple):
    """What belongs to ``y`` in the joint law of ``y`` and the state ``x ~ N(m, P)``.

    Attributes:
        mean: of ``y``, shape ``(m,)``.
        cross: ``Cov(y, x)``, shape ``(m, n)``; in the "sqrt" form ``Cov(y, z)`` with ``x = m + U z``.
        own: ``Cov(y)``, shape ``(m, m)``; in the "sqrt" form columns ``(m, k)`` that make
            ``[cross, own]`` a factor of it.
    """

    mean: Float[Array, " m"]
    cross: Float[Array, "m n"]
    own: Float[Array, "m k"]


Moments = Callable[[Array], tuple[Array, Array]]
"""``x -> (mean (m,), noise (m, k))`` of a conditional; the noise a covariance, or a factor of it."""


class Linearisation(eqx.Module):
    """A rule that makes an affine Gaussian conditional of any other, round a Gaussian law."""

    @abstractmethod
    def __call__(
        self,
        moments: Moments,
        mean: Float[Array, " n"],
        spread: Float[Array, "n n"],
        form: Form = "covariance",
    ) -> Affine:
        """The affine stand-in.

        Args:
            moments: of the conditional, at one state.
            mean: of the state, shape ``(n,)``.
            spread: its covariance, or in the "sqrt" form a lower triangular factor of it.
            form: which of the two, for the state as for the noises.
        """

    def joint(
        self,
        moments: Moments,
        mean: Float[Array, " n"],
        spread: Float[Array, "n n"],
        form: Form = "covariance",
    ) -> Joint:
        """The joint moments that the affine stand-in has with the state, which is all that a filter needs.

        Args:
            moments: of the conditional, at one state.
            mean: of the state, shape ``(n,)``.
            spread: its covariance, or in the "sqrt" form a lower triangular factor of it.
            form: which of the two, for the state as for the result.
        """
        matrix, offset, noise = self(moments, mean, spread, form)
        return propagated(
            la.matmul(matrix, mean[:, None])[:, 0] + offset, matrix, noise, spread, form
        )


class Taylor(Linearisation):
    """Taylor's expansion at the mean (Jazwinski 1970, chapter 9).

    Args:
        order: 1 keeps the slope; 2 adds what the curvature does to the mean and to the variance.

    Raises:
        ValueError: if ``order`` is neither.
    """

    order: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"`order` of Taylor must be 1 or 2, got {self.order}.")

    def __call__(
        self, moments: Moments, mean: Array, spread: Array, form: Form = "covariance"
    ) -> Affine:
        """The expansion at the mean; ``spread`` matters to the second order only."""
        value, matrix, noise = self._expanded(moments, mean, spread, form)
        return Affine(matrix, value - matrix @ mean, noise)

    def joint(
        self, moments: Moments, mean: Array, spread: Array, form: Form = "covariance"
    ) -> Joint:
        """The joint moments under the expansion at the mean."""
        return propagated(*self._expanded(moments, mean, spread, form), spread, form)

    def _expanded(
        self, moments: Moments, mean: Array, spread: Array, form: Form
    ) -> tuple[Array, Array, Array]:
        """Value, slope and noise at the mean."""
        value, noise = moments(mean)
        function = lambda x: moments(x)[0]
        matrix = jax.jacfwd(function)(mean)
        if self.order == 2:
            curvature = jax.jacfwd(jax.jacfwd(function))(mean)
            u = spread if form == "sqrt" else lower_factor(spread)
            bent = jnp.einsum("ki,mkl,lj->mij", u, curvature, u)  # in standard coordinates
            value = value + 0.5 * jnp.trace(bent, axis1=1, axis2=2)
            rows = bent.reshape(len(value), -1) / np.sqrt(2)
            noise = _together(noise, rows, form)
        return value, matrix, noise


class _Transformed(NamedTuple):
    """A rule's points and what a conditional makes of them.

    Attributes:
        root: factor ``U`` of the state's covariance.
        standard: the points ``z`` in standard coordinates, where the state is ``m + U z``.
        weights: of covariances.
        mean: of the values.
        deviations: of the values from it.
        cross: ``Cov(y, z)``.
        noises: at each point; one for all where it does not depend on the state.
        shares: the weights of the noises.
    """

    root: Float[Array, "n n"]
    standard: Float[Array, "p n"]
    weights: Float[Array, " p"]
    mean: Float[Array, " m"]
    deviations: Float[Array, "p m"]
    cross: Float[Array, "m n"]
    noises: Float[Array, "q m k"]
    shares: Float[Array, " q"]


class SigmaPoints(Linearisation):
    """Statistical linear regression on a rule of points, which is exact for polynomials of some degree.

    The best affine map in the mean square under ``x ~ N(m, P)``, and the covariance of what it leaves out
    (Arasaratnam, Haykin & Elliott 2007; García-Fernández et al. 2015).
    """

    @abstractmethod
    def points(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points ``(p, n)`` for ``N(0, I)``, weights ``(p,)`` of means and of covariances."""

    def __call__(
        self, moments: Moments, mean: Array, spread: Array, form: Form = "covariance"
    ) -> Affine:
        """The regression on the rule's points, with what it leaves out as noise."""
        t = self._transformed(moments, mean, spread, form)
        matrix = _divide(t.cross, t.root)
        noise = self._left_out(t) if form == "sqrt" else _covariance(t, _unexplained(t))
        return Affine(matrix, t.mean - matrix @ mean, noise)

    def joint(
        self, moments: Moments, mean: Array, spread: Array, form: Form = "covariance"
    ) -> Joint:
        """The rule's joint moments, without a regression."""
        t = self._transformed(moments, mean, spread, form)
        if form == "sqrt":
            return Joint(t.mean, t.cross, self._left_out(t))
        return Joint(t.mean, la.matmul_t(t.cross, t.root), _covariance(t, t.deviations))

    def _transformed(
        self, moments: Moments, mean: Array, spread: Array, form: Form
    ) -> _Transformed:
        z, w, v = (jnp.asarray(a, mean.dtype) for a in self.points(len(mean)))
        root = spread if form == "sqrt" else lower_factor(spread)
        at = mean + la.matmul_t(z, root)
        values = jax.vmap(lambda x: moments(x)[0])(at)
        if _noise_varies(moments, mean):
            noises, shares = jax.vmap(lambda x: moments(x)[1])(at), w
        else:
            noises, shares = moments(mean)[1][None], jnp.ones(1, w.dtype)
        value = jnp.sum(w[:, None] * values, axis=0)
        deviations = values - value
        cross = _second_moment(w, deviations, z)
        return _Transformed(root, z, v, value, deviations, cross, noises, shares)

    def _left_out(self, t: _Transformed) -> Float[Array, "m k"]:
        """Columns of a factor of what the regression leaves out."""
        left = _unexplained(t)
        _, w, v = self.points(t.standard.shape[1])
        if (v >= 0).all() and (w >= 0).all():
            own = jnp.moveaxis(t.noises * jnp.sqrt(t.shares)[:, None, None], 0, 1)
            rest = left.T * jnp.sqrt(t.weights)
            return la.tria(jnp.concatenate([rest, own.reshape(len(rest), -1)], axis=1))
        # a difference of covariances has no factor but its own
        own = jnp.einsum("p,pik,pjk->ij", t.shares, t.noises, t.noises)
        return psd_factor(la.symmetric(_second_moment(t.weights, left, left)) + own)


class Cubature(SigmaPoints):
    """Spherical-radial cubature: 2n points of degree 3, or about 2n² of degree 5.

    Args:
        degree: 3 (Arasaratnam & Haykin 2009) or 5 (Jia, Xin & Cheng 2013), whose weights are negative in part
            for more than four states.

    Raises:
        ValueError: if ``degree`` is neither.
    """

    degree: int = eqx.field(static=True, default=3)

    def __check_init__(self) -> None:
        if self.degree not in (3, 5):
            raise ValueError(f"`degree` of Cubature must be 3 or 5, got {self.degree}.")

    def points(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """On the axes; of degree 5 also the centre, and between the axes."""
        axes = np.concatenate([np.eye(n), -np.eye(n)])
        if self.degree == 3:
            weights = np.full(2 * n, 0.5 / n)
            return np.sqrt(n) * axes, weights, weights
        pairs = [
            (a * np.eye(n)[i] + b * np.eye(n)[j]) / np.sqrt(2)
            for i, j in itertools.combinations(range(n), 2)
            for a, b in itertools.product((1, -1), repeat=2)
        ]
        outer = np.array(pairs).reshape(-1, n)
        points = np.sqrt(n + 2) * np.concatenate([np.zeros((1, n)), axes, outer])
        weights = np.concatenate(
            [
                [2 / (n + 2)],
                np.full(2 * n, (4 - n) / (2 * (n + 2) ** 2)),
                np.full(len(outer), 1 / (n + 2) ** 2),
            ]
        )
        return points, weights, weights


class Unscented(SigmaPoints):
    """The unscented transform: 2n + 1 points (Julier & Uhlmann 1997; Wan & van der Merwe 2000).

    Args:
        alpha: how far out the points lie.
        beta: knowledge of the fourth moment, which weighs the centre in covariances; 2 for Gaussian laws.
        kappa: a second say on the distance; ``alpha² (n + kappa)`` is its square.

    Raises:
        ValueError: if ``alpha`` is not positive.
    """

    alpha: float = eqx.field(static=True, default=1.0)
    beta: float = eqx.field(static=True, default=0.0)
    kappa: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"`alpha` of Unscented must be positive, got {self.alpha}.")

    def points(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The centre, and on the axes."""
        square = self.alpha**2 * (n + self.kappa)
        if not square > 0:
            raise ValueError(
                f"`kappa` of Unscented must be above -{n} for a state of {n} coordinates, got {self.kappa}."
            )
        points = np.sqrt(square) * np.concatenate([np.zeros((1, n)), np.eye(n), -np.eye(n)])
        weights = np.full(2 * n + 1, 0.5 / square)
        weights[0] = 1 - n / square
        covariance = weights.copy()
        covariance[0] += 1 - self.alpha**2 + self.beta
        return points, weights, covariance


class GaussHermite(SigmaPoints):
    """The product of one-dimensional Gauss–Hermite rules: ``order ** n`` points (Ito & Xiong 2000).

    Args:
        order: points in each dimension; exact up to degree ``2 order - 1``.

    Raises:
        ValueError: if ``order`` is below 2, or there would be more than 100,000 points.
    """

    order: int = eqx.field(static=True, default=3)

    def __check_init__(self) -> None:
        if self.order < 2:
            raise ValueError(f"`order` of GaussHermite must be at least 2, got {self.order}.")

    def points(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The product of the one-dimensional rules."""
        if self.order**n > 100_000:
            raise ValueError(
                f"GaussHermite(order={self.order}) has {self.order}^{n} points for a state of {n} "
                "coordinates: use Cubature() or Unscented(), whose number grows with n or n^2."
            )
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.order)
        weights = weights / weights.sum()
        points = np.array(list(itertools.product(nodes, repeat=n)))
        products = np.array(list(itertools.product(weights, repeat=n))).prod(axis=1)
        return points, products, products


_NAMES: dict[str, Callable[[], Linearisation]] = {
    "taylor": Taylor,
    "cubature": Cubature,
    "unscented": Unscented,
    "gauss-hermite": GaussHermite,
}


def rule_of(value: Any) -> Any:
    """The rule of a name; a rule, and what is none, stays what it is."""
    return _NAMES[value]() if isinstance(value, str) and value in _NAMES else value


def require_rule(name: str, owner: str, value: Any, kind: Any = Linearisation) -> None:
    """Refuse what is no rule.

    Args:
        name: of the setting.
        owner: whose setting it is.
        value: what came, of which names have been made rules.
        kind: of rule.

    Raises:
        ValueError: if it is another name.
        TypeError: if it is anything else.
    """
    if not isinstance(value, kind):
        names = ", ".join(f'"{n}"' for n, made in _NAMES.items() if isinstance(made(), kind))
        error = ValueError if isinstance(value, str) else TypeError
        raise error(
            f"`{name}` of {owner} must be a rule: {names}, or one of statespace.linearisation with settings "
            f"of its own, such as Cubature(degree=5); got {value!r}."
        )


def moments_of(conditional: Any, step: Any, form: Form, name: str) -> Moments:
    """Mean and noise of a conditional at a state.

    Args:
        conditional: ``(state, step) -> Distribution``.
        step: the moment.
        form: whether the noise is to be a covariance or a factor of it.
        name: of the conditional, for the error.

    Raises:
        TypeError: if the distribution that it gives has no covariance that is known here.
    """

    def moments(x: Array) -> tuple[Array, Array]:
        law = law_at(conditional, {"state": x, "step": step}, f"`{name}` of the model")
        return mean_and_noise(law, form, name)

    return moments


def mean_and_noise(law: Any, form: Form, name: str) -> tuple[Array, Array]:
    """Mean ``(m,)`` and noise ``(m, k)`` of a NumPyro distribution.

    Raises:
        TypeError: if its covariance is not known here.
    """
    import numpyro.distributions as dist

    base = of_one_event(law)
    if isinstance(base, dist.MultivariateNormal | dist.MultivariateStudentT):
        factor = base.scale_tril
        if isinstance(base, dist.MultivariateStudentT):
            factor = factor * jnp.sqrt(base.df / (base.df - 2))[..., None, None]
        mean = base.mean
        return mean, factor if form == "sqrt" else la.matmul_t(factor, factor)
    if base.event_shape != ():
        raise TypeError(
            f"`{name}` of the model gives {type(base).__name__}, whose covariance is not known here: "
            "linearisation needs independent channels, MultivariateNormal or MultivariateStudentT."
        )
    if angles.are_angles(base):
        mean, variance = law.mean, angles.variance(base.concentration)
    else:
        mean, variance = mean_and_variance(law)
    mean = jnp.atleast_1d(mean)
    variance = jnp.broadcast_to(jnp.atleast_1d(variance), mean.shape)
    return mean, jnp.diag(jnp.sqrt(variance) if form == "sqrt" else variance)


def lower_factor(covariance: Array) -> Array:
    """A lower triangular factor of a covariance that may be singular."""
    factor = root(covariance)
    return factor if len(factor) <= la.UNROLLED else la.tria(factor)


def propagated(
    value: Float[Array, " m"],
    matrix: Float[Array, "m n"],
    noise: Float[Array, "m k"],
    spread: Float[Array, "n n"],
    form: Form,
) -> Joint:
    """The joint moments of ``y = value + F (x - m) + noise`` with the state."""
    cross = la.matmul(matrix, spread)
    if form == "sqrt":
        return Joint(value, cross, noise)
    return Joint(value, cross, la.symmetric(la.matmul_t(cross, matrix)) + noise)


def _noise_varies(moments: Moments, x: Array) -> bool:
    """Whether the noise depends on the state; if not, one point tells it."""
    program: Any = jax.make_jaxpr(moments)(x)
    return dependence(program.jaxpr, [True])[1]


def _second_moment(
    w: Float[Array, " p"], a: Float[Array, "p m"], b: Float[Array, "p n"]
) -> Float[Array, "m n"]:
    """``sum_p w_p a_p b_p^T``; of few numbers without a `dot`, as in ``chains.gaussian.algebra``."""
    if a.shape[0] * a.shape[1] * b.shape[1] > _FEW:
        return (a * w[:, None]).T @ b
    return jnp.sum(w[:, None, None] * (a[:, :, None] * b[:, None, :]), axis=0)


def _unexplained(t: _Transformed) -> Float[Array, "p m"]:
    """What the regression leaves of the values at the points."""
    return t.deviations - la.matmul_t(t.standard, t.cross)


def _covariance(t: _Transformed, deviations: Float[Array, "p m"]) -> Float[Array, "m m"]:
    """That of the deviations together with the mean noise."""
    return la.symmetric(_second_moment(t.weights, deviations, deviations)) + jnp.sum(
        t.shares[:, None, None] * t.noises, axis=0
    )


def _divide(cross: Float[Array, "m n"], lower: Float[Array, "n n"]) -> Float[Array, "m n"]:
    """``C U^{-1}``; directions in which nothing varies get no slope."""
    n = len(lower)
    known = jnp.diagonal(lower) == 0
    lower = lower + jnp.eye(n, dtype=lower.dtype) * known
    return la.transpose(la.solve_lower_t(lower, jnp.where(known[:, None], 0, cross.T)))


def _together(noise: Array, rows: Array, form: Form) -> Array:
    """Noise plus independent noise with these factor columns."""
    if form == "covariance":
        return noise + la.matmul_t(rows, rows)
    return la.tria(jnp.concatenate([noise, rows], axis=1))
