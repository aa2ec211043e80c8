"""Steps along noisy gradients: the optimiser that learners by stochastic approximation share."""

from __future__ import annotations

from typing import Any


def check_optimiser(learning_rate: float, optimiser: Any) -> None:
    """Refuse what makes no steps.

    Raises:
        ValueError: if the learning rate is not positive.
        TypeError: if the optimiser is not one of optax.
    """
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive, got {learning_rate}.")
    if optimiser is not None and not hasattr(optimiser, "update"):
        raise TypeError(
            "`optimiser` must be an optax transformation such as `optax.adam(0.05)`, got "
            f"{optimiser!r}."
        )


def optimiser_for(learner: Any, steps: int) -> Any:
    """The learner's own, or Adam with steps that shrink, as Robbins and Monro ask, after a tenth of them.

    Args:
        learner: with ``learning_rate`` and ``optimiser``.
        steps: how many will be made.
    """
    import optax

    if learner.optimiser is not None:
        return learner.optimiser
    early = max(steps // 10, 1)
    rate = lambda count: learner.learning_rate * (1 + count / early) ** -0.6
    return optax.adam(rate, b1=0.5)
