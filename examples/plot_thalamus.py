"""
Spikes of the thalamus: particles against the exact answer
==========================================================

A neuron in the thalamus of a rat, while its whiskers are moved: in each of 3000 milliseconds, in how many
of 50 repetitions did it fire? (Temereanca, Brown & Simons 2008.) Each count is binomial, with a probability
whose log odds wander. Nothing here is Gaussian, so the Kalman filter does not apply. But the hidden state is
a single number, and for a single number there is an exact answer, by brute force: sums over a fine grid. It
shows what particles are worth, on which states of more dimensions have to rely.
"""

# %%
# The model, and the same model on a grid
# ---------------------------------------
# The log odds follow ``x_t = rho x_{t-1} + sigma e_t``, a millisecond at a time. A grid of 241 values turns
# them into a finite state, which is handled exactly; with steps far below ``sigma`` the grid's own error is
# negligible.

import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist

import statespace as ss

jax.config.update("jax_enable_x64", True)

counts = ss.datasets.load("thalamus")
model = ss.SpikeCounts(0.9981, 0.1089**0.5, trials=50, initial_scale=1.0)

grid = jnp.linspace(-16.0, 8.0, 241)


def on_grid(persistence, scale, mean=0.0, trials=50):
    """The same model with the log odds on a grid."""
    first = jax.nn.softmax(dist.Normal(mean, 1.0).log_prob(grid))
    ahead = mean + persistence * (grid[:, None] - mean)
    moves = dist.Normal(ahead, scale).log_prob(grid)
    return ss.Model(
        initial=ss.Categorical(first),
        transition=ss.FiniteKernel(jax.nn.softmax(moves, axis=1)),
        observation=lambda k, step: dist.BinomialLogits(grid[k], trials),
    )


exact = ss.smooth(on_grid(model.persistence, model.scale), counts)
print(f"log likelihood on the grid: {exact.log_likelihood:.5f}  (known: -3080.53885)")

# %%
# The likelihood: how far off are particles?
# ------------------------------------------
# From here on in bins of 10 ms: 300 counts of 500. A particle filter estimates the likelihood without bias;
# its logarithm varies from run to run, and is then too low on average, by half its variance. Fifty runs each:
# with 128 and 512 particles; with 128 of which each is proposed with a look at the next count; and with
# quasi-random points in place of random numbers. What makes it hard are the deflections of the whiskers,
# eight a second, at which the rate jumps tenfold within a bin: few particles get there.

