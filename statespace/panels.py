"""Posteriors of a panel of recordings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from statespace.labels import Labels
from statespace.posterior import GaussianPosterior


class PanelPosterior(eqx.Module):
    """The posteriors of a panel's recordings: a sequence of :class:`GaussianPosterior`.

    They are computed in one call on the padded recordings, and cut to length when they are asked for.
    """

    padded: GaussianPosterior
    model: Any
    inputs: Array | None
    lengths: tuple[int, ...] = eqx.field(static=True)
    labels: tuple[Labels | None, ...] | None = eqx.field(static=True)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[GaussianPosterior]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> GaussianPosterior:
        if not -len(self) <= index < len(self):
            raise IndexError(f"recording {index} of a panel of {len(self)}.")
        i = index % len(self)
        size, longest = self.lengths[i], self.padded.mean.shape[1]
        one = jax.tree.map(lambda x: x[i], self.padded)

        def cut(x: Array) -> Array:
            return x[:size] if x.shape[:1] == (longest,) else x

        chain, lag_one = one.chain, one.lag_one
        moves = jax.tree.map(lambda x: x if len(x) == 1 else x[: size - 1], chain.transitions)
        chain = chain._replace(transitions=moves, potentials=jax.tree.map(cut, chain.potentials))
        fields = {
            name: None if value is None else cut(value)
            for name in _OVER_TIME
            for value in [getattr(one, name)]
        }
        posterior = GaussianPosterior(
            **fields,
            log_likelihood=fields["pointwise"].sum(),
            lag_one=None if lag_one is None else lag_one[: size - 1],
            chain=chain,
            kind=one.kind,
            labels=None if self.labels is None else self.labels[i],
            state_names=one.state_names,
            form=one.form,
            parallel=one.parallel,
        )
        inputs = None if self.inputs is None else self.inputs[i, :size]
        return with_components(self.model, posterior, inputs)


_OVER_TIME = (
    "mean",
    "covariance",
    "times",
    "pointwise",
    "predicted_mean",
    "predicted_covariance",
    "y",
)


def with_components(
    model: Any, posterior: GaussianPosterior, inputs: Array | None
) -> GaussianPosterior:
    """The posterior with what each named part of the model contributes, where it names parts."""
    if not hasattr(model, "components"):
        return posterior
    parts = model.components(posterior, inputs)
    return eqx.tree_at(lambda p: p.components, posterior, parts, is_leaf=lambda x: x is None)
