"""
What moves a population of neurons
==================================

Neurons of the motor cortex fire the more, the nearer the hand moves to their preferred direction. Seen
without the hand, that is a population whose log rates share a few hidden states: a *Poisson linear dynamical
system*. This page finds the states from the spikes alone.

The movement is real: a monkey's hand in run 1 of Flint et al. (2012). The spikes are simulated along it, as
spike trains of whole populations are not part of any package: forty neurons with cosine tuning to velocity
(Moran & Schwartz 1999), log-linear rates and Poisson counts in bins of 100 ms. So the truth is known, and the
model is not told.
"""

# %%
# Spikes along a real movement
# ----------------------------

# needs-data: flint_run1

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

width = 0.1  # seconds per bin
velocity = ss.datasets.load("flint_run1")[["velocity_x", "velocity_y"]].to_numpy()[:1000]
velocity = velocity / velocity.std(axis=0)

rng = np.random.default_rng(7)
neurons = 40
direction = rng.uniform(0, 2 * np.pi, neurons)
tuning = 0.45 * np.column_stack([np.cos(direction), np.sin(direction)])
log_rate = np.log(rng.uniform(2.0, 12.0, neurons))  # of spikes per second at rest
counts = rng.poisson(width * np.exp(log_rate + velocity @ tuning.T)).astype(float)
train, test = counts[:750], counts[750:]
print(
    f"{counts.sum(axis=1).mean():.1f} spikes per bin, {100 * (counts == 0).mean():.0f} % of entries zero"
)

# %%
# Learning
# --------
# A start comes from the covariances of the counts, which Poisson noise distorts in a known way. Expectation
# maximisation goes on from there: the nearest normal law of the states (conjugate variational inference),
# then dynamics and tuning given it. What rises is a lower bound of the log likelihood.

begin = time.perf_counter()
start = ss.PoissonLinearDynamics.from_counts(train, state_dim=2, exposure=width)
variational = ss.ConjugateVI()
learner = ss.EM(iterations=100, tolerance=0.2, progress=False)
result = ss.fit(start, train, method=variational, learner=learner)
model = result.model
print(
    f"log likelihood, at least {result.trace[0]:.1f} at the start, {result.trace[-1]:.1f} at the end"
)
print(f"{result.iterations} iterations in {time.perf_counter() - begin:.0f} s")

# %%
# New data, and a quarter of the neurons hidden
# ---------------------------------------------
# In the last 25 seconds every fourth neuron is hidden: its counts are NaN. The states are inferred from the
# others. They are determined up to a linear map, which here may be chosen by regression on the velocity. They
# follow the hand, which the model never saw; the bands hold the middle 90 %.

hidden = np.arange(neurons) % 4 == 0
seen = np.where(hidden, np.nan, test)
hand = velocity[750:]
methods = {
    "Laplace": ss.Laplace(),
    "variational": variational,
    "expectation propagation": ss.ExpectationPropagation(),
}
smoothed = {name: ss.smooth(model, seen, method=method) for name, method in methods.items()}

posterior = smoothed["variational"]
mean, covariance = np.asarray(posterior.mean), np.asarray(posterior.covariance)
design = np.column_stack([mean, np.ones(len(mean))])
turn = np.linalg.lstsq(design, hand, rcond=None)[0]
found = design @ turn
sd = np.sqrt(np.einsum("ki,tkl,li->ti", turn[:2], covariance, turn[:2]))
explained = 1 - ((hand - found) ** 2).sum(axis=0) / ((hand - hand.mean(axis=0)) ** 2).sum(axis=0)

seconds = np.arange(len(test)) * width
fig, axes = plt.subplots(2, 1, figsize=(7.5, 3.8), sharex=True, layout="constrained")
for i, (ax, name) in enumerate(zip(axes, "xy")):
    ax.plot(seconds, hand[:, i], color="black", lw=1.0, label="hand")
    ax.plot(seconds, found[:, i], color="#2b6a99", lw=1.4, label="from spikes alone")
    low, high = found[:, i] - 1.64 * sd[:, i], found[:, i] + 1.64 * sd[:, i]
    ax.fill_between(seconds, low, high, color="#2b6a99", alpha=0.2, lw=0)
    ax.set_ylabel(f"velocity {name}\n(standard deviations)")
    ax.set_title(f"{100 * explained[i]:.0f} % of the variance", fontsize="small", loc="right")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 0.95), ncols=2)
