"""What samplers of parameters share: many draws in one compiled call, block after block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from statespace.learners.progress import bar


def check_counts(learner: Any, **least: int) -> None:
    """Refuse numbers of something that are too small.

    Args:
        learner: with the settings.
        **least: the least value of each.

    Raises:
        ValueError: naming the setting.
    """
    for name, count in least.items():
        if getattr(learner, name) < count:
            raise ValueError(f"`{name}` must be at least {count}, got {getattr(learner, name)}.")


def check_settings(sampler: Any, **least: int) -> None:
    """Refuse settings of a sampler that make no sense.

    Args:
        sampler: with ``target_accept`` and ``spread``.
        **least: the least value of each setting that is a number of something.

    Raises:
        ValueError: naming the setting.
    """
    check_counts(sampler, **least)
    if not 0 < sampler.target_accept < 1:
        raise ValueError(f"`target_accept` must be between 0 and 1, got {sampler.target_accept}.")
    if not sampler.spread >= 0:
        raise ValueError(f"`spread` must not be negative, got {sampler.spread}.")


def in_blocks(
    advance: Callable[[Any, Array], tuple[Any, Any]],
    state: Any,
    warmup: int,
    samples: int,
    block: int,
    label: str,
    progress: bool | None,
    describe: Callable[[Any], str] = lambda drawn: "",
) -> Any:
    """Warm up and sample; the kept draws, each part ``(chains, samples, ...)``.

    Args:
        advance: ``(state, count) -> (state, draws)``, at most ``block`` draws in buffers of that length.
        state: of the chains at the beginning.
        warmup: draws that are not kept.
        samples: draws that are.
        block: length of the buffers.
        label: of the progress bar.
        progress: as in :func:`statespace.learners.progress.bar`.
        describe: what the bar is to say of the last draws.
    """
    kept = []
    with bar(warmup + samples, label, progress) as shown:
        for phase, total in (("warm-up", warmup), ("sampling", samples)):
            for begin in range(0, total, block):
                count = min(block, total - begin)
                state, drawn = advance(state, jnp.asarray(count))
                drawn = jax.tree.map(lambda a, n=count: np.asarray(a)[:, :n], drawn)
                kept += [drawn] if phase == "sampling" else []
                shown.set_postfix_str(f"{phase}{describe(drawn)}", refresh=False)
                shown.update(count)
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *kept)


def sweeps(
    step: Callable[[Any], Any], look: Callable[[Any], Any], state: Any, count: Array, block: int
) -> tuple[Any, Any]:
    """``count`` steps of all chains, and what ``look`` sees after each, in buffers ``(chains, block, ...)``.

    Args:
        step: of all chains at once.
        look: of one chain's state.
        state: of all chains.
        count: how many steps, at most ``block``; may be traced.
        block: length of the buffers.
    """
    seen = jax.vmap(look)
    shapes = jax.eval_shape(seen, state)
    empty = jax.tree.map(lambda a: jnp.zeros((a.shape[0], block, *a.shape[1:]), a.dtype), shapes)

    def body(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, buffers = carry
        state = step(state)
        return state, jax.tree.map(lambda b, a: b.at[:, i].set(a), buffers, seen(state))

    return jax.lax.fori_loop(0, count, body, (state, empty))
