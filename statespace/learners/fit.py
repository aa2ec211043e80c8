"""The verb ``fit``: one call for every learner."""

from __future__ import annotations

from typing import Any

from jaxtyping import PRNGKeyArray

from statespace.learners.maximum_likelihood import MaximumLikelihood
from statespace.learners.priors import Priors
from statespace.learners.result import FitResult
from statespace.methods.choice import method_for, with_key
from statespace.model import check_key
from statespace.series import as_data


def fit(
    model: Any,
    data: Any,
    *,
    learner: Any = None,
    priors: Priors | None = None,
    key: PRNGKeyArray | None = None,
    method: Any = None,
) -> FitResult:
    """Learn the free parameters of a model.

    Args:
        model: the model at its starting values, of which :func:`statespace.freeze` may hold some; or
            the result of another learner, which is then where this one starts.
        data: an array ``(T,)`` or ``(T, m)``, a pandas or xarray object, a Series, or a list of them
            (independent recordings, which share the parameters). NaN is a missing entry.
        learner: ``MaximumLikelihood()`` if None, else another, such as ``EM()`` or ``NUTS()``.
        priors: NumPyro distributions by parameter name, on the scale on which the model states the
            parameter. Maximum likelihood then becomes maximum a posteriori.
        key: source of randomness, where the learner needs one.
        method: how the log likelihood is computed; if None the learner's own, else the exact one for the
            model.

    Returns:
        The fitted model with its log likelihood, standard errors and more: see
        :class:`statespace.learners.result.FitResult`.

    Raises:
        TypeError: if ``learner`` is no learner or ``method`` no method, or as the learner raises.
        ValueError: if a prior does not go with the model, the start is impossible, or as the learner
            raises.

    Example:
        >>> fitted = ss.fit(ss.LocalLevel(level_scale=1.0, noise_scale=1.0), nile)
        >>> print(fitted.summary())
    """
    start = model if isinstance(model, FitResult) else None
    model = model.model if isinstance(model, FitResult) else model
    if key is not None:
        check_key(key)
    learner = MaximumLikelihood() if learner is None else learner
    if isinstance(learner, type) or not hasattr(learner, "fit"):
        raise TypeError(
            "`learner` must be a learner such as MaximumLikelihood(), EM() or NUTS(), got "
            f"{learner!r}{'; call it to make one' if isinstance(learner, type) else ''}."
        )
    method = getattr(learner, "default_method", None) if method is None else method
    method, data = with_key(method_for(model, method), model, key), as_data(data)
    method.check(model, data)
    extra = {} if start is None else {"start": start}
    return learner.fit(
        model,
        data,
        priors=priors,
        key=key,
        method=method,
        **extra,
    )