axes[1].set_xlabel("seconds")
plt.show()

# %%
# What was counted, and the rates that the states make of it; neurons sorted by preferred direction, the
# hidden ones among them.


def rates(model, posterior):
    """Expected counts: ``E[exp(h · x + d)]`` over the states' law."""
    h, d = np.asarray(model.observation_matrix), np.asarray(model.observation_offset)
    spread = np.einsum("mi,tij,mj->tm", h, np.asarray(posterior.covariance), h)
    return width * np.exp(np.asarray(posterior.mean) @ h.T + d + spread / 2)


order = np.argsort(direction)
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), sharey=True, layout="constrained")
panels = {"counted": test, "expected": rates(model, posterior)}
for ax, (title, values) in zip(axes, panels.items()):
    image = ax.imshow(
        values[:, order].T / width, aspect="auto", cmap="Greys", vmin=0, vmax=40,
        extent=[0, seconds[-1], 0, neurons], origin="lower", interpolation="nearest",
    )  # fmt: skip
    ax.set(title=title, xlabel="seconds")
axes[0].set_ylabel("neuron, by preferred direction")
fig.colorbar(image, ax=axes, label="spikes per second")
plt.show()

# %%
# How well are the hidden neurons predicted?
# ------------------------------------------
# The score is in bits per spike, against each neuron's mean rate ("co-smoothing"). The baseline is a linear
# Gaussian model of the counts with as many states, whose predictions are taken as Poisson rates too.


def bits_per_spike(expected):
    """Gain over the mean rates of training, for the hidden neurons."""
    y, mean = test[:, hidden], train[:, hidden].mean(axis=0)
    gain = y * np.log(expected[:, hidden] / mean) - expected[:, hidden] + mean
    return gain.sum() / y.sum() / np.log(2)


gaussian = ss.LinearGaussian.from_principal_components(train, 2)
gaussian = ss.fit(
    gaussian, train, learner=ss.EM(iterations=200, tolerance=0.2, progress=False)
).model
states = np.asarray(ss.smooth(gaussian, seen).mean)
linear = states @ np.asarray(gaussian.observation_matrix).T + np.asarray(
    gaussian.observation_offset
)

score = {"linear Gaussian": bits_per_spike(np.maximum(linear, 0.02))}
score |= {name: bits_per_spike(rates(model, found)) for name, found in smoothed.items()}
score["true rates"] = bits_per_spike(width * np.exp(log_rate + hand @ tuning.T))

fig, ax = plt.subplots(figsize=(7.0, 2.6), layout="constrained")
colours = ["0.6" if name in ("linear Gaussian", "true rates") else "#2b6a99" for name in score]
ax.barh(list(score), list(score.values()), color=colours, height=0.6)
for i, value in enumerate(score.values()):
    ax.text(value + 0.002, i, f"{value:.3f}", va="center", fontsize="small")
ax.set(xlabel="bits per spike, hidden neurons", xlim=(0, 1.12 * max(score.values())))
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The linear model adds up where rates multiply, and gives every bin the same noise. What is left to the true
# rates, which know the hand, is the states' uncertainty.
#
# How good are the approximations?
# --------------------------------
# Particles estimate the likelihood of the new data without bias. Beside them Laplace's method is a nat off;
# the variational value, which is a lower bound, and expectation propagation are within the estimate's error.

method = ss.ParticleFilter(particles=500, proposal="linearised")
keys = jax.random.split(jax.random.key(0), 6)
runs = jnp.array([ss.log_likelihood(model, seen, method=method, key=key) for key in keys])
print("log likelihood of the new data")
for name, found in smoothed.items():
    print(f"{name:<32}{found.log_likelihood:10.2f}")
weights = jnp.exp(runs - runs.max())
error = weights.std() / weights.mean() / np.sqrt(len(keys))
print(f"{'particles':<32}{jnp.log(weights.mean()) + runs.max():10.2f} ± {error:.2f}")
