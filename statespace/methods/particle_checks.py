"""What particle methods refuse before anything is traced."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from statespace.checks import require_arguments
from statespace.conditionals import aggregates
from statespace.conditionals.affine import AffineGaussian
from statespace.conditionals.finite import FiniteTransition
from statespace.methods.lowering import at, dtype_of
from statespace.methods.particle_laws import InitialLaw
from statespace.methods.particle_lowering import initial_law, on_clouds
from statespace.methods.potentials import check_observations, first_step
from statespace.methods.proposals import Auxiliary, Given, proposal_named
from statespace.model import Step
from statespace.series import Panel, Series


def check_data(model: Any, data: Series | Panel) -> None:
    """Refuse a model whose conditionals do not go together, or data that it cannot produce.

    Raises:
        TypeError: if a conditional is no distribution.
        ValueError: if shapes do not fit, or observations have no density; the conditional is named.
    """
    _check_noise(model.observation)
    described = _description(model, data)
    if described is not None and described in _CHECKED:
        state, states = _CHECKED[described]
    else:
        step = first_step(data)
        state, states = _first_state(model, data, step), None
        _check_transition(model, state, step)
        if isinstance(model.transition, FiniteTransition):
            chain = len(model.transition.matrix(step))
            states = aggregates.count(model.transition.aggregate, chain)
    if data.state_weights is not None and states is None:
        raise ValueError(
            "`state_weights` of the data are what is known of finitely many states, but `transition` of the "
            f"model is a {_name(model.transition)}: leave them out."
        )
    if described is None or described not in _CHECKED or hasattr(model.observation, "check"):
        probe = 0 if states else jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
        check_observations(model.observation, data, states, first_step(data), probe)
    if described is not None:
        if len(_CHECKED) >= 256:
            _CHECKED.clear()
        _CHECKED[described] = state, states


_CHECKED: dict[Any, tuple[Any, int | None]] = {}
"""By shapes, what was found right: a later call of the same shapes traces nothing before it runs."""


def _description(model: Any, data: Series | Panel) -> Any:
    """Everything of a model and its data but numbers; None where it cannot be looked up."""
    leaves, structure = jax.tree.flatten((model, data))
    traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
    described = structure, tuple((x.shape, x.dtype) if hasattr(x, "shape") else x for x in leaves)
    # entries missing in part ask more of an observation
    partly = None if traced else _missing_in_part(data)
    try:
        hash(described)
    except TypeError:
        return None
    return *described, partly


def _missing_in_part(data: Series | Panel) -> bool:
    if data.complete:
        return False
    missing = np.isnan(np.asarray(data.channels))
    return bool((missing.any(axis=-1) & ~missing.all(axis=-1)).any())


def _first_state(model: Any, data: Series | Panel, step: Step) -> Any:
    """Shape and type of a state."""
    dtype = dtype_of(data, eqx.filter(model, eqx.is_array))
    law = eqx.filter_eval_shape(
        initial_law, model, step
    )  # traced: evaluated, it compiles by the dozen
    if not hasattr(law, "sample"):
        raise TypeError(
            f"`initial` of the model gives a {type(law).__name__}, which cannot be drawn from: give a "
            "NumPyro distribution."
        )
    draw = lambda model: InitialLaw(initial_law(model, step), dtype).draw(jax.random.key(0), 1)
    drawn = eqx.filter_eval_shape(draw, model)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), drawn)


def _check_transition(model: Any, state: Any, step: Step) -> None:
    require_arguments("`transition` of the model", model.transition, ("state", "step"))
    law = eqx.filter_eval_shape(model.transition, state, step)
    if not hasattr(law, "sample"):
        raise TypeError(
            f"`transition` of the model gives a {type(law).__name__}, which cannot be drawn from: give a "
            "NumPyro distribution."
        )
    draw = lambda x: model.transition(x, step).sample(jax.random.key(0))
    after = jax.eval_shape(draw, state)
    shapes = [jax.tree.map(lambda x: x.shape, x) for x in (state, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`transition` of the model gives states of shape {shapes[1]}, `initial` of shape {shapes[0]}."
        )


def _check_noise(observation: Any) -> None:
    """A linear observation without noise in some direction has no density to weigh particles by."""
    if hasattr(observation, "at") and not full_rank(observation):
        raise ValueError(
            "`observation` of the model has no density: its noise is zero in some direction, so that no "
            "particle can weigh anything. Give `scale` (or `covariance`) full rank."
        )


def full_rank(law: Any, step: Step | None = None) -> bool:
    """Whether the noise of a linear Gaussian conditional has a density, as far as is known now."""
    if not isinstance(law, AffineGaussian):
        if step is None:
            return True
        law = law.at(step)
    part = law.covariance if law.scale is None else law.scale
    if callable(part) or isinstance(part, jax.core.Tracer):
        return True
    noise = np.asarray(part, float)
    if noise.ndim == 1:
        return bool(np.all(noise != 0))
    return bool(np.linalg.matrix_rank(noise) == len(noise))


def require_density(model: Any, data: Series | Panel, method: str) -> None:
    """Refuse a transition without a density, for methods that compare states with their successors.

    Args:
        model: the model.
        data: the recording.
        method: what needs it.

    Raises:
        ValueError: naming the transition.
    """
    step = first_step(data)
    law: Any = model.transition
    if hasattr(law, "at"):
        has = full_rank(law, step)
        why = "its noise is zero in some direction"
    else:
        has = _evaluates(law, _first_state(model, data, step), step)
        why = "its distribution has no `log_prob`"
    if not has:
        raise ValueError(
            f"{method} needs the density of `transition`, and that of this model ({_name(law)}) has none: "
            f"{why}. Use ParticleFilter(), which only draws from it."
        )


def require_possible(model: Any, posterior: Any) -> None:
    """Refuse a posterior by particles of which none could produce some observation; a traced one passes.

    Raises:
        ValueError: naming the moment and the observation conditional.
    """
    impossible = getattr(posterior, "impossible", None)
    if impossible is None or isinstance(impossible, jax.core.Tracer):
        return
    for flags, what in (
        (np.asarray(impossible), "has density zero"),
        (np.isnan(np.asarray(posterior.pointwise)), "has a density that is NaN"),
    ):
        found = np.argwhere(flags)
        if not len(found):
            continue
        first = tuple(found[0])
        where = f"row {first[-1]}" + (f" of recording {first[0]}" if len(first) > 1 else "")
        raise ValueError(
            f"the observation {np.asarray(posterior.y)[first]} in {where} (time "
            f"{np.asarray(posterior.times)[first]:g}) {what} given every particle ({len(found)} such "
            f"moments): look at `observation` of the model ({_name(model.observation)}) and its "
            "support, or use more particles or another proposal."
        )


def check_proposal(model: Any, data: Series | Panel, proposal: Any) -> None:
    """Refuse a proposal by a function that cannot reach where the transition leads.

    It is tried on draws from the model; traced data pass.

    Raises:
        TypeError: if it gives no distribution with a density.
        ValueError: if its draws are of another shape, or it gives density zero to what the transition draws;
            it is named.
    """
    if isinstance(proposal, Auxiliary):
        proposal = proposal.proposal
    proposal = proposal_named(proposal)
    leaves = jax.tree.leaves(eqx.filter((model, data), eqx.is_array))
    if not isinstance(proposal, Given) or any(isinstance(x, jax.core.Tracer) for x in leaves):
        return
    series = data.series[0] if isinstance(data, Panel) else data
    shapes, zero = _tried(model, series.drop_labels(), proposal)
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the proposal {proposal.name} gives states of shape {shapes[1]}, `transition` of the model of "
            f"shape {shapes[0]}."
        )
    if int(zero):
        raise ValueError(
            f"the proposal {proposal.name} misses part of what `transition` of the model reaches: it gives "
            f"density zero to {int(zero)} of {_TRIED} draws from it. A proposal must be positive where the "
            "transition is, or the filter is biased: use one with a wider support."
        )


_TRIED = 64


@eqx.filter_jit
def _tried(model: Any, series: Series, proposal: Given) -> Any:
    """Shapes of states and of draws, and how many successors of states have no density when proposed."""
    clouds, moments = on_clouds(model, series)
    row = at(moments, min(1, len(series) - 1))
    # a moment with an observation to be guided by, if the first two have none
    row = row._replace(y=jnp.where(jnp.isnan(row.y), jnp.nanmean(moments.y, axis=0), row.y))
    one, two, three = jax.random.split(jax.random.key(0), 3)
    before = clouds.start(one, _TRIED, row)
    after = clouds.propose(two, before, row)
    law = proposal.law(clouds, row)
    if not law.has_density:
        raise TypeError(f"the proposal {proposal.name} gives distributions without `log_prob`.")
    pair = row._replace(step=(row.step, row.y))
    single = lambda x: proposal.function(x, row.step, row.y).sample(three)
    drawn = jax.eval_shape(single, clouds.initial.like)
    shapes = [str(jax.tree.map(lambda x: x.shape, x)) for x in (clouds.initial.like, drawn)]
    zero = jnp.zeros((), int)
    if shapes[0] == shapes[1]:
        zero = jnp.sum(~(law.log_prob(before, after, pair) > -jnp.inf))
    return shapes, zero


def _evaluates(conditional: Any, state: Any, step: Step) -> bool:
    try:
        jax.eval_shape(lambda x: conditional(x, step).log_prob(x), state)
    except (NotImplementedError, AttributeError):
        return False
    return True


def _name(conditional: Any) -> str:
    return getattr(conditional, "__name__", type(conditional).__name__)
