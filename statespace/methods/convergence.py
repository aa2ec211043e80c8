"""Telling the user that an iteration for sites did not converge."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from statespace.methods.site_problem import SiteConvergence


def warn_unless_converged(method: Any, ended: Any) -> None:
    """Issue a ``ConvergenceWarning`` if an iteration did not converge; a traced report passes.

    Args:
        method: whose iteration it was.
        ended: a :class:`SiteConvergence`, of a panel with a leading axis; anything else passes.
    """
    if not isinstance(ended, SiteConvergence) or isinstance(ended.converged, jax.core.Tracer):
        return
    failed = ~np.atleast_1d(np.asarray(ended.converged))
    if not failed.any():
        return
    from statespace.learners.result import ConvergenceWarning

    first = int(np.argmax(failed))
    report = jax.tree.map(lambda x: np.atleast_1d(np.asarray(x))[first], ended)
    where = f" (recording {first} of a panel)" if failed.size > 1 else ""
    why = ", and the changes go back and forth" if report.oscillates else ""
    warnings.warn(
        f"{type(method).__name__} did not converge in {report.iterations} iterations{where}: the last would "
        f"have changed states by {report.change:.2g} standard deviations{why}. The best iterate is returned. "
        "Leave `damping` at None or choose it nearer to 1, or allow more `iterations`.",
        ConvergenceWarning,
        stacklevel=4,
    )
