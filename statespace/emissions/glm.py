"""Generalised linear models of the observation, one for each state, on inputs and on the recording's past."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.emissions.base import (
    NONE,
    Emission,
    require_channels,
    require_values,
)
from statespace.emissions.basis import Basis
from statespace.emissions.families import FAMILIES, Family
from statespace.emissions.glm_likelihood import Regression
from statespace.emissions.newton import Curve, climb
from statespace.model import Step
from statespace.parameters import as_array, constant, parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


def _optional(value: Any) -> Array | None:
    return None if value is None else as_array(value)


class GLM(Emission):
    """Each channel follows a generalised linear model, whose coefficients the state chooses.

    In state k the linear predictor of channel n at time t is

        eta = bias[k, n] + weights[k, n] · u_t + sum_{n'} coupling[k, n, n'] · (basis features of n' before t)

    and the mean of the observation is a function of it, which ``link`` names. Channels are independent given
    state, inputs and past, so a missing one is left out of a sum; as a regressor a missing bin, or one before
    the beginning, counts as zero (no spike).

    Args:
        bias: shape ``(K, m)``; ``(1, m)`` where all states share it. For categories a further axis, as below.
        weights: of the inputs, shape ``(K, m, d)``; None for none. For observations of C categories, coded
            0 … C-1, shape ``(K, m, C-1, d)``: the log odds of each category but the first against the first.
        coupling: of the channels' own past, shape ``(K, m, m, B)``: to, from, basis function; None for none.
        scale: standard deviations of a Gaussian family, shape ``(K, m)`` or ``(1, m)``.
        family: "bernoulli", "categorical", "gaussian" or "poisson".
        link: the mean as a function of the linear predictor. Bernoulli: "sigmoid" (default), or, for
            whether there was any event at a rate, "exp" or "softplus"; Poisson: "exp" (default), "softplus",
            "sigmoid"; Gaussian: "identity" (default), "exp", "softplus", "sigmoid"; categorical: "softmax".
        columns: which columns of the recording's inputs are ``u``; None for all.
        basis: the functions over lags, such as :class:`statespace.emissions.RaisedCosine`.
        exposure: factor of a Poisson mean: the width of a bin, or the highest rate of a sigmoid.
        ridge: precision of a Gaussian prior of weights and coupling around zero.
        pooling: precision of a Gaussian prior of the coupling around its mean over the states, which is
            learned with it: ``w_k ~ N(w̄, 1 / pooling)``.

    Raises:
        ValueError: if a family or link is not known, shapes do not fit, or a setting is out of range.

    References:
        McCullagh & Nelder (1989), Generalized Linear Models; Escola et al. (2011), Hidden Markov models for
        the stimulus-response relationships of multistate neural systems; Li et al. (2024), One-hot
        generalized linear model for switching brain state discovery, ICLR (the learnable Gaussian prior).
    """

    family: str = eqx.field(static=True)
    link: str = eqx.field(static=True)
    columns: tuple[int, ...] | None = eqx.field(static=True)
    basis: Basis | None = eqx.field(static=True)
    exposure: float = eqx.field(static=True)
    pooling: float = eqx.field(static=True)
    weights: Float[Array, "K m *q d"] | None = parameter(converter=_optional)
    bias: Float[Array, "#K m *q"] = parameter()
    coupling: Float[Array, "K m m B"] | None = parameter(converter=_optional)
    scale: Float[Array, "#K m"] | None = parameter("positive", converter=_optional)
    ridge: Float[Array, ""] = constant(converter=as_array)

    def __init__(
        self,
        bias: Any,
        weights: Any = None,
        coupling: Any = None,
        scale: Any = None,
        *,
        family: str = "bernoulli",
        link: str | None = None,
        columns: int | tuple[int, ...] | None = None,
        basis: Basis | None = None,
        exposure: float = 1.0,
        ridge: Any = 0.0,
        pooling: float = 0.0,
    ):
        if family not in FAMILIES:
            raise ValueError(
                f"`family` of GLM must be one of {', '.join(map(repr, FAMILIES))}, got {family!r}."
            )
        links = FAMILIES[family].links
        self.family = family
        self.link = next(iter(links)) if link is None else link
        self.bias, self.weights, self.coupling, self.scale = bias, weights, coupling, scale
        self.columns = None if columns is None else tuple(int(c) for c in np.atleast_1d(columns))
        self.basis = basis
        self.exposure = float(exposure)
        self.ridge, self.pooling = ridge, float(pooling)

    def __check_init__(self) -> None:
        links = FAMILIES[self.family].links
        if self.link not in links:
            raise ValueError(
                f"`link` of a {self.family} GLM must be one of {', '.join(map(repr, links))}, got "
                f"{self.link!r}."
            )
        if not self.exposure > 0 or (self.exposure != 1 and self.family != "poisson"):
            raise ValueError(
                "`exposure` of GLM must be positive, and belongs to the family 'poisson', got "
                f"{self.exposure} for {self.family!r}."
            )
        for name in ("ridge", "pooling"):
            value = getattr(self, name)
            if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= 0):
                raise ValueError(f"`{name}` of GLM must not be negative, got {value}.")
        self._check_shapes()

    def _check_shapes(self) -> None:
        axes = 3 if self.family == "categorical" else 2
        if self.bias.ndim != axes:
            raise ValueError(
                f"`bias` of a {self.family} GLM must have shape (K, m{', C-1' if axes == 3 else ''}), got "
                f"{self.bias.shape}."
            )
        k, *rest = self.bias.shape
        given = [part for part in (self.weights, self.coupling) if part is not None]
        k = max([k, *(len(part) for part in given)])
        m = rest[0]
        wanted = {"weights": (k, *rest, "d"), "coupling": (k, m, m, "B"), "scale": (k, m)}
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            fixed = [s for s in shape if not isinstance(s, str)]
            shared = name == "scale" and value.shape == (1, m)
            if value.ndim != len(shape) or (
                list(value.shape[: len(fixed)]) != fixed and not shared
            ):
                words = ", ".join(map(str, shape))
                raise ValueError(f"`{name}` of GLM must have shape ({words}), got {value.shape}.")
        if self.bias.shape[0] not in (1, k):
            raise ValueError(f"`bias` of GLM is of {self.bias.shape[0]} states, but there are {k}.")
        if (self.scale is None) == (self.family == "gaussian"):
            raise ValueError(
                "`scale` is what a 'gaussian' GLM has and no other, got "
                f"{'none' if self.scale is None else 'one'} for {self.family!r}."
            )
        if (self.coupling is None) != (self.basis is None):
            raise ValueError(
                "`coupling` and `basis` of GLM go together: give both or neither, such as "
                "`basis=ss.emissions.Exponential(lags=5)`."
            )
        if self.coupling is not None and self.coupling.shape[-1] != self.basis.count:
            raise ValueError(
                f"`coupling` of GLM has {self.coupling.shape[-1]} weights for each pair of channels, but "
                f"`basis` has {self.basis.count} functions."
            )
        if self.coupling is not None and self.family == "categorical":
            raise ValueError(
                "`coupling` of GLM: the codes of categories are no regressors; give indicators of past "
                "categories as inputs instead."
            )
        if self.columns is not None and (
            self.weights is None or len(self.columns) != self.weights.shape[-1]
        ):
            count = 0 if self.weights is None else self.weights.shape[-1]
            raise ValueError(
                f"`columns` of GLM names {len(self.columns)} inputs, but `weights` has {count}."
            )

    @property
    def channels(self) -> int:
        """Number m of channels."""
        return self.bias.shape[1]

    @property
    def lags(self) -> int:
        """How many past observations the law depends on."""
        return 0 if self.basis is None else self.basis.lags

    @property
    def filters(self) -> Float[Array, "K m m L"]:
        """How each channel (second axis) responds to a spike of each (third), at lags 1 … L.

        Raises:
            ValueError: if there is no coupling.
        """
        if self.basis is None:
            raise ValueError("a GLM without `basis` and `coupling` has no filters.")
        return self.basis.filters(self.coupling)

    def check(self, y: Any) -> None:
        """Refuse observations that no state can make.

        Raises:
            ValueError: naming the first such entry, or the number of channels.
        """
        require_channels(self, y, self.channels)
        words, inside = self._family.support
        q = self.coefficients.shape[-1]
        require_values(f"a {self.family} GLM", y, lambda v: inside(v, q), words.format(q=q))

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one state."""
        blocks = []
        if self.weights is not None:
            blocks.append(self._drive(step.inputs))
        if self.coupling is not None:
            blocks.append(self.basis.newest(step.history).ravel())
        eta = self._predictors(jnp.concatenate(blocks)[None] if blocks else None)[0, state]
        scale = None if self.scale is None else self._by_state(self.scale)[state]
        return self._family.distribution(self.natural(eta), scale).to_event(1)

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every state; NaN entries are left out."""
        seen = ~jnp.isnan(y)
        eta = self._predictors(self.design(y, steps), len(y))
        value = jnp.where(seen, y, 0)[:, None]
        each = self._family.log_prob(value, self.natural(eta), self.scale)
        return jnp.sum(jnp.where(seen[:, None], each, 0), axis=-1)

    def natural(self, eta: Float[Array, "*n q"]) -> Float[Array, "*n q"]:
        """Natural parameters from linear predictors."""
        return self._family.links[self.link](eta) + math.log(self.exposure)

    def design(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T p"] | None:
        """The regressors of each moment: inputs, then features of the past; None if there are none."""
        blocks = []
        if self.weights is not None:
            blocks.append(self._drive(steps.inputs).astype(y.dtype))
        if self.coupling is not None:
            blocks.append(self.basis.features(y).reshape(len(y), -1))
        return jnp.concatenate(blocks, axis=1) if blocks else None

    def log_prior(self) -> Float[Array, ""]:
        """Log density of the Gaussian priors that ``ridge`` and ``pooling`` are, up to a constant."""
        parts = [part for part in (self.weights, self.coupling) if part is not None]
        total = -0.5 * self.ridge * sum(jnp.sum(part**2) for part in parts)
        if self.coupling is not None:
            spread = self.coupling - jnp.mean(self.coupling, axis=0)
            total = total - 0.5 * self.pooling * jnp.sum(spread**2)
        return jnp.asarray(total)

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> GLM:
        """The emission that maximises the sum of ``weights * log_probs`` plus the log prior, or raises it.

        By Fisher scoring with step halving from the present coefficients (iteratively reweighted least
        squares), a few steps at most; then the scale of a Gaussian family given them.
        """
        data = self.sums(y, steps, weights)
        own = self.coefficients
        shape, p = own.shape, own.shape[2] * own.shape[3]
        pooled = self._pooled
        held, precision = self._held(frozen).ravel(), self._precision().ravel()

        def curve(flat: Array) -> Curve:
            found = data.curve(flat[..., :p].reshape(shape))
            # the prior: ridge, and the coupling's distance from its mean, which are coefficients as well
            across = flat[..., pooled] - flat[..., p:]
            pull = self.pooling * across
            slope = found.gradient - precision * flat[..., :p]
            slope = jnp.concatenate([slope.at[..., pooled].add(-pull), pull], axis=-1)
            penalty = precision * flat[..., :p] ** 2
            value = found.value - 0.5 * (_summed(penalty) + _summed(pull * across))
            information = self._with_prior(found.information, precision)
            one = jnp.eye(len(held), dtype=slope.dtype)
            information = jnp.where(held | held[:, None], one, information)
            return Curve(value, jnp.where(held, 0, slope), information)

        flat = own.reshape(*shape[:2], p)
        centre = jnp.mean(flat[..., pooled], axis=0, keepdims=True)
        start = jnp.concatenate([flat, jnp.broadcast_to(centre, (shape[0], *centre.shape[1:]))], -1)
        held = jnp.concatenate([held, held[pooled]])
        shared = centre.shape[-1] + (shape[-1] if len(self.bias) < shape[0] else 0)
        found = climb(curve, start, shared)[..., :p].reshape(shape)
        new = self.with_coefficients(found)
        if self.scale is None or "scale" in frozen:
            return new
        return eqx.tree_at(lambda e: e.scale, new, data.scale(found, floor))

    def sums(
        self, y: Float[Array, "S T m"], steps: Step, weights: Float[Array, "S T K"]
    ) -> Regression:
        """What the weighted log likelihood needs of the data: see :meth:`Regression.curve`."""
        design = jax.vmap(self.design)(y, steps)
        flat = lambda a: a.reshape(-1, a.shape[-1])
        y, weights = flat(y), flat(weights)
        one = jnp.ones((len(y), 1), y.dtype)
        design = one if design is None else jnp.concatenate([flat(design), one], axis=1)
        return Regression(self, design, y, weights)

    @property
    def _family(self) -> Family:
        return FAMILIES[self.family]

    def _by_state(self, value: Array) -> Array:
        return jnp.broadcast_to(value, (self.states, *value.shape[1:]))

    def _drive(self, inputs: Array | None) -> Array:
        """Of all inputs, those that drive the observations.

        Raises:
            ValueError: if there are none, or not as many as there are weights.
        """
        d = self.weights.shape[-1]
        need = d if self.columns is None else max(self.columns) + 1
        if inputs is None:
            raise ValueError(
                f"the GLM needs inputs of {need} columns, and the recording has none: "
                "`ss.Series(y, inputs=u)` with `u` of shape (T, k)."
            )
        have = inputs.shape[-1]
        if have < need or (self.columns is None and have != d):
            raise ValueError(
                f"the GLM needs {need} columns of inputs, and the recording has {have}; name those that "
                "drive it with `columns`."
            )
        return inputs if self.columns is None else inputs[..., jnp.asarray(self.columns)]

    @property
    def coefficients(self) -> Float[Array, "K m p q"]:
        """All coefficients of each linear predictor: inputs, past, bias."""
        bias = self._by_state(self.bias)
        bias = bias if bias.ndim == 3 else bias[..., None]
        blocks = []
        if self.weights is not None:
            w = self.weights
            blocks.append(jnp.swapaxes(w, 2, 3) if w.ndim == 4 else w[..., None])
        if self.coupling is not None:
            blocks.append(self.coupling.reshape(*self.coupling.shape[:2], -1, 1))
        return jnp.concatenate([*blocks, bias[:, :, None]], axis=2)

    def with_coefficients(self, values: Float[Array, "K m p q"]) -> GLM:
        """The same GLM with other :attr:`coefficients`."""
        d = self._inputs
        bias = values[: len(self.bias), :, -1]
        new = eqx.tree_at(lambda e: e.bias, self, bias.reshape(self.bias.shape))
        if self.weights is not None:
            w = jnp.swapaxes(values[:, :, :d], 2, 3).reshape(self.weights.shape)
            new = eqx.tree_at(lambda e: e.weights, new, w)
        if self.coupling is not None:
            w = values[:, :, d:-1].reshape(self.coupling.shape)
            new = eqx.tree_at(lambda e: e.coupling, new, w)
        return new

    @property
    def _inputs(self) -> int:
        return 0 if self.weights is None else self.weights.shape[-1]

    @property
    def _pooled(self) -> slice:
        """Of the flattened coefficients, those that have a prior around their mean over the states."""
        width = 0 if self.coupling is None or not self.pooling else self.coupling[0, 0].size
        return slice(self._inputs, self._inputs + width)

    def _precision(self) -> Float[Array, "p q"]:
        """Of the prior of each coefficient around zero: none of the bias."""
        return jnp.zeros_like(self.coefficients[0, 0]).at[:-1].set(self.ridge)

    def _with_prior(
        self, information: Float[Array, "K m p p"], precision: Float[Array, " p"]
    ) -> Float[Array, "K m r r"]:
        """The information with that of the prior, and with the mean coupling as further coefficients."""
        p, pooled = len(precision), self._pooled
        extra = pooled.stop - pooled.start
        both = jnp.zeros((*information.shape[:2], p + extra, p + extra), information.dtype)
        both = both.at[..., :p, :p].set(information + jnp.diag(precision))
        tie = self.pooling * jnp.eye(extra, dtype=information.dtype)
        both = both.at[..., pooled, pooled].add(tie).at[..., p:, p:].set(tie)
        return both.at[..., pooled, p:].set(-tie).at[..., p:, pooled].set(-tie)

    def _held(self, frozen: frozenset[str]) -> Bool[Array, "p q"]:
        """Which coefficients stay at their values."""
        held = jnp.zeros(self.coefficients.shape[2:], bool)
        d = self._inputs
        for name, part in {"weights": slice(0, d), "coupling": slice(d, -1), "bias": -1}.items():
            held = held.at[part].set(name in frozen)
        return held

    def _predictors(self, design: Array | None, length: int = 1) -> Float[Array, "T K m q"]:
        c = self.coefficients
        if design is None:
            return jnp.broadcast_to(c[:, :, -1], (length, *c.shape[:2], c.shape[3]))
        return jnp.einsum("td,kmdq->tkmq", design, c[:, :, :-1]) + c[:, :, -1]


def _summed(values: Float[Array, "K m p"]) -> Float[Array, " m"]:
    return jnp.sum(values, axis=(0, 2))
