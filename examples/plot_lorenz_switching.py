"""
Chaos from linear pieces: the Lorenz attractor
==============================================

Lorenz' system of 1963 is the emblem of chaos: the state circles in one lobe of a butterfly, then, at a time
that looks like chance, in the other. None of it is linear. But within a lobe the motion is nearly a rotation
about a point, and which lobe comes next depends on where the state is. That is a *recurrent* switching linear
model (Linderman et al. 2017): linear pieces, each with its part of the space. Here it is learned from ten
noisy channels alone; neither the states nor the equations are given.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

# %%
# The recording
# -------------
# The true path has no noise of its own. Ten channels see three standardised coordinates through a random
# matrix, with noise of a tenth of the coordinates' spread, 40 times in a unit of time. A thousand moments are
# learned from, the 300 that follow are kept back.

interval, count, total = 0.025, 1000, 1300
system = ss.Lorenz63(scale=0.0, substeps=5)
begun = 100  # moments until the path is on the attractor
times = interval * np.arange(begun + total)
path = ss.simulate(system, len(times), times=times, key=jax.random.key(100)).states
path = np.asarray(path)[begun:]

generator = np.random.default_rng(0)
loadings = generator.normal(size=(3, 10))
y = (path - path.mean(axis=0)) / path.std(axis=0) @ loadings
y = y + 0.1 * generator.normal(size=y.shape)
seen = y[:count]

# %%
# Learning
# --------
# Four regimes and three states. ``from_principal_components`` gives the observations a space to come from;
# ``VariationalEM`` guesses regimes twice, by clusters of places and moves and by an autoregressive hidden
# Markov model, goes on from both, and keeps what ends with the higher bound of the log likelihood.

start = ss.RecurrentSwitchingLinearGaussian.from_principal_components(seen, 4, 3)
learner = ss.VariationalEM(iterations=30, tolerance=1.0)
fitted = ss.fit(start, seen, learner=learner, key=jax.random.key(0))
posterior = ss.smooth(fitted.model, seen, method=ss.StructuredVariational(tolerance=1e-2))
print("bounds reached by the two starts:", *(f"{trace[-1]:.0f}" for trace in fitted.starts))

# %%
# States are determined up to an affine map. The one that takes them closest to the true coordinates is found
# by least squares; it is used for looking only. How much of the true path do they hold, and do the regimes,
# of which each is counted to the lobe in which it is mostly found, tell the lobes apart?

mean, regime = np.asarray(posterior.mean), np.asarray(posterior.most_likely)
design = np.column_stack([mean, np.ones(count)])
back = np.linalg.lstsq(design, path[:count], rcond=None)[0]
inferred = design @ back
error = np.mean((inferred - path[:count]) ** 2, axis=0) / path[:count].var(axis=0)
print("share of the true coordinates' variance:", *(f"{1 - e:.4f}" for e in error))

right = path[:count, 0] > 0
of_right = np.array([right[regime == k].mean() > 0.5 for k in range(4)])
print(f"moments in a regime of the right lobe: {np.mean(of_right[regime] == right):.1%}")

order = np.argsort([inferred[regime == k, 0].mean() for k in range(4)])
colours = np.empty(4, object)
colours[order] = ["#0072B2", "#56B4E9", "#E69F00", "#D55E00"]  # from left to right
ends = ["#0072B2", "#D55E00"]
names = np.empty(4, object)
names[order] = [f"regime {i + 1}" for i in range(4)]

figure, (one, other) = plt.subplots(
    1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained"
)
for lobe, name in enumerate(["left lobe", "right lobe"]):
    one.scatter(*path[:count][right == lobe][:, ::2].T, s=4, color=ends[lobe], label=name)
for k in order:
    other.scatter(*inferred[regime == k][:, ::2].T, s=4, color=colours[k], label=names[k])
for axis, title in ((one, "truth"), (other, "inferred from ten noisy channels")):
    axis.plot(*(path if axis is one else inferred)[:count, ::2].T, color="0.8", lw=0.5, zorder=0)
    axis.set(title=title, xlabel="$x$", ylabel="$z$")
    axis.legend(loc="upper center", ncols=2, markerscale=2.5, fontsize=8)
one.set_ylim(0, 60)

# %%
# The flow of each regime
# -----------------------
# A regime moves the state by a matrix and an offset: it has a velocity at every place and one point of rest.
# The velocities are drawn where the regime holds. The true system rests at the centre of each lobe (and at
# the origin). The outer regimes turn about points near these centres. The inner ones have no point of rest
# within reach: they lead the state down through the middle and round to one side.

matrix, offset = np.asarray(fitted.model.matrix), np.asarray(fitted.model.offset)
centres = np.sqrt(8 / 3 * 27) * np.array([-1, 1])
print(f"the system rests at x = y = ±{centres[1]:.1f}, z = 27")
figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), sharex=True, sharey=True, layout="constrained")
for axis, k in zip(axes, order):
    here = np.flatnonzero(regime[1:] == k)[::6]
    velocity = (mean[here] @ matrix[k].T + offset[k] - mean[here]) @ back[:3] / interval
    rest = np.linalg.solve(np.eye(3) - matrix[k], offset[k]) @ back[:3] + back[3]
    near = np.all(np.abs(rest - inferred.mean(axis=0)) < 4 * inferred.std(axis=0))
    print(f"{names[k]}:", f"rests at {rest.round(1)}" if near else "rests far away")
    axis.plot(*inferred[:, ::2].T, color="0.88", lw=0.5, zorder=0)
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 18, "width": 0.007}
    axis.quiver(*inferred[here, ::2].T, *velocity[:, ::2].T, color=colours[k], **arrows)
    axis.plot(centres, [27, 27], "k+", ms=9, label="centres of the lobes")
    axis.plot(*rest[::2], "o", mfc="none", color="k", ms=7, label="where the regime rests")
    axis.set(title=names[k], xlabel="$x$", xlim=(-22, 22), ylim=(0, 50))
axes[0].set_ylabel("$z$")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

# %%
# New data
# --------
# What are the pieces worth at the moments that were kept back? A linear model with as many states is the
# measure. Its predictions one moment ahead are exact; those of the learned model are made by particles.

linear = ss.LinearGaussian.from_principal_components(seen, 3)
linear = ss.fit(linear, seen, learner=ss.EM(iterations=100, tolerance=0.1)).model
cloud = ss.ParticleFilter(particles=2000)
by_linear = np.asarray(ss.filter(linear, y).pointwise)[count:]
by_pieces = ss.filter(fitted.model, y, method=cloud, key=jax.random.key(1)).pointwise
by_pieces = np.asarray(by_pieces)[count:]
print(f"nats a moment on new data: linear {by_linear.mean():.2f}, switching {by_pieces.mean():.2f}")

figure, (one, other) = plt.subplots(2, 1, figsize=(8, 4), sharex=True, layout="constrained")
clock = interval * np.arange(count, total)
one.plot(clock, path[count:, 0], color="0.3")
one.set(ylabel="true $x$", title="prediction of new data")
other.plot(clock, np.cumsum(by_pieces - by_linear))
other.set(xlabel="time (Lorenz' units)", ylabel="gain over the\nlinear model (nats)")

# %%
# Left alone
# ----------
# A simulation of the learned model goes on as the system does: it circles in one lobe and changes to the
# other when it has come far enough out. The linear model knows of one noisy rotation about one point.

onward = ss.simulate(fitted.model, count, key=jax.random.key(3)).states
alone = ss.simulate(linear, count, key=jax.random.key(3))
pieces = np.asarray(onward.state) @ back[:3] + back[3]
smoothed = np.asarray(ss.smooth(linear, seen).mean)
map_back = np.linalg.lstsq(np.column_stack([smoothed, np.ones(count)]), path[:count], rcond=None)[0]
rotation = np.asarray(alone.states) @ map_back[:3] + map_back[3]

figure, axes = plt.subplots(2, 3, figsize=(11, 5), sharex="row", sharey="row", layout="constrained")
clock = interval * np.arange(count)
for (top, bottom), x, title in (
    (axes[:, 0], path[:count], "Lorenz' system"),
    (axes[:, 1], pieces, "learned model, simulated"),
    (axes[:, 2], rotation, "linear model, simulated"),
):
    changes = np.count_nonzero(np.diff(np.sign(x[:, 0])))
    print(f"{title}: changes sides {changes} times")
    top.plot(*x[:, ::2].T, color="0.3", lw=0.6)
    top.set(title=title, xlabel="$x$")
    bottom.plot(clock, x[:, 0], color="0.3", lw=0.8)
    bottom.set(xlabel="time (Lorenz' units)")
axes[0, 0].set_ylabel("$z$")
axes[1, 0].set_ylabel("$x$")
plt.show()
