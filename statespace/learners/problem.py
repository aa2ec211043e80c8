"""The learning problem: a log density over one unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from statespace.learners.likelihood import log_likelihood
from statespace.learners.priors import log_prior
from statespace.parameters import parameters, replace, supports

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class Problem(eqx.Module):
    """What is to be learned from what.

    All of it is one pytree, so that a function compiled for one problem serves every other one of the
    same structure and shapes.

    Args:
        model: its free parameters are what is learned, the others stay at their values.
        data: a Series or Panel without labels.
        priors: by parameter name; a parameter with a prior moves inside the prior's support.
        method: how the log likelihood is computed.
    """

    model: Any
    data: Any
    priors: dict[str, Distribution]
    method: Any

    @property
    def names(self) -> list[str]:
        """Names of the free parameters, in the order of the model's fields."""
        return list(parameters(self.model, frozen=False))

    def supports(self) -> dict[str, Any]:
        """Where each free parameter may move: in its own support, or in that of its prior inside it."""
        from statespace.constraints.sparse_simplex import SparseSimplex

        known = supports(self.model)
        own = lambda n: n not in self.priors or isinstance(known[n], SparseSimplex)
        return {n: known[n] if own(n) else self.priors[n].support for n in self.names}

    def bijections(self) -> dict[str, Any]:
        """From the unconstrained space to the support of each free parameter."""
        from numpyro.distributions import biject_to

        return {name: biject_to(support) for name, support in self.supports().items()}

    def free(self) -> dict[str, Array]:
        """The free parameters in the unconstrained space, by name."""
        values = parameters(self.model)
        return {name: b.inv(values[name]) for name, b in self.bijections().items()}

    def vector(self) -> Float[Array, " p"]:
        """The free parameters as one unconstrained vector."""
        return ravel_pytree(list(self.free().values()))[0]

    def split(self, z: Float[Array, " p"]) -> dict[str, Array]:
        """An unconstrained vector by parameter name."""
        shapes = list(self.free().values())
        return dict(zip(self.names, ravel_pytree(shapes)[1](z)))

    def values(self, z: Float[Array, " p"]) -> dict[str, Array]:
        """The free parameters on their own scale."""
        bijections = self.bijections()
        return {name: bijections[name](part) for name, part in self.split(z).items()}

    def place(self, z: Float[Array, " p"]) -> Any:
        """The model with its free parameters at an unconstrained vector."""
        return replace(self.model, self.values(z))

    def log_density(self, z: Float[Array, " p"], *, volume: bool = False) -> Float[Array, ""]:
        """Log likelihood plus log prior.

        Args:
            z: unconstrained vector.
            volume: whether to add the log Jacobian of the transformation, which makes this the
                density of ``z`` instead of that of the parameters on their own scale.
        """
        likelihood = log_likelihood(self.place(z), self.data, self.method)
        return (likelihood + self.log_prior(z, volume=volume)).astype(z.dtype)

    def log_prior(self, z: Float[Array, " p"], *, volume: bool = False) -> Float[Array, ""]:
        """Log prior density, with the log Jacobian of the transformation where ``volume`` is to count."""
        total = log_prior(self.place(z), self.priors)
        if volume:
            bijections = self.bijections()
            for name, part in self.split(z).items():
                b = bijections[name]
                total = total + jnp.sum(b.log_abs_det_jacobian(part, b(part)))
        return total

    def loss(self, z: Float[Array, " p"]) -> Float[Array, ""]:
        """What maximum likelihood (with priors: maximum a posteriori) minimises."""
        return -self.log_density(z)


def check_start(problem: Problem, learner: str) -> None:
    """Refuse a problem without free parameters, or whose starting values are on a boundary.

    Raises:
        ValueError: naming the parameter.
    """
    if not problem.names:
        known = parameters(problem.model)
        what = "every parameter of the model is frozen" if known else "the model has no parameters"
        raise ValueError(f"{learner}: {what}; nothing is to learn.")
    for name, value in free_values(problem).items():
        if not np.all(np.isfinite(value)):
            raise ValueError(
                f"{learner} cannot start at {name!r} = {np.asarray(parameters(problem.model)[name])}: "
                "it lies outside or on the boundary of its support "
                f"({problem.bijections()[name].codomain}); start strictly inside."
            )


def not_finite(learner: str, value: Any) -> ValueError:
    """The error for a start at which there is no density."""
    return ValueError(
        f"{learner} cannot start here: the log likelihood (plus log prior) at the given parameters is "
        f"{float(value)}. Give starting values at which the data are possible: noise scales of the "
        "size of the data's, and a transition that does not explode."
    )


@eqx.filter_jit
def free_values(problem: Problem) -> dict[str, Array]:
    """:meth:`Problem.free`, compiled."""
    return problem.free()


@eqx.filter_jit
def vector(problem: Problem) -> Float[Array, " p"]:
    """:meth:`Problem.vector`, compiled."""
    return problem.vector()


@eqx.filter_jit
def _values(problem: Problem, z: Float[Array, " p"]) -> dict[str, Array]:
    return problem.values(z)


def moved(problem: Problem, z: Float[Array, " p"]) -> Problem:
    """The problem with its model at an unconstrained vector."""
    return with_values(problem, _values(problem, z))


def with_values(problem: Problem, values: dict[str, Array]) -> Problem:
    """The problem with its model at other parameters."""
    model = replace(problem.model, values)
    return Problem(model, problem.data, problem.priors, problem.method)


@eqx.filter_jit
def density(problem: Problem, z: Float[Array, " p"]) -> Float[Array, ""]:
    """:meth:`Problem.log_density`, compiled."""
    return problem.log_density(z)


@eqx.filter_jit
def curvature(problem: Problem, z: Float[Array, " p"]) -> tuple[Array, Array, Array]:
    """Loss, gradient and Hessian: forward differentiation of the reverse gradient."""
    value, gradient = jax.value_and_grad(problem.loss)(z)
    push: Callable = lambda v: jax.jvp(jax.grad(problem.loss), (z,), (v,))[1]
    hessian = jax.lax.map(push, jnp.eye(len(z), dtype=z.dtype), batch_size=min(len(z), 32))
    return value, gradient, (hessian + hessian.T) / 2


@eqx.filter_jit
def scale_of_values(problem: Problem, z: Float[Array, " p"]) -> dict[str, Float[Array, "k p"]]:
    """Derivative of each free parameter (flattened) by the unconstrained vector."""
    flat = lambda v: {name: value.ravel() for name, value in problem.values(v).items()}
    return jax.jacfwd(flat)(z)
