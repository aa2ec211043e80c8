"""What depends on what, read off a traced program."""

from __future__ import annotations

from typing import Any


def dependence(program: Any, varies: list[bool]) -> list[bool]:
    """Which outputs of a jaxpr depend on an input that varies; inner programs count as one operation."""
    varying = {v for v, flag in zip(program.invars, varies, strict=True) if flag}

    def moving(atom: Any) -> bool:
        return not hasattr(atom, "val") and atom in varying

    for equation in program.eqns:
        if any(moving(atom) for atom in equation.invars):
            varying.update(equation.outvars)
    return [moving(atom) for atom in program.outvars]
