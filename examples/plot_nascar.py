"""
Regimes that depend on the state: the race track
=================================================

Many systems are nearly linear wherever one looks, and differently so in different places. A *recurrent*
switching linear model says just that: the state moves by one of several linear models, and which one is
next depends on where the state is. The track of Linderman et al. (2017) is the standard trial: two straights
and two bends in a plane that is never seen, only ten noisy projections of it.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import linear_sum_assignment

import statespace as ss

key = jax.random.key(0)
truth = ss.RecurrentSwitchingLinearGaussian.nascar(key=jax.random.key(10))
states, y = ss.simulate(truth, 900, key=jax.random.key(11))
seen = y[:700]
regime = np.asarray(states.regime)

# %%
# Learning needs a start. ``from_principal_components`` gives the observations a plane to come from;
# ``VariationalEM`` then learns a linear model, guesses regimes from its smoothed states, once by clusters of
# places and moves and once by an autoregressive hidden Markov model, and goes on from both. What it raises is
# a lower bound of the log likelihood; the guess that ends higher is kept.

start = ss.RecurrentSwitchingLinearGaussian.from_principal_components(seen, 4, 2)
fitted = ss.fit(start, seen, learner=ss.VariationalEM(iterations=50, tolerance=0.5), key=key)
posterior = ss.smooth(fitted.model, seen, method=ss.StructuredVariational(tolerance=1e-2))

# %%
# The states are determined up to a linear map and the regimes up to their order, so both are matched with the
# truth before they are compared.

found = np.asarray(posterior.most_likely)
table = np.eye(4)[regime[:700]].T @ np.eye(4)[found]
rows, columns = linear_sum_assignment(-table)
order = np.empty(4, int)
order[columns] = rows
print(f"in the right regime: {table[rows, columns].sum() / 700:.1%}")

mean = np.asarray(posterior.mean)
design = np.column_stack([mean, np.ones(700)])
back = np.linalg.lstsq(design, np.asarray(states.state[:700]), rcond=None)[0]
track = design @ back

colours = np.array(["#0072B2", "#D55E00", "#009E73", "#CC79A7"])
labels = ["right bend", "left bend", "to the right", "to the left"]


def draw(axes, x, path, title):
    """A path in the plane, coloured by regime."""
    axes.plot(*x.T, color="0.8", lw=0.6, zorder=0)
    for k in range(4):
        axes.scatter(*x[path == k].T, s=5, color=colours[k], label=labels[k])
    axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")


figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained"
)
draw(left, np.asarray(states.state[:700]), regime[:700], "truth")
draw(right, track, order[found], "inferred")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, markerscale=3)

# %%
# In each regime the state has a velocity of its own. That of the learned model is mapped back to the
# coordinates of the truth.


def velocity(model, x, path):
    """Expected moves from states in their next regimes."""
    matrix, offset = np.asarray(model.matrix)[path], np.asarray(model.offset)[path]
    return np.einsum("tij,tj->ti", matrix, x) + offset - x


x = np.asarray(states.state[:700])
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True, sharey=True, layout="constrained")
for axis, places, move, path, title in (
    (axes[0], x, velocity(truth, x[:-1], regime[1:700]), regime[1:700], "truth"),
    (
        axes[1],
        track,
        velocity(fitted.model, mean[:-1], found[1:]) @ back[:2],
        order[found[1:]],
        "learned",
    ),
):
    few = slice(None, None, 4)
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 0.4, "width": 0.004}
    axis.quiver(*places[:-1][few].T, *move[few].T, color=colours[path[few]], **arrows)
    axis.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")

# %%
# What is a model worth that was fitted to 700 moments at the 200 that follow? A linear model with as many
# states sees one slow rotation in the track. Its predictions are exact; those of the switching models are
# made by particles, which take any regimes.

linear = ss.LinearGaussian.from_principal_components(seen, 2)
linear = ss.fit(linear, seen, learner=ss.EM(iterations=100, tolerance=0.1)).model
particles = ss.ParticleFilter(particles=1000)
ahead = {
    "linear": ss.filter(linear, y).pointwise,
    "learned": ss.filter(fitted.model, y, method=particles, key=key).pointwise,
    "truth": ss.filter(truth, y, method=particles, key=key).pointwise,
}
gains = {name: np.asarray(value)[700:] for name, value in ahead.items()}
for name, value in gains.items():
    print(f"{name:8s} {value.mean():7.3f} nats a moment on new data")

figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
for name, style in (("learned", "-"), ("truth", "--")):
    axis.plot(np.arange(700, 900), np.cumsum(gains[name] - gains["linear"]), style, label=name)
axis.set(
    xlabel="moment", ylabel="gain over the linear model (nats)", title="prediction of new data"
)
axis.legend()

# %%
# The learned model races by itself: a simulation from its own law of the first state keeps to the track,
# bends and straights. A linear model knows a noisy rotation only.

onward = ss.simulate(fitted.model, 300, key=jax.random.key(3)).states
alone = ss.simulate(linear, 300, key=jax.random.key(3)).states
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
onward_path = np.asarray(onward.state) @ back[:2] + back[2]
draw(left, onward_path, order[np.asarray(onward.regime)], "learned model, simulated")
right.plot(*np.asarray(alone).T, color="0.4", lw=0.8)
right.set(title="linear model, simulated", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
plt.show()
