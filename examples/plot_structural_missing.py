"""
Filling gaps, and saying how well
=================================

A recording with holes is not a broken recording. In a state-space model a missing value is a moment
at which nothing was seen: the states go on, their uncertainty grows until the next observation, and
everything that follows (likelihood, parameters, forecasts) takes this into account. Nothing is
imputed beforehand.

Here it is tried on the weekly measurements of carbon dioxide on Mauna Loa, which have gaps of up to
eighteen weeks. To see whether the bands over gaps deserve trust, a whole year that *was* measured
is hidden as well.
"""

# needs: statsmodels

# %%
# The record, and a year to hide
# ------------------------------
# ``NaN`` marks what is missing; that is all you have to do. The last four years are kept apart for
# the forecast.

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

co2 = ss.datasets.load("co2")
known, held_out = co2[:"1997"].copy(), co2["1998":]
year = known.index.year == 1985
hidden = known[year]
known[year] = np.nan
print(
    f"{len(known)} weeks, {known.isna().sum()} of them without a value, {year.sum()} of which we hid"
)

# %%
# Parts that add
# --------------
# The level rises with a slope that changes slowly. A year has 365.25 / 7 = 52.18 weeks, which is no
# whole number: harmonics do not mind. What remains from week to week is weather, which lasts longer
# than a week, so it is an autoregression rather than white noise. The numbers are where the search
# for the maximum of the likelihood begins.

model = (
    ss.LocalLinearTrend(level_scale=0.05, slope_scale=0.001)
    + ss.Seasonal(365.25 / 7, scale=0.01, kind="trigonometric", harmonics=4)
    + ss.AR(coefficients=[0.5], scale=0.3, name="weather")
)
fit = ss.fit(model, known)
print(fit.summary())

# %%
# Level, slope and the eight numbers of the first season are unknown before the first week. They
# start *exactly diffuse*, with no made-up variance, and use up the first ten observations.
#
# What was hidden
# ---------------
# The smoothed signal is what the model says of the truth behind every week, observed or not. Over
# the hidden year, compare it with what had been measured, and with what a straight line between the
# neighbours would have said.

posterior = ss.smooth(fit.model, known)
signal = posterior.signal
middle = np.asarray(signal.mean)[:, 0]
low, high = (np.asarray(bound)[:, 0] for bound in signal.interval(0.9))

line = known.interpolate().to_numpy()
inside = (hidden >= low[year]) & (hidden <= high[year])
seen = hidden.notna()
print(f"mean error over the hidden year: {np.abs(hidden - middle[year]).mean():.2f} ppm,")
print(f"of a straight line:              {np.abs(hidden - line[year]).mean():.2f} ppm")
print(f"inside the 90 % band:            {inside[seen].mean():.0%} of {seen.sum()} weeks")

fig, ax = plt.subplots(figsize=(7.4, 3.4), layout="constrained")
near = (known.index >= "1984-01") & (known.index < "1987-01")
when = known.index[near]
ax.fill_between(when, low[near], high[near], color="#2b6a99", alpha=0.25, lw=0, label="90 % band")
ax.plot(when, middle[near], color="#2b6a99", lw=1.4, label="smoothed")
ax.plot(when, line[near], color="0.6", lw=1.0, ls="--", label="straight line")
ax.plot(when, known[near], ".", color="0.15", ms=4, label="used")
ax.plot(hidden.index, hidden, "o", mfc="white", mec="0.15", ms=3.5, label="hidden")
ax.set_ylabel("CO₂ (ppm)")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small", ncols=2)
plt.show()

# %%
# The band is as wide as the model is ignorant: at both ends of the gap it shrinks to the
# observations, in the middle it holds the weather of the year, which nobody can know, and what
# level and season may have done meanwhile.
#
# Who contributes what
# --------------------
# Each part has a posterior of its own. Shaded: weeks without an observation.

ss.plot.components(posterior)
plt.show()

# %%
# Is anything left?
# -----------------
# If the model is right, its one-step prediction errors, each divided by its predicted standard
# deviation, are independent draws from N(0, 1). Missing weeks have none.

print(fit.residual_tests())
ss.plot.diagnostics(posterior)
plt.show()

# %%
# With two thousand weeks the tests find small things: a few outliers more than a Gaussian has, and
# a trace of correlation. They say where to go on (a second lag for the weather; noise with heavier
# tails), not that the bands above are useless, as the hidden year has shown.
#
# Four years ahead
# ----------------
# A forecast is the same thing once more: moments after the last at which nothing was seen.

forecast = ss.forecast(fit.model, known, steps=len(held_out))
ss.plot.forecast(forecast, known, actual=held_out, last=150)
plt.show()

score = forecast.score(held_out)
print(f"mean error {score.mae:.2f} ppm, inside the 80 % interval {score.coverage[0.8]:.0%}")
