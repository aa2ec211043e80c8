"""
How long will this engine run?
==============================

Engines wear, and nobody sees the wear itself: sensors move a little, more and more towards the end. For
a hundred simulated turbofan engines the readings of the sensors are known up to the failure, for a
hundred others up to some cycle before it. How many cycles are left to each of these, and how sure can
one be?

Here the health of an engine is a hidden state that only gets worse, and *failed* is a state of its own,
from which there is no return. The remaining life is then the time until this state is entered, and its
law follows exactly from the fitted chain, from every cycle of every engine.
"""

# needs-data: cmapss

# %%
# The engines
# -----------
# Fourteen of the 21 sensors change at all. No two engines leave the factory alike, so that each is
# compared with its own first twenty cycles; the sensors then move together, and their first principal
# component over the training engines will do as an indicator of health.

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

engines = ss.datasets.load("turbofan")
moving = [f"sensor{i}" for i in (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)]
early = engines.index.get_level_values("cycle") <= 20
moved = engines[moving] - engines[early].groupby(["set", "engine"])[moving].mean()
moved /= moved.loc["train"].std()
centred = moved.loc["train"] - moved.loc["train"].mean()
direction = np.linalg.svd(centred, full_matrices=False)[2][0]
indicator = moved @ (direction * np.sign(direction[moving.index("sensor4")]))


def recordings(kind):
    """The indicator of each engine."""
    return [part.to_numpy() for _, part in indicator[kind].groupby("engine")]


train, test = recordings("train"), recordings("test")
lives = np.array([len(y) for y in train])
left = engines.loc["test"].groupby("engine")["remaining"].min().to_numpy()
print(f"{len(train)} engines failed after {lives.min()} to {lives.max()} cycles")

# %%
# What is known of the health
# ---------------------------
# Nobody has labelled the wear. But something *is* known: an engine begins in good health and ends in
# bad health; it had not failed while it ran; and after its last cycle it had. ``state_weights`` take
# all of this: zero where a state is impossible, one hot where it is certain, in between where an
# opinion is no more than that. All other cycles are left to the model.

names = ["good", "fair", "poor", "bad", "failed"]
plausible = 0.3 ** np.arange(4)


def series(y, failed):
    """The recording of an engine with what is known of its health."""
    known = np.ones((len(y), 5)) * [1, 1, 1, 1, 0]
    if failed:
        known[:20, :4] = plausible
        known[-10:, :4] = plausible[::-1]
        y = np.append(y, np.nan)
        known = np.vstack([known, [0, 0, 0, 0, 1]])
    return ss.Series(y, state_weights=known)


# %%
# A chain that wears out
# ----------------------
# Each state of health has its own level of the indicator. How long it lasts is *not* geometric, as it
# would be in a plain hidden Markov model, where an engine that has been in good health for 200 cycles
# is as good as new: a stay is made of eight stages, so that age counts.
#
# EM begins with the four quarters of each life.

