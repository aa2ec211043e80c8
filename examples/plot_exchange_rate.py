"""
The volatility of an exchange rate
==================================

Days on which the pound moves much against the dollar follow each other, and so do quiet ones. Stochastic
volatility says that the variance of the returns is itself a hidden process (Taylor 1982): the log variance
reverts slowly to its mean, and is seen only through the size of returns, which is a poor witness. Its
likelihood has no closed form, but a particle filter estimates it without bias, and that is enough:
*particle marginal Metropolis–Hastings* draws the parameters from their exact posterior, and *particle Gibbs*
the path of the volatility.
"""

# %%
# Three years of returns
# ----------------------
# Daily returns in percent, 1997–1999, with their mean taken off; time counts in trading days.

import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist

import statespace as ss

rate = ss.datasets.load("gbp_usd")
returns = 100 * np.log(rate).diff().iloc[1:]
returns -= returns.mean()
y = returns.to_numpy()
print(
    f"{len(y)} returns, standard deviation {y.std():.3f} %, kurtosis {np.mean(y**4) / y.var() ** 2:.2f}"
)

start = ss.StochasticVolatility(mean=np.log(y.var()), persistence=0.95, scale=0.2)
priors = {
    "mean": dist.Normal(-1.0, 2.0),
    "persistence": dist.Beta(20.0, 1.5),
    "scale": dist.HalfNormal(0.5),
}

# %%
# The parameters
# --------------
# A random walk over the three parameters, accepted by the ratio of *estimated* likelihoods: the draws are
# exact all the same, and only wait longer where the estimates vary much. Their variance at the middle of the
# posterior is reported; it should be about one or two.

with warnings.catch_warnings():
    # R-hat is a little above 1.01: enough draws for the pictures, too few for a third digit
    warnings.simplefilter("ignore", ss.ConvergenceWarning)
    fit = ss.fit(
        start,
        y,
        learner=ss.ParticleMarginalMetropolis(warmup=300, samples=1000, chains=4, progress=False),
        priors=priors,
        method=ss.ParticleFilter(particles=64),
        key=jax.random.key(1),
    )
print(fit)
print(f"variance of the log likelihood's estimate: {fit.log_likelihood_variance:.2f}")

# %%
# Volatility lasts for days to weeks, and it varies, but how much of the one and of the other three years of
# returns do not tell apart: a quicker process of larger moves and a slower one of smaller moves explain the
# same data.

draws = {name: np.asarray(values).ravel() for name, values in fit.draws.items()}
fig, axes = plt.subplots(1, 3, figsize=(7.4, 2.6), layout="constrained")
for ax, name in zip(axes, ("mean", "scale"), strict=False):
    ax.hist(draws[name], bins=18, density=True, color="#2b6a99", alpha=0.5)
    ax.set(xlabel=name, yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
axes[2].plot(draws["scale"], draws["persistence"], ".", ms=2, color="#2b6a99", alpha=0.3)
axes[2].set(xlabel="scale", ylabel="persistence")
axes[2].spines[["top", "right"]].set_visible(False)
plt.show()

life = np.log(0.5) / np.log(draws["persistence"])
print("half-life in days, 5 %, 50 %, 95 %:", np.quantile(life, (0.05, 0.5, 0.95)).round(1))

# %%
# The volatility
# --------------
# Particle Gibbs draws whole paths of the log variance given all returns: each sweep runs a filter of 50
# particles that keeps the present path among them, and draws a new one backward through all of them. At how
# many moments a sweep changes the path tells how well it moves.

posterior = ss.smooth(
    fit.model,
    y,
    method=ss.ParticleGibbs(particles=50, sweeps=250, burn_in=50, chains=2),
    key=jax.random.key(2),
)
rates = np.asarray(posterior.update_rates)
print(f"share of states that a sweep changes: {rates.mean():.2f}, at the least {rates.min():.2f}")
low, middle, high = np.exp(np.asarray(posterior.quantile([0.05, 0.5, 0.95]))[..., 0] / 2)

fig, (above, below) = plt.subplots(
    2, 1, figsize=(7.4, 4.2), sharex=True, layout="constrained", height_ratios=(1, 1.2)
)
above.plot(returns.index, y, color="0.25", lw=0.6)
above.set_ylabel("return (%)")
below.fill_between(returns.index, low, high, color="#2b6a99", alpha=0.3, lw=0, label="90 %")
below.plot(returns.index, middle, color="#2b6a99", lw=1.4, label="median")
below.set(ylabel="volatility (% a day)", ylim=(0, None))
below.legend(frameon=False, fontsize="small", ncols=2, loc="lower left")
for ax in (above, below):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
