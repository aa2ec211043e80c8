"""
Weather on a ring: Lorenz' model of 1996
========================================

Weather forecasts begin with an *analysis*: what the state of the atmosphere is, given a forecast and new
observations. Lorenz' model of 1996 is the smallest weather there is: forty numbers on a circle of latitude,
in which waves travel and errors double in about two days. Ensembles of a few dozen forecasts follow it, as
they follow the real one, if they know that far-off observations have nothing to say.
"""

# %%
# Two months of truth
# -------------------
# A time of 0.05 is about six hours. Every six hours all variables are observed, with noise of standard
# deviation 1; the variables themselves vary by about 3.6.

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

moments = 240
times = 0.05 * np.arange(moments)
days = times * 5
rest = 8.0 + 0.01 * np.eye(40)[0]
turbulent = ss.simulate(
    ss.Lorenz96(scale=0.0),
    400,
    key=jax.random.key(0),
    times=0.05 * np.arange(400),
    initial_state=rest,
)
model = ss.Lorenz96(scale=0.02)
truth = ss.simulate(
    model, moments, key=jax.random.key(1), times=times, initial_state=turbulent.states[-1]
)
data = ss.Series(truth.y, times=times)

# %%
# Ensembles
# ---------
# Twenty members cannot tell a covariance of forty variables: between far-off ones they see correlations that
# are not there. ``Localisation`` cuts them off beyond twice its radius; a little inflation makes up for
# spread that is lost at each analysis.

places = np.arange(40)
near = ss.Localisation(4.0, states=places, observations=places, period=40.0)
methods = {
    "ensemble, 20 members": ss.EnsembleKalman(members=20, inflation=1.03),
    "the same, localised": ss.EnsembleKalman(members=20, inflation=1.03, localisation=near),
}
key = jax.random.key(2)
found = {name: ss.filter(model, data, method=m, key=key) for name, m in methods.items()}

# %%
# Later observations help too. The iterated smoother needs derivatives of the model and covariances of all
# forty variables: it linearises round the whole path until that no longer moves. For forty variables that is
# quick, and for forty million it is not. It is given the first two weeks.

weeks = ss.Series(truth.y[:56], times=times[:56])
smoothed = ss.smooth(model, weeks, method=ss.IteratedSmoother(tolerance=1e-3))
print(f"iterations: {int(smoothed.convergence.iterations)}")


def rmse(posterior, moments):
    """Root mean square error over the variables and some moments."""
    apart = np.asarray(posterior.mean)[moments] - np.asarray(truth.states)[moments]
    return float(np.sqrt(np.mean(apart**2)))


print(f"\n{'':24s}{'second week':>14s}{'after day 25':>14s}")
print(f"{'observations alone':24s}{1.0:14.2f}{1.0:14.2f}")
for name, posterior in found.items():
    early, late = rmse(posterior, slice(28, 56)), rmse(posterior, slice(100, None))
    print(f"{name:24s}{early:14.2f}{late:14.2f}")
print(f"{'iterated smoother':24s}{rmse(smoothed, slice(28, 56)):14.2f}{'-':>14s}")

# %%
# Truth, analysis, error
# ----------------------
# Time runs upwards. Waves of depressions travel westwards in groups that travel eastwards. The localised
# ensemble knows nothing at first, has the truth within a week, and keeps it.

analysis = np.asarray(found["the same, localised"].mean)
panels = {
    "truth": (np.asarray(truth.states), "viridis", (-8, 12)),
    "analysis": (analysis, "viridis", (-8, 12)),
    "error": (analysis - np.asarray(truth.states), "RdBu_r", (-2, 2)),
}
fig, axes = plt.subplots(1, 3, figsize=(8.2, 4.4), sharey=True, layout="constrained")
images = []
for ax, (title, (values, colours, (low, high))) in zip(axes, panels.items()):
    images.append(
        ax.imshow(
            values,
            origin="lower",
            aspect="auto",
            cmap=colours,
            vmin=low,
            vmax=high,
            extent=(-0.5, 39.5, days[0], days[-1]),
            interpolation="nearest",
        )
    )
    ax.set_title(title)
    ax.set_xlabel("place on the ring")
axes[0].set_ylabel("days")
fig.colorbar(images[1], ax=axes[:2], shrink=0.7, label="variable")
fig.colorbar(images[2], ax=axes[2], shrink=0.7, label="analysis − truth")
plt.show()

# %%
# Does the ensemble know how wrong it is?
# ---------------------------------------
# The spread of its members should be the size of its error, day by day. The localised one's is from the first
# days on; the other is sure of itself while it is lost, and needs a month to become what it thinks it is.

fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.2), sharey=True, layout="constrained")
for ax, name in zip(axes, methods):
    posterior = found[name]
    apart = np.asarray(posterior.mean - truth.states)
    spread = np.sqrt(np.mean(np.asarray(posterior.std) ** 2, axis=1))
    ax.plot(days, np.sqrt(np.mean(apart**2, axis=1)), color="black", label="error")
    ax.plot(days, spread, color="#c4572e", label="spread")
    ax.set_title(name, fontsize="medium")
    ax.set_xlabel("days")
    ax.set_yscale("log")
    ax.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("root mean square")
axes[0].legend(frameon=False)
plt.show()

# %%
# Half of the variables
# ---------------------
# Now every second variable is observed. What lies between is carried there by the waves.

half = ss.Lorenz96(scale=0.02, every=2)
seen = ss.Series(truth.y[:, ::2], times=times)
near_half = ss.Localisation(4.0, states=places, observations=places[::2], period=40.0)
ensemble = ss.EnsembleKalman(members=40, inflation=1.06, localisation=near_half)
filtered = ss.filter(half, seen, method=ensemble, key=key)
apart = np.asarray(filtered.mean - truth.states)[100:] ** 2
print(f"RMSE of observed variables:   {np.sqrt(apart[:, ::2].mean()):.2f}")
print(f"RMSE of unobserved variables: {np.sqrt(apart[:, 1::2].mean()):.2f}")

fig, ax = plt.subplots(figsize=(8.2, 3.0), layout="constrained")
place = 21
low, high = (np.asarray(bound)[:, place] for bound in filtered.interval(0.9))
ax.fill_between(days, low, high, color="#c4572e", alpha=0.2, lw=0, label="ensemble, 90 %")
ax.plot(days, np.asarray(filtered.mean)[:, place], color="#c4572e", lw=1.4, label="ensemble")
ax.plot(days, truth.states[:, place], color="black", lw=1.0, ls="--", label="truth")
ax.set_xlabel("days")
ax.set_ylabel(f"variable {place}, not observed")
ax.legend(frameon=False, ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
ax.spines[["top", "right"]].set_visible(False)
plt.show()
