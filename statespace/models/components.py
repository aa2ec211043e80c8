"""What structural components share: each is a model of one series by itself, and they add with ``+``.

A component gives its block of the system (:class:`Block`); a sum stacks the blocks. The observation is the
sum of the components' contributions plus at most one observation noise.
"""

from __future__ import annotations

import abc
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Float

from statespace.checks import known
from statespace.conditionals.affine import AffineGaussian, Gaussian, Part
from statespace.model import Step
from statespace.parameters import parameters


class Block(NamedTuple):
    """One component's part of the system: ``c_t = z' x_t + offset``, ``x_t = F x_{t-1} + shift + L e_t``.

    Attributes:
        states: names of the n states.
        loading: ``z``, shape ``(n,)``; a function of the step where the contribution depends on inputs.
        matrix: ``F``, shape ``(n, n)``.
        scale: ``L``, shape ``(n, k)``.
        covariance: gives that of the first state where it is not diffuse, shape ``(n, n)``; a function, since
            a stationary law costs an equation to solve.
        diffuse: which states are diffuse at the start.
        mean: of the first state, shape ``(n,)``.
        shift: shape ``(n,)``; None for none.
        offset: scalar; None for none.
        noise: standard deviation of the observation noise; None where the component brings none.
    """

    states: tuple[str, ...]
    loading: Part
    matrix: Float[Array, "n n"]
    scale: Float[Array, "n k"]
    covariance: Callable[[], Float[Array, "n n"]]
    diffuse: tuple[bool, ...]
    mean: Float[Array, " n"] | None = None
    shift: Float[Array, " n"] | None = None
    offset: Float[Array, ""] | None = None
    noise: Float[Array, ""] | None = None


class Contribution(NamedTuple):
    """A component's share of the observations, in their unit.

    Attributes:
        mean: shape ``(T,)``.
        std: shape ``(T,)``.
    """

    mean: Float[Array, " T"]
    std: Float[Array, " T"]


