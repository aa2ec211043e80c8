"""How many states: models compared by what they say of recordings that they have not seen, or by criteria."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from statespace.learners.fit import fit
from statespace.learners.likelihood import pointwise
from statespace.learners.result import FitResult
from statespace.learners.table import number, table
from statespace.methods.choice import method_for
from statespace.series import Panel, Series, as_data, assemble


@dataclasses.dataclass(frozen=True, repr=False)
class CrossValidation:
    """Log likelihood of recordings by models that were fitted to others.

    Attributes:
        names: of the models.
        scores: log likelihood of each recording per observed moment, when it was held out.
        moments: observed moments of each recording.
    """

    names: tuple[str, ...]
    scores: Float[np.ndarray, "models S"]
    moments: Float[np.ndarray, " S"]

    @property
    def mean(self) -> Float[np.ndarray, " models"]:
        """Held-out log likelihood per moment, over all recordings."""
        return self.scores @ self.moments / self.moments.sum()

    @property
    def best(self) -> str:
        """Name of the model with the highest one."""
        return self.names[int(np.argmax(self.mean))]

    @property
    def differences(self) -> tuple[Float[np.ndarray, " models"], Float[np.ndarray, " models"]]:
        """Difference to the best model per moment, and its standard error over the recordings."""
        gaps = self.scores - self.scores[int(np.argmax(self.mean))]
        count, shares = len(self.moments), self.moments / self.moments.sum()
        mean = gaps @ shares
        square = ((gaps - mean[:, None]) * shares) ** 2
        return mean, np.sqrt(square.sum(axis=1) * count / max(count - 1, 1))

    def __str__(self) -> str:
        gaps, errors = self.differences
        rows = [
            (name, *(number(part[i]) for part in (self.mean, gaps, errors)))
            for i, name in enumerate(self.names)
        ]
        return "\n".join(table(("held-out per moment", "to the best", "std. error"), rows))

    __repr__ = __str__


def cross_validate(
    models: Mapping[Any, Any],
    data: Any,
    *,
    folds: int | None = None,
    learner: Any = None,
    priors: Any = None,
    key: PRNGKeyArray | None = None,
    method: Any = None,
) -> CrossValidation:
    """Fit each model to some of the recordings, and score it on the others.

    Recordings (sessions) are held out whole, because moments of one recording are not independent. A single
    long recording has to be cut into several first.

    Args:
        models: by name, such as ``{k: ss.HMM(...) for k in range(1, 6)}``.
        data: a list of recordings.
        folds: into how many groups to divide them; None: each recording by itself.
        learner: as in :func:`statespace.fit`, such as ``EM(starts=20)``.
        priors: by model name, where any model has some.
        key: source of randomness, where the learner needs one; the same for every model and fold.
        method: as in :func:`statespace.fit`.

    Raises:
        ValueError: if there are fewer than two recordings, or folds that do not go with them.

    References:
        Celeux & Durand (2008), Selecting hidden Markov model state number with cross-validated likelihood.
    """
    panel = as_data(data)
    if isinstance(panel, Series) or len(panel) < 2:
        raise ValueError(
            "`cross_validate` holds out whole recordings: give a list of at least two (cut a long one into "
            "several)."
        )
    count = len(panel)
    folds = count if folds is None else folds
    if not 2 <= folds <= count:
        raise ValueError(f"`folds` must be from 2 to the {count} recordings, got {folds}.")
    group = np.arange(count) % folds
    scores = np.zeros((len(models), count))
    for i, (name, model) in enumerate(models.items()):
        given = (priors or {}).get(name)
        how = method_for(model, method)
        for fold in range(folds):
            train = _without(panel, group == fold)
            fitted = fit(model, train, learner=learner, priors=given, key=key, method=how)
            each = np.asarray(_pointwise(fitted.model, panel.drop_labels(), how)).sum(axis=1)
            scores[i, group == fold] = each[group == fold]
    moments = np.asarray(panel.observed).any(axis=2).sum(axis=1).astype(float)
    return CrossValidation(tuple(map(str, models)), scores / moments, moments)


def _without(panel: Panel, held_out: np.ndarray) -> Panel:
    """The panel with some recordings unobserved: of the same shape, so that one program fits every fold."""
    fields = {f.name: getattr(panel, f.name) for f in dataclasses.fields(panel)}
    for name in ("y", "state_weights"):
        if fields[name] is not None:
            fields[name] = jnp.where(held_out[:, None, None], jnp.nan, fields[name])
    fields["facts"] = tuple((False, dt) for _, dt in panel.facts)
    return assemble(Panel, **fields)


_pointwise = eqx.filter_jit(pointwise)


def compare(results: Mapping[Any, FitResult]) -> str:
    """A table of fitted models: log likelihood, number of parameters, AIC and BIC.

    Args:
        results: by name, all fitted to the same data.

    Raises:
        TypeError: if one is no result of a learner.
        ValueError: if they were fitted to different numbers of observations.
    """
    for name, result in results.items():
        if not isinstance(result, FitResult):
            raise TypeError(
                f"`compare` takes results of `fit`, but {name!r} is a {type(result).__name__}."
            )
    if len({result.observations for result in results.values()}) > 1:
        raise ValueError("`compare` needs results that were fitted to the same data.")
    rows = [
        (str(name), f"{r.log_likelihood:.3f}", str(r.degrees), f"{r.aic:.3f}", f"{r.bic:.3f}")
        for name, r in results.items()
    ]
    return "\n".join(table(("log likelihood", "parameters", "AIC", "BIC"), rows))
