"""What does not depend on a function's arguments, computed once and not with every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun


def hoisted(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """The same function, of which everything that its arguments do not touch is computed here and now.

    In a loop over moments, or mapped over particles, such a part (the factor of a constant covariance, say)
    is then computed once. Compilers do not move library calls out of loops.

    Args:
        function: of pytrees of arrays; it may close over arrays, traced ones too.
        *examples: arguments, or their shapes and types.
    """
    prepare, run = in_two(lambda nothing, *args: function(*args), (), *examples)
    values = prepare(())
    return lambda *args: run(values, *args)


def in_two(
    function: Callable[..., Any], settled: Any, *examples: Any
) -> tuple[Callable[[Any], list[Any]], Callable[..., Any]]:
    """A function of what is settled beforehand and of arguments, as two.

    Args:
        function: of pytrees of arrays, the first of which is settled before the others.
        settled: an example of it, or its shapes and types.
        *examples: of the other arguments.

    Returns:
        ``prepare(settled)`` gives the values of everything that the arguments do not touch, and
        ``run(values, *args)`` does the rest.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(settled, *examples)
    program, tree = closed.jaxpr, jax.tree.structure(shapes)
    own = [*program.constvars, *program.invars[: len(jax.tree.leaves(settled))]]
    args = program.invars[len(own) - len(program.constvars) :]
    once, every = _parts(program, args)
    read = [v for e in every for v in e.invars] + list(program.outvars)
    known = set(own) | {v for e in once for v in e.outvars}
    kept = list(dict.fromkeys(v for v in read if _is_variable(v) and v in known))
    debug = program.debug_info.with_unknown_names()
    part = lambda **parts: jaxpr_as_fun(
        ClosedJaxpr(program.replace(constvars=[], debug_info=debug, **parts), [])
    )
    first = part(invars=own, outvars=kept, eqns=once)
    rest = part(invars=kept + list(args), outvars=program.outvars, eqns=every)

    def prepare(settled: Any) -> list[Any]:
        return first(*closed.consts, *jax.tree.leaves(settled))

    def run(values: list[Any], *args: Any) -> Any:
        return jax.tree.unflatten(tree, rest(*values, *jax.tree.leaves(args)))

    return prepare, run


def _parts(program: Jaxpr, args: list[Var]) -> tuple[list[Any], list[Any]]:
    """The operations that some variables do not touch, and those that they do."""
    touched = set(args)
    once, every = [], []
    for equation in program.eqns:
        if equation.effects or any(v in touched for v in equation.invars if _is_variable(v)):
            touched.update(equation.outvars)
            every.append(equation)
        else:
            once.append(equation)
    return once, every


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, Literal)
