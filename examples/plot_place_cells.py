"""
Where is the rat? Decoding position online
==========================================

Place cells of the hippocampus fire where the animal is. A hundred of them, as Poisson neurons, are simulated
along the path of a real rat that forages in a box of 1 m × 1 m (Sargolini et al. 2006). A decoder learns to
read the position from their spikes in the first half of the ten minutes, and then runs online in the second:
one update per bin, in constant memory, as in an experiment in a closed loop.
"""

# %%
# A path, and cells along it
# --------------------------

# needs: ratinabox

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

width = 0.2  # seconds per bin
path = ss.datasets.load("sargolini").interpolate().bfill()
clock = np.arange(path.index[0], path.index[-1] - width, width)
position = np.stack([np.interp(clock + width / 2, path.index, path[c]) for c in path], axis=1)

rng = np.random.default_rng(1)
fields = rng.uniform(position.min(axis=0), position.max(axis=0), size=(100, 2))
peaks = rng.uniform(5.0, 15.0, size=100)  # spikes per second
distance = ((position[:, None] - fields) ** 2).sum(axis=2)
counts = rng.poisson(width * (0.2 + peaks * np.exp(-0.5 * distance / 0.12**2)))
activity = np.sqrt(counts)  # about the same noise at every rate
half = len(clock) // 2
print(f"{len(clock)} bins, {counts.sum(axis=1).mean():.1f} spikes in each on average")

# %%
# Learn, then decode online
# -------------------------
# The regression is the mean position of the bins of the first half, weighted by how alike the activity was;
# how far it is off for each pattern of activity is learned in the same way.

model = ss.learn_decoder(position[:half], activity[:half])
decoder = ss.online(model, dt=width)
state, decoded = decoder.init(), []
for spikes in activity[half:]:
    state = decoder.update(state, spikes)
    decoded.append(state.mean)
decoded = np.asarray(decoded)

# %%
# An update must be done long before the next bin ends. ``latency`` feeds the recording to the decoder once
# more and times each update until its result is there.

taken = ss.diagnostics.latency(decoder, activity[half:])
print(f"{taken}, for bins of {1e6 * width:.0f} µs")


def error(decoded):
    """Root mean squared distance from the rat in centimetres."""
    return 100 * np.sqrt(np.mean(np.sum((decoded - position[half:]) ** 2, axis=1)))


each = jax.vmap(model.observation.regression.mean)(jnp.asarray(activity[half:]))
smoothed = ss.smooth(model, activity[half:])
print(f"regression of each bin alone {error(np.asarray(each)):5.1f} cm")
print(f"online filter                {error(decoded):5.1f} cm")
print(f"smoother                     {error(np.asarray(smoothed.mean)):5.1f} cm")

# %%
# A minute of the path
# --------------------
# The regression by itself jumps about. The filter knows how a rat moves.

shown = slice(300, 600)
fig, axes = plt.subplots(1, 3, figsize=(9.0, 3.7), sharex=True, sharey=True, layout="constrained")
panels = {
    "each bin alone": np.asarray(each),
    "online filter": decoded,
    "smoother": np.asarray(smoothed.mean),
}
for ax, (title, found) in zip(axes, panels.items()):
    ax.scatter(*fields.T, s=peaks * 4, color="0.92", zorder=0)
    ax.plot(*position[half:][shown].T, color="black", lw=1.0, label="rat")
    ax.plot(*found[shown].T, color="#2b6a99", lw=1.0, alpha=0.9, label="decoded")
    ax.set_title(f"{title}: {error(found):.1f} cm", fontsize="medium")
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("x (m)")
axes[0].set_ylabel("y (m)")
axes[0].legend(frameon=False, fontsize="small", loc="lower left")
plt.show()

# %%
# When the electrode drops out
# ----------------------------
# For two seconds nothing is recorded: rows of NaN. The filter stays about where it was, and its uncertainty
# grows; the smoother ties both ends together.

gap = activity[half:].copy()
gap[400:410] = np.nan
filtered, smoothed = ss.filter(model, gap), ss.smooth(model, gap)
seconds = np.arange(380, 430) * width
fig, ax = plt.subplots(figsize=(7.0, 3.0), layout="constrained")
ax.plot(seconds, position[half:][380:430, 0], color="black", lw=1.2, label="rat")
for name, posterior, colour in (("filter", filtered, "#c4572e"), ("smoother", smoothed, "#2b6a99")):
    mean, sd = np.asarray(posterior.mean)[380:430, 0], np.asarray(posterior.std)[380:430, 0]
    ax.plot(seconds, mean, color=colour, lw=1.5, label=name)
    ax.fill_between(seconds, mean - 1.64 * sd, mean + 1.64 * sd, color=colour, alpha=0.15, lw=0)
ax.axvspan(400 * width, 409 * width, color="0.94", zorder=0)
ax.set(xlabel="seconds", ylabel="x (m)")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small")
plt.show()
