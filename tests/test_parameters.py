"""Supports of parameters: by name, by constraint, by a function of the value."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import biject_to, constraints

import statespace as ss
from statespace import constraints as own
from statespace.parameters import NAMED_BY_NUMPYRO, NAMED_HERE

VALUES = {
    "correlation": jnp.array(0.3),
    "invertible": jnp.array([0.3, -0.2]),
    "lower_trapezoidal": jnp.array([[1.0, 0.0], [0.4, 0.8], [-0.3, 0.5]]),
    "period": jnp.array(12.0),
    "stationary": jnp.array([0.3, -0.2]),
    "stationary_vector": jnp.array([[[0.5, 0.1], [-0.2, 0.3]]]),
}


def holder(support):
    """A module with one parameter of this support."""

    class Holder(eqx.Module):
        value: jnp.ndarray = ss.parameter(support)

    return Holder


def support_of(support, value):
    return ss.supports(holder(support)(value))["value"]


@pytest.mark.parametrize("name", sorted(NAMED_BY_NUMPYRO))
def test_numpyro_constraint_by_name(name):
    support = support_of(name, jnp.array(1.0))
    assert support is getattr(constraints, name)
    biject_to(support)  # a learner can move in it
    assert not support.is_discrete


def test_names_of_numpyro_are_complete():
    """Those of NumPyro with a bijection from the reals, complex numbers apart."""
    movable = set()
    for name, value in vars(constraints).items():
        if isinstance(value, constraints.Constraint):
            try:
                biject_to(value)
            except NotImplementedError:
                continue
            movable.add(name)
    assert movable - {"complex"} == NAMED_BY_NUMPYRO


def test_names_of_our_own_are_complete():
    assert NAMED_HERE == set(own.__all__) == set(VALUES)
    assert not NAMED_HERE & NAMED_BY_NUMPYRO


@pytest.mark.parametrize("name", sorted(VALUES))
def test_own_constraint_by_name(name):
    value = VALUES[name]
    model = holder(name)(value)
    assert jnp.all(ss.supports(model)["value"](value))
    free = ss.unconstrain(model)
    np.testing.assert_allclose(ss.constrain(model, free).value, value, rtol=1e-9)
    moved = ss.constrain(model, {"value": free["value"] + 3.0}).value
    assert jnp.all(ss.supports(model)["value"](moved))


def test_constraint_itself():
    support = constraints.interval(1.0, 3.0)
    assert support_of(support, 2.0) is support


def test_function_of_the_value_gives_a_constraint_or_a_name():
    by_shape = lambda value: "positive" if value.ndim == 1 else constraints.lower_cholesky
    assert support_of(by_shape, jnp.ones(2)) is constraints.positive
    assert support_of(by_shape, jnp.eye(2)) is constraints.lower_cholesky


def test_default_is_real():
    class Plain(eqx.Module):
        declared: jnp.ndarray = ss.parameter()
        bare: jnp.ndarray = eqx.field(converter=jnp.asarray, default=0.0)

    known = ss.supports(Plain(1.0))
    assert known["declared"] is constraints.real
    assert known["bare"] is constraints.real


def test_unknown_name_is_refused_where_the_class_is_written():
    with pytest.raises(ValueError, match=r"no constraint named 'postive'.*positive, .*interval"):
        ss.parameter("postive")
    with pytest.raises(ValueError, match="no constraint named 'boolean'"):
        ss.parameter("boolean")


def test_unknown_name_from_a_function():
    model = holder(lambda value: "postive")(1.0)
    with pytest.raises(ValueError, match="no constraint named 'postive'"):
        ss.supports(model)


@pytest.mark.parametrize("support", [None, 3.0, constraints.greater_than])
def test_what_is_no_support(support):
    with pytest.raises(TypeError, match="`support` of a parameter must be the name"):
        ss.parameter(support)
