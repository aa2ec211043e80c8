"""Posteriors of a panel of recordings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from statespace.labels import Labels
from statespace.reading import on_host, to_jax


class PanelPosterior(eqx.Module):
    """The posteriors of a panel's recordings: a sequence of them.

    They are computed in one call on the padded recordings, and cut to length when they are asked for.
    """

    padded: Any
    model: Any
    inputs: Array | None
    lengths: tuple[int, ...] = eqx.field(static=True)
    labels: tuple[Labels | None, ...] | None = eqx.field(static=True)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"recording {index} of a panel of {len(self)}.")
        i = index % len(self)
        size = self.lengths[i]
        posterior = jax.tree.map(lambda x: on_host(x)[i], self.padded).cut(size)
        posterior = jax.tree.map(to_jax, posterior)
        inputs = None if self.inputs is None else self.inputs[i, :size]
        posterior = posterior.labelled(None if self.labels is None else self.labels[i])
        return with_components(self.model, posterior, inputs)


def with_components(model: Any, posterior: Any, inputs: Array | None) -> Any:
    """The posterior with what each named part of the model contributes, where it names parts."""
    if not hasattr(model, "components"):
        return posterior
    parts = model.components(posterior, inputs)
    return eqx.tree_at(lambda p: p.components, posterior, parts, is_leaf=lambda x: x is None)