quarter = np.concatenate([np.arange(len(y)) * 4 // len(y) for y in train])
readings = np.concatenate(train)
mean = [readings[quarter == k].mean() for k in range(4)]
scale = [readings[quarter == k].std() for k in range(4)]
start = ss.HiddenSemiMarkov(
    initial_probs=[1, 0, 0, 0, 0],
    transition=np.vstack([np.eye(5, k=1)[:4], [0, 0, 0, 0, 1]]),
    durations=ss.durations.Pascal(leave=[0.16] * 4 + [0.5], stages=(8, 8, 8, 8, 1)),
    emission=ss.emissions.Gaussian([*mean, 0.0], [*scale, 1.0]),
    state_names=names,
)
fit = ss.fit(
    start, [series(y, failed=True) for y in train], learner=ss.EM(tolerance=20.0, floor=1e-3)
)
for name, duration in zip(names[:4], fit.model.transition.durations.mean, strict=False):
    print(f"{name:5} lasts {duration:3.0f} cycles on average")

# %%
# The remaining life
# ------------------
# ``first_passage`` gives the law of the number of cycles until *failed* is entered, seen from each
# cycle with what was known by then. For comparison: what age alone says, the mean of what was left to
# the training engines that got as old.

passages = ss.first_passage(fit.model, [series(y, failed=False) for y in test], states="failed")
median = np.array([p.quantile(0.5)[-1] for p in passages])
low, high = np.array([[bound[-1] for bound in p.interval(0.9)] for p in passages]).T
by_age = np.array([(lives[lives > len(y)] - len(y)).mean() for y in test])


def phm08(late):
    """Score of the PHM08 challenge: a late warning costs more than an early one."""
    return np.where(late < 0, np.expm1(-late / 13), np.expm1(late / 10)).sum()


print(f"{'':18}{'RMSE':>8}{'PHM08':>12}")
for name, guess in (("age alone", by_age), ("median", median)):
    print(f"{name:18}{np.sqrt(np.mean((guess - left) ** 2)):8.1f}{phm08(guess - left):12.0f}")
soon = left < 60
print(
    f"engines with less than 60 cycles left: RMSE {np.sqrt(np.mean((median - left)[soon] ** 2)):.1f}"
)
print(f"inside the 90 % band: {np.mean((left >= low) & (left <= high)):.0%} of {len(test)} engines")

# %%
# Far from the end all engines look alike, and nobody can tell 80 cycles from 140; the band says so, and
# closes in near the end. It is a little narrower than it should be: engines differ in more than four
# states of health can say.

order = np.argsort(left)
place = np.arange(len(test))
fig, ax = plt.subplots(figsize=(7.4, 3.4), layout="constrained")
ax.fill_between(
    place, low[order], high[order], step="mid", color="#2b6a99", alpha=0.25, lw=0, label="90 % band"
)
ax.plot(place, median[order], ".", color="#2b6a99", ms=5, label="median")
ax.plot(place, left[order], color="0.15", lw=1.2, label="what was left")
ax.set(xlabel="test engines, by what was left", ylabel="cycles left", ylim=(0, None))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small", loc="upper left")
plt.show()

# %%
# One engine on its way
# ---------------------
# The same at every cycle of one test engine: the indicator, the health that the filter sees in it, and
# the life that was left, with its band.

length = np.array([len(y) for y in test])
which = int(np.argmin(np.where(left < 25, np.abs(length + left - np.median(lives)), np.inf)))
y, passage = test[which], passages[which]
cycle = np.arange(1, len(y) + 1)
truth = left[which] + len(y) - cycle
health = ss.filter(fit.model, series(y, failed=False)).probs
bounds = passage.interval(0.9)

fig, (top, middle, bottom) = plt.subplots(
    3, 1, figsize=(7.4, 6.0), sharex=True, height_ratios=(1, 0.7, 1.3), layout="constrained"
)
top.plot(cycle, y, color="0.15", lw=0.8)
top.set_ylabel("indicator")
shades = ["#dfe9f0", "#a9c5d9", "#5f93b8", "#1d4e75"]
middle.stackplot(cycle, np.asarray(health)[:, :4].T, colors=shades, labels=names[:4])
middle.set(ylabel="health", ylim=(0, 1))
middle.legend(fontsize="small", ncols=4, loc="lower left", framealpha=0.9)
bottom.fill_between(cycle, *bounds, color="#2b6a99", alpha=0.25, lw=0, label="90 % band")
bottom.plot(cycle, passage.quantile(0.5), color="#2b6a99", lw=1.4, label="median")
bottom.plot(cycle, truth, color="0.15", lw=1.2, ls="--", label="what was left")
bottom.set(xlabel="cycle", ylabel="cycles left", xlim=(1, len(y)), ylim=(0, None))
bottom.legend(frameon=False, fontsize="small", ncols=3, loc="upper right")
for ax in (top, middle, bottom):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
