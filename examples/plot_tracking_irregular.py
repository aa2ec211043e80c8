"""
Tracking at irregular times
===========================

A rat forages in a box, and a tracker says every now and then where it is: at moments that follow no
clock, with an error of two centimetres, and not at all while the cable hides its head. Where was it
in between, how fast did it run, and how sure can one be?

A model in continuous time has no trouble with any of this. It says how position and velocity change
over *any* span of time, and is discretised exactly for whatever spans the recording has.
"""

# needs: ratinabox

# %%
# A path that is known
# --------------------
# The path is that of a real rat (Sargolini et al. 2006), measured at 50 Hz. From a minute of it we
# make the poor recording: a fix every 0.25 s on average, at random, with noise, and nothing for
# four seconds. So the truth is at hand to compare with.

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

path = 100 * ss.datasets.load("sargolini").loc[60:120]  # in cm
path.columns = ["x (cm)", "y (cm)"]
clock = path.index.to_numpy()
rng = np.random.default_rng(3)
kept = rng.random(len(path)) < 0.02 / 0.25
kept[(clock > 82) & (clock < 86)] = False
fixes = path[kept] + 2.0 * rng.normal(size=(kept.sum(), 2))
gaps = np.diff(fixes.index)
print(f"{len(fixes)} fixes; time between them from {gaps.min():.2f} to {gaps.max():.2f} s")

# %%
# Two ideas of a running rat
# --------------------------
# Both have position and velocity as their state, and noise in the acceleration. Under *constant
# velocity* a velocity is kept until noise has changed it; in an *integrated Ornstein–Uhlenbeck*
# process it is also forgotten at some ``rate``, so that a rat of which nothing is heard is expected
# to stop rather than to leave the box. Nothing is said of times: they are the index of the data.
# The start is exactly diffuse.

models = {
    "constant velocity": ss.ConstantVelocity(acceleration_scale=20.0, noise_scale=1.0),
    "forgetful velocity": ss.IntegratedOrnsteinUhlenbeck(rate=1.0, scale=20.0, noise_scale=1.0),
}
fits = {name: ss.fit(model, fixes) for name, model in models.items()}
for fit in fits.values():
    print(fit.summary())

# %%
# The tracker's error, which was two centimetres, is found from the fixes alone. So is the time for
# which a rat keeps its velocity, ``1 / rate``, in seconds.
#
# Everywhere between the fixes
# ----------------------------
# ``forecast`` answers for any moments, inside the recording as well as after it: here for ten in
# each second. Its ``state`` is the posterior of position and velocity there.

truth = path.iloc[::5].to_numpy()
seconds = path.index.to_numpy()[::5]
answers = {name: ss.forecast(f.model, fixes, times=seconds).state for name, f in fits.items()}
between = np.column_stack([np.interp(seconds, fixes.index, fixes[axis]) for axis in fixes])
blind = (seconds > 82) & (seconds < 86)


def distance(estimate, where):
    """Root-mean-square distance from the path, in cm."""
    return np.sqrt(((estimate - truth)[where] ** 2).sum(axis=1).mean())


print(f"{'':22}{'seen':>12}{'hidden':>12}{'in 90 % band':>16}")
print(f"{'straight lines':22}{distance(between, ~blind):9.2f} cm{distance(between, blind):9.2f} cm")
for name, state in answers.items():
    position = np.asarray(state.mean)[:, :2]
    low, high = (np.asarray(bound)[:, :2] for bound in state.interval(0.9))
    share = ((truth >= low) & (truth <= high)).mean()
    print(
        f"{name:22}{distance(position, ~blind):9.2f} cm{distance(position, blind):9.2f} cm{share:16.0%}"
    )

# %%
# One gap is one draw, and does not decide between the two; the share of the path inside the bands
# does. Constant velocity is too sure of itself: to follow the turns of a rat that slows down it
# must take the noise in the acceleration to be small and the tracker to be worse than it is.
#
# The map, and the seconds without a fix
# --------------------------------------
# Draws of whole paths, exact given all fixes, show what a band at each moment cannot: how the rat
# may have gone.

state = answers["forgetful velocity"]
draws = np.asarray(state.sample(jax.random.key(0), 30))[..., :2]
position = np.asarray(state.mean)[:, :2]

fig, (left, right) = plt.subplots(
    1, 2, figsize=(9.0, 3.6), width_ratios=(2, 1), layout="constrained"
)
for ax, where in ((left, seconds < 82), (right, (seconds > 80) & (seconds < 88))):
    for draw in draws[:, where] if ax is right else ():
        ax.plot(*draw.T, color="#2b6a99", lw=0.5, alpha=0.35)
    ax.plot(*truth[where].T, color="0.15", lw=1.0, label="where it was")
    ax.plot(*position[where].T, color="#c8553d", lw=1.4, label="smoothed")
    here = (fixes.index >= seconds[where][0]) & (fixes.index <= seconds[where][-1])
    ax.plot(*fixes[here].to_numpy().T, "o", mfc="white", mec="0.15", ms=3.5, label="fixes")
    ax.set(xlabel="x (cm)", ylabel="y (cm)", aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)
left.set_title("before the gap", loc="left", fontsize="medium")
right.set_title("the gap: 30 draws", loc="left", fontsize="medium")
left.legend(frameon=False, fontsize="small")
plt.show()

# %%
# How fast?
# ---------
# Speed was never observed, and it is a nonlinear function of the state, but draws carry over: the
# speed of each drawn path is a draw of the speed. For comparison, that of the path itself, over a
# fifth of a second.

trajectories = np.asarray(state.sample(jax.random.key(1), 300))
speed = np.linalg.norm(trajectories[..., 2:], axis=-1)
low, middle, high = np.quantile(speed, (0.05, 0.5, 0.95), axis=0)
measured = np.linalg.norm(truth[2:] - truth[:-2], axis=1) / (seconds[2:] - seconds[:-2])

fig, ax = plt.subplots(figsize=(7.4, 3.0), layout="constrained")
ax.axvspan(82, 86, color="0.93", lw=0)
ax.fill_between(seconds, low, high, color="#2b6a99", alpha=0.25, lw=0, label="90 % band")
ax.plot(seconds, middle, color="#2b6a99", lw=1.4, label="from the fixes")
ax.plot(seconds[1:-1], measured, color="0.15", lw=0.8, label="from the path itself")
ax.set(xlabel="time (s)", ylabel="speed (cm/s)", ylim=(0, 52))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small", ncols=3)
plt.show()

# %%
# Are the errors what they should be?
# -----------------------------------
# One-step predictions reach over spans of different lengths; each error is divided by what the
# model says of its own span.

posterior = ss.smooth(fits["forgetful velocity"].model, fixes)
print(ss.diagnostics.residual_tests(posterior))
ss.plot.diagnostics(posterior)
plt.show()
