"""What does not depend on a function's arguments, computed once and not with every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun


def hoisted(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """The same function, of which everything that its arguments do not touch is computed here and now.

    In a loop over moments, or mapped over particles, such a part (the factor of a constant covariance, say)
    is then computed once. Compilers do not move library calls out of loops.

    Args:
        function: of pytrees of arrays; it may close over arrays, traced ones too.
        *examples: arguments, or their shapes and types.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
    program, tree = closed.jaxpr, jax.tree.structure(shapes)
    touched = set(program.invars)
    once, every = [], []
    for equation in program.eqns:
        if equation.effects or any(v in touched for v in equation.invars if _is_variable(v)):
            touched.update(equation.outvars)
            every.append(equation)
        else:
            once.append(equation)
    read = [v for e in every for v in e.invars] + list(program.outvars)
    own = set(program.constvars) | {v for e in once for v in e.outvars}
    kept = list(dict.fromkeys(v for v in read if _is_variable(v) and v in own))
    debug = program.debug_info.with_unknown_names()
    first = program.replace(
        invars=list(program.constvars), constvars=[], outvars=kept, eqns=once, debug_info=debug
    )
    rest = program.replace(
        invars=kept + list(program.invars), constvars=[], eqns=every, debug_info=debug
    )
    values = jaxpr_as_fun(ClosedJaxpr(first, []))(*closed.consts)
    run = jaxpr_as_fun(ClosedJaxpr(rest, []))
    return lambda *args: jax.tree.unflatten(tree, run(*values, *jax.tree.leaves(args)))


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, Literal)
