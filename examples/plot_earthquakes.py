"""
How many kinds of years?
========================

The smallest hidden Markov model there is: one number a year, the count of earthquakes of magnitude 7 or
more in the world, and a hidden state for each kind of year, quiet or busy, that tends to last. It is
also the best documented one: all numbers can be compared with those of Zucchini & MacDonald (2009,
*Hidden Markov Models for Time Series*).
"""

# %%
# One to four states
# ------------------
# The counts vary more than a Poisson variable, whose variance is its mean, and they stay high or low for
# years. Each state has a Poisson rate; the first state follows the stationary law of the chain. The
# search starts from states that last five years, with rates spread over the counts, and from places
# around, as the likelihood of many states has many hills.

import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

counts = ss.datasets.load("earthquakes")
print(f"{len(counts)} years: mean {counts.mean():.1f}, variance {counts.var():.1f}")


def start(states):
    """States that last five years on average, with rates at quantiles of the counts."""
    away = 0.2 / max(states - 1, 1)
    moves = np.full((states, states), away) + (0.8 - away) * np.eye(states)
    rates = counts.quantile((np.arange(states) + 0.5) / states).to_numpy()
    moves = moves if states > 1 else np.ones((1, 1))
    return ss.HMM("stationary", moves, ss.emissions.Poisson(rates))


published = {1: 391.9189, 2: 342.3183, 3: 329.4603, 4: 327.8316}
fits = {}
print(f"{'states':>6}{'-log L':>11}{'published':>11}{'AIC':>8}{'BIC':>8}")
with warnings.catch_warnings():
    # The best matrices have zeros: their logarithms go on for ever, which is no concern here.
    warnings.simplefilter("ignore", ss.ConvergenceWarning)
    for states, known in published.items():
        learner = ss.MaximumLikelihood(starts=(1, 4, 8, 60)[states - 1])
        fits[states] = fit = ss.fit(start(states), counts, learner=learner, key=jax.random.key(1))
        value = -fit.log_likelihood
        print(f"{states:6}{value:11.4f}{known:11.4f}{fit.aic:8.1f}{fit.bic:8.1f}")

# %%
# Both criteria choose three states: quiet years, common ones and busy ones.

model = ss.relabel(fits[3].model, by="emission.rate")
print("rates", np.round(np.asarray(model.emission.rate), 2))
print("transitions", np.round(np.asarray(model.transition.probs), 3), sep="\n")

# %%
# Which years were which?
# -----------------------
# The probability of each state in each year given *all* years, and the most likely path as a whole
# (Viterbi), in whose colours the counts are drawn.

posterior = ss.smooth(model, counts)
ss.plot.states(posterior)
plt.show()

# %%
# A forecast is a mixture
# -----------------------
# What is known of the next years is no single Poisson law but a mixture over the states. It forgets
# the present within a decade or so, and is then the stationary mixture.

ahead = ss.forecast(model, counts, steps=30)
grid = np.arange(0, 46)
rates = np.asarray(model.emission.rate)
log_factorial = np.cumsum(np.log(np.maximum(grid, 1)))
poisson = np.exp(grid[:, None] * np.log(rates) - rates - log_factorial[:, None])
fig, axes = plt.subplots(1, 3, figsize=(7.4, 2.6), sharey=True, layout="constrained")
for ax, h in zip(axes, (1, 5, 30), strict=True):
    ax.bar(grid, poisson @ np.asarray(ahead.probs)[h - 1], width=1.0, color="#2b6a99", alpha=0.6)
    ax.set(title=f"{counts.index[-1] + h}", xlabel="earthquakes", xlim=(0, 45))
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("probability")
plt.show()
low, high = ahead.interval(0.8)
print(f"next year: mean {ahead.mean[0, 0]:.1f}, 80 % interval {low[0, 0]:.0f} to {high[0, 0]:.0f}")

# %%
# Is anything left?
# -----------------
# Each count's probability under its one-step prediction, as a normal deviate (a *pseudo-residual*):
# independent and standard normal if the model is right.

print(fits[3].residual_tests())
residuals = ss.ForwardBackward().standardised_errors(model, ss.Series(counts))
ss.plot.diagnostics(residuals)
plt.show()