bins = counts.groupby(counts.index // 10).sum()
bins.index = 10 * bins.index + 5
series = ss.Series(bins.to_numpy())
model = ss.SpikeCounts(0.85, 1.0, mean=-4.0, trials=500, initial_scale=1.0)
model = ss.freeze(model, "mean")
exact = ss.smooth(on_grid(model.persistence, model.scale, -4.0, 500), series)
keys = jax.random.split(jax.random.key(0), 50)
methods = {
    "128": ss.ParticleFilter(particles=128),
    "512": ss.ParticleFilter(particles=512),
    "128, linearised": ss.ParticleFilter(particles=128, proposal="linearised"),
    "128, quasi-random": ss.SequentialQuasiMonteCarlo(particles=128),
}
print(f"exact {exact.log_likelihood:.3f}")
runs = {}
for name, method in methods.items():
    one = lambda key, method=method: method.with_key(key).log_likelihood(model, series)
    runs[name] = np.asarray(jax.jit(jax.vmap(one))(keys))
    print(f"{name:18} mean {runs[name].mean():9.3f}   standard deviation {runs[name].std():.3f}")

fig, ax = plt.subplots(figsize=(7.4, 2.6), layout="constrained")
for i, (_, values) in enumerate(runs.items()):
    spread = np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
    ax.plot(values, i + spread, "o", color="#2b6a99", ms=3.5, alpha=0.6, mec="none")
ax.axvline(float(exact.log_likelihood), color="#c8553d", lw=1.2)
ax.set(yticks=range(len(runs)), yticklabels=runs, ylim=(-0.6, len(runs) - 0.4))
ax.set_xlabel("estimated log likelihood, by the number of particles (line: exact)")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The states
# ----------
# Backward sampling draws whole paths of the log odds given all counts; the exact law of each moment is the
# grid's. They lie on top of each other.

posterior = ss.smooth(
    model, series, method=ss.BackwardSampling(particles=300), key=jax.random.key(1)
)
low, middle, high = np.asarray(posterior.quantile([0.05, 0.5, 0.95]))[..., 0]
cumulative = np.cumsum(np.asarray(exact.probs), axis=1)
bounds = [np.asarray(grid)[(cumulative >= q).argmax(axis=1)] for q in (0.05, 0.95)]
mean = np.asarray(exact.probs @ grid)
error = np.abs(np.asarray(posterior.mean)[:, 0] - mean) / np.asarray(posterior.std)[:, 0]
print(
    f"error of the means, in posterior deviations: mean {error.mean():.3f}, largest {error.max():.2f}"
)

probability = lambda x: 1 / (1 + np.exp(-np.asarray(x)))
fig, ax = plt.subplots(figsize=(7.4, 3.2), layout="constrained")
ax.plot(bins.index, bins / 500, ".", color="0.35", ms=3, label="share that fired")
ax.fill_between(
    bins.index,
    probability(low),
    probability(high),
    color="#2b6a99",
    alpha=0.35,
    lw=0,
    label="particles, 90 %",
)
ax.plot(bins.index, probability(middle), color="#2b6a99", lw=1.2)
for bound in bounds:
    ax.plot(bins.index, probability(bound), color="#c8553d", lw=0.7, ls=(0, (3, 2)))
ax.plot([], [], color="#c8553d", lw=0.7, ls=(0, (3, 2)), label="exact, 90 %")
ax.set(xlabel="time (ms)", ylabel="probability of a spike", xlim=(300, 1500), ylim=(0, None))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small", ncols=3)
plt.show()

# %%
# The parameters
# --------------
# Particle Gibbs needs no estimate of the likelihood: it draws a path by a filter that keeps the old path
# among its particles, then the parameters given the path, and so on; its draws are from the exact posterior.
# It is compared with the posterior computed on the grid, at 11 × 11 values of the two parameters.

priors = {"persistence": dist.Uniform(0.5, 1.0), "scale": dist.HalfNormal(1.0)}
with warnings.catch_warnings():
    # R-hat may be a little above 1.01: enough draws for the picture, too few for a third digit
    warnings.simplefilter("ignore", ss.ConvergenceWarning)
    fit = ss.fit(
        model,
        series,
        learner=ss.ParticleGibbsLearner(
            warmup=120, samples=300, chains=4, particles=50, progress=False
        ),
        priors=priors,
        key=jax.random.key(2),
    )
print(fit)

drawn = {name: np.asarray(values).ravel() for name, values in fit.draws.items()}
axes = [
    np.linspace(max(v.mean() - 3.5 * v.std(), 0), min(v.mean() + 3.5 * v.std(), top), 11)
    for v, top in ((drawn["persistence"], 1 - 1e-6), (drawn["scale"], 9.0))
]
pairs = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2))
likelihood = jax.jit(lambda p: ss.log_likelihood(on_grid(p[0], p[1], -4.0, 500), series))
values = np.array([float(likelihood(p)) for p in pairs]).reshape(11, 11)
values += np.asarray(priors["scale"].log_prob(axes[1]))
density = np.exp(values - values.max())

fig, (left, right) = plt.subplots(
    1, 2, figsize=(7.4, 3.2), layout="constrained", width_ratios=(1.5, 1)
)
left.plot(drawn["scale"], drawn["persistence"], ".", color="#2b6a99", ms=2, alpha=0.35)
levels = np.exp(-0.5 * np.array([3.0, 2.0, 1.0]) ** 2)
left.contour(axes[1], axes[0], density, levels=levels, colors="#c8553d", linewidths=1)
left.set(xlabel="sigma", ylabel="rho")
left.set_title("draws, and the exact posterior", loc="left", fontsize="medium")
marginal = density.sum(axis=0) / density.sum() / (axes[1][1] - axes[1][0])
right.hist(drawn["scale"], bins=30, density=True, color="#2b6a99", alpha=0.45)
right.plot(axes[1], marginal, color="#c8553d", lw=1.4)
right.set(xlabel="sigma", yticks=[])
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