class Component(eqx.Module):
    """A structural component of one series: a complete model, and a term of a sum.

    Args:
        name: what the component is called in a sum, in front of its parameters and states; None for the
            usual name of its kind.
        initial_law: law of the component's first state, in place of the default: exactly diffuse where the
            component is not stationary, the stationary law where it is. Not learned.
    """

    name: str | None = eqx.field(static=True, default=None, kw_only=True)
    initial_law: Gaussian | None = eqx.field(
        metadata={"constant": True}, default=None, kw_only=True
    )

    @property
    @abc.abstractmethod
    def usual_name(self) -> str:
        """The usual name of such a component."""

    @abc.abstractmethod
    def _block(self) -> Block:
        """The component's part of the system, before ``initial_law`` is put in."""

    @property
    def block(self) -> Block:
        """The component's part of the system."""
        block = self._block()
        if self.initial_law is None:
            return block
        law, n = self.initial_law, len(block.states)
        if law.mean.shape != (n,):
            raise ValueError(
                f"`initial_law` of {type(self).__name__} must be for its {n} states {block.states}, got a "
                f"mean of shape {law.mean.shape}."
            )
        if law.diffuse is not None:
            raise ValueError(
                f"`initial_law` of {type(self).__name__} must be a proper Gaussian; leave it out for the "
                "default, which is exactly diffuse where the component is not stationary."
            )
        return block._replace(
            mean=law.mean, covariance=lambda: _covariance(law), diffuse=(False,) * n
        )

    @property
    def dtype(self) -> Any:
        """Precision of the component: that of its parameters."""
        values = parameters(self).values()
        return jnp.result_type(*values) if values else jnp.zeros(()).dtype

    @property
    def parts(self) -> OrderedDict[str, Component]:
        """The components by name; of a single one, itself."""
        return OrderedDict({self.name or self.usual_name: self})

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states, in their order."""
        return self.block.states

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of the components that have states, in their order."""
        return tuple(name for name, part in self.parts.items() if part.block.states)

    def __add__(self, other: Component) -> Component:
        """The model of a series that is the sum of both."""
        if not isinstance(other, Component):
            return NotImplemented
        return add(self, other)

    def __radd__(self, other: Any) -> Component:
        """So that ``sum(components)`` works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @property
    def initial(self) -> Gaussian:
        """Law of the state at the first observation."""
        block = self._complete()
        mean = jnp.zeros(len(block.states), self.dtype) if block.mean is None else block.mean
        diffuse = np.array(block.diffuse) if any(block.diffuse) else None
        return Gaussian(mean, diffuse=diffuse, covariance=block.covariance())

    @property
    def transition(self) -> AffineGaussian:
        """Law of the next state."""
        block = self._complete()
        return AffineGaussian(block.matrix, block.shift, block.scale)

    @property
    def observation(self) -> AffineGaussian:
        """Law of the observation: the sum of the contributions, and the observation noise if there is any."""
        block = self._complete()
        noise = jnp.zeros((), self.dtype) if block.noise is None else block.noise
        matrix = (
            Row(block.loading) if callable(block.loading) else jnp.asarray(block.loading)[None, :]
        )
        offset = None if block.offset is None else block.offset[None]
        return AffineGaussian(matrix, offset, noise[None])

    def components(self, posterior: Any, inputs: Any = None) -> OrderedDict[str, Contribution]:
        """Each component's contribution to the observations, with its uncertainty.

        Args:
            posterior: what ``ss.smooth`` or ``ss.filter`` returned for this model: ``mean`` of shape
                ``(T, n)``, ``covariance`` of shape ``(T, n, n)``.
            inputs: shape ``(T, k)``, the inputs of these moments; needed where a component depends on them.

        Raises:
            ValueError: if the posterior is not of this model, or inputs are needed and missing.
        """
        n = len(self.state_names)
        if posterior.mean.shape[-1] != n:
            raise ValueError(
                f"the posterior has {posterior.mean.shape[-1]} states, this model has {n}: "
                f"{self.state_names}."
            )
        out: OrderedDict[str, Contribution] = OrderedDict()
        start = 0
        for name, part in self.parts.items():
            block = part.block
            end = start + len(block.states)
            if block.states:
                out[name] = _contribution(
                    block,
                    posterior.mean[:, start:end],
                    posterior.covariance[:, start:end, start:end],
                    inputs,
                )
            start = end
        return out

    def _complete(self) -> Block:
        block = self.block
        if not block.states:
            raise ValueError(
                f"{type(self).__name__} has no state and is no model by itself: add it to a component, "
                "as in `AR(coefficients=[0.5], scale=1.0) + Irregular(scale=0.1)`."
            )
        return block


class Structural(Component):
    """A sum of components, as ``+`` makes it.

    The parameters are named by component and field: ``level.level_scale``, ``seasonal.scale``. At most one
    component may bring observation noise, and the diffuse starts of two components must be tellable apart.

    Args:
        terms: the components by name.
    """

    terms: OrderedDict[str, Component] = eqx.field(metadata={"transparent": True})

    def __check_init__(self) -> None:
        _check_noise(self.terms)
        _check_distinct(self.terms)

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "structural"

    @property
    def parts(self) -> OrderedDict[str, Component]:
        """The components by name."""
        return self.terms

    def __getitem__(self, name: str) -> Component:
        """The component of this name."""
        return self.terms[name]

    def _block(self) -> Block:
        blocks = [part.block for part in self.terms.values()]
        dtype = self.dtype
        means = [b.mean for b in blocks]
        shifts = [b.shift for b in blocks]
        offsets = [b.offset for b in blocks if b.offset is not None]
        noises = [b.noise for b in blocks if b.noise is not None]
        loadings = tuple(b.loading for b in blocks)
        return Block(
            states=tuple(f"{name}.{s}" for name, b in zip(self.terms, blocks) for s in b.states),
            loading=Stacked(loadings)
            if any(callable(z) for z in loadings)
            else jnp.concatenate(loadings),
            matrix=block_diag(*(b.matrix for b in blocks)),
            scale=block_diag(*(b.scale for b in blocks)),
            covariance=lambda: block_diag(*(b.covariance() for b in blocks)),
            diffuse=tuple(d for b in blocks for d in b.diffuse),
            mean=_joined(means, blocks, dtype),
            shift=_joined(shifts, blocks, dtype),
            offset=sum(offsets[1:], offsets[0]) if offsets else None,
            noise=noises[0] if noises else None,
        )


class Row(eqx.Module):
    """A loading that depends on the step, as the one row of an observation matrix."""

    loading: Any

    def __call__(self, step: Step) -> Float[Array, "1 n"]:
        """The row at one step."""
        return self.loading(step)[None, :]


class Stacked(eqx.Module):
    """Loadings side by side, of which some depend on the step."""

    loadings: tuple[Any, ...]

    def __call__(self, step: Step) -> Float[Array, " n"]:
        """The loading of the sum at one step."""
        return jnp.concatenate([z(step) if callable(z) else z for z in self.loadings])


def add(a: Component, b: Component) -> Structural:
    """The sum of two models of one series. Equal default names are told apart by a number.

    Raises:
        ValueError: if two components were given the same name, if both bring observation noise, or if
            their diffuse starts cannot be told apart.
    """
    terms: OrderedDict[str, Component] = OrderedDict()
    for name, part in [*a.parts.items(), *b.parts.items()]:
        if name in terms and part.name is not None:
            raise ValueError(
                f"two components are called {name!r}; give one another `name=`, since parameters and "
                "states are named after their component."
            )
        number, unique = 1, name
        while unique in terms:
            number += 1
            unique = f"{part.usual_name}_{number}"
        terms[unique] = part
    return Structural(terms)


def _check_noise(terms: OrderedDict[str, Component]) -> None:
    noisy = [name for name, part in terms.items() if part.block.noise is not None]
    if len(noisy) > 1:
        raise ValueError(
            f"components {noisy} each bring observation noise, of which only the sum could be told: keep "
            "`noise_scale` (or Irregular) in one of them and leave it out of the others."
        )


def _check_distinct(terms: OrderedDict[str, Component]) -> None:
    """Refuse two components whose diffuse starts give the same paths (Popov–Belevitch–Hautus)."""
    modes = {name: _diffuse_modes(part.block) for name, part in terms.items()}
    names = list(modes)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            gaps = np.abs(modes[a][:, None] - modes[b][None, :])
            if gaps.size and gaps.min() < 1e-6:
                mode = modes[a][np.unravel_index(gaps.argmin(), gaps.shape)[0]]
                raise ValueError(
                    f"components {a!r} and {b!r} both start diffuse in a {_describe(mode)}, so the data "
                    "cannot tell them apart: leave one of them out, give one a proper `initial_law=`, or "
                    "(two seasonals) choose `harmonics` that differ."
                )


def _diffuse_modes(block: Block) -> np.ndarray:
    """Eigenvalues of the diffuse part, where the loading does not vary and the values are known."""
    chosen = np.array(block.diffuse, bool)
    if not chosen.any() or callable(block.loading) or not known(block.matrix):
        return np.zeros(0)
    return np.linalg.eigvals(np.asarray(block.matrix, float)[np.ix_(chosen, chosen)])


def _describe(mode: complex) -> str:
    angle = abs(np.angle(mode))
    return "level" if angle < 1e-6 else f"cycle of period {2 * np.pi / angle:.6g}"


def _covariance(law: Gaussian) -> Array:
    if law.covariance is not None:
        return law.covariance
    factor = jnp.diag(law.scale) if law.scale.ndim == 1 else law.scale
    return factor @ factor.T


def _joined(values: list[Array | None], blocks: list[Block], dtype: Any) -> Array | None:
    if all(v is None for v in values):
        return None
    return jnp.concatenate(
        [jnp.zeros(len(b.states), dtype) if v is None else v for v, b in zip(values, blocks)]
    )


def _contribution(block: Block, mean: Array, covariance: Array, inputs: Any) -> Contribution:
    loading = block.loading
    if callable(loading):
        if inputs is None:
            raise ValueError(
                "a component depends on the inputs: pass `components(posterior, inputs=u)` with `u` of "
                f"shape ({len(mean)}, k)."
            )
        inputs = jnp.asarray(inputs)
        if inputs.ndim != 2 or len(inputs) != len(mean):
            raise ValueError(f"`inputs` must have shape ({len(mean)}, k), got {inputs.shape}.")
        z = jax.vmap(lambda i, u: loading(Step(i, i, 1.0, u)))(jnp.arange(len(mean)), inputs)
    else:
        z = jnp.broadcast_to(loading, mean.shape)
    share = jnp.sum(z * mean, axis=-1)
    variance = jnp.einsum("ti,tij,tj->t", z, covariance, z)
    if block.offset is not None:
        share = share + block.offset
    return Contribution(share, jnp.sqrt(jnp.maximum(variance, 0.0)))
