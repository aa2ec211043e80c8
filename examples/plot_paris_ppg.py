"""
Does particle Gibbs mend PaRIS?
===============================

What is expected of a path of hidden states, given all observations, can be estimated while a particle filter
runs: that is *PaRIS* (Olsson & Westerborn 2017). With few particles it is biased. Cardoso, Moulines & Olsson
(2023) put it inside a Gibbs sampler, *PPG*, and claim that the bias then dies out geometrically with the
number of sweeps. This page checks the claim where the right answer is known, and asks what it costs.
"""

# %%
# A model with an exact answer
# ----------------------------
# A linear Gaussian model with slow states, 40 observations, and the sum of products of neighbouring states,
# as one would need it for learning the autoregressive coefficient. The Kalman smoother knows its expectation.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

model = ss.Model(
    initial=ss.Gaussian(jnp.zeros(1), jnp.array([0.60 / np.sqrt(1 - 0.97**2)])),
    transition=ss.AffineGaussian(jnp.array([[0.97]]), scale=jnp.array([0.60])),
    observation=ss.AffineGaussian(jnp.array([[0.54]]), scale=jnp.array([0.33])),
)
y = ss.simulate(model, 40, key=jax.random.key(0)).y
lag_one = ss.Additive(lambda previous, state, step, y: previous[0] * state[0])

posterior = ss.smooth(model, y)
mean = posterior.mean[:, 0]
exact = float(jnp.sum(mean[1:] * mean[:-1]) + jnp.sum(posterior.lag_one))
print(f"exact: {exact:.3f}")

# %%
# One run of each
# ---------------
# The functional is said once, and every method takes it.

key = jax.random.key(1)
for method in (
    ss.PaRIS(particles=200),
    ss.ParisianParticleGibbs(particles=10, sweeps=20, burn_in=0, chains=1),
    ss.BackwardSampling(particles=200),
):
    value = ss.expect(model, y, lag_one, method=method, key=key).value
    print(f"{type(method).__name__:24s}{float(value):9.2f}")

# %%
# Many runs
# ---------
# Replicates are one call: PaRIS mapped over keys, PPG with as many chains as runs. PaRIS is run with 10
# particles, and with 200: the budget of PPG with 10 particles and 20 sweeps.


def paris(particles, runs):
    """Errors of many runs."""
    method = ss.PaRIS(particles=particles, threshold=1.0)
    one = lambda key: method.with_key(key).expect(model, ss.Series(y), lag_one).value
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, runs))) - exact


small, large = paris(10, 2000), paris(200, 200)
ppg = ss.ParisianParticleGibbs(particles=10, sweeps=20, burn_in=0, chains=1000)
sweeps = np.asarray(ss.expect(model, y, lag_one, method=ppg, key=key).sweeps) - exact

# %%
# The claim: the bias of each sweep alone
# ---------------------------------------
# Bars are two standard errors. The zeroth point is PaRIS with the same 10 particles.

bias = np.r_[small.mean(), sweeps.mean(axis=0)]
error = np.r_[small.std() / np.sqrt(len(small)), sweeps.std(axis=0) / np.sqrt(len(sweeps))]
fig, ax = plt.subplots(figsize=(7.4, 3), layout="constrained")
ax.axhline(0, color="0.6", lw=1)
ax.errorbar(np.arange(len(bias)), bias, 2 * error, fmt="o", color="#2b6a99", capsize=2)
ax.set(xlabel="sweep (0: PaRIS)", ylabel="bias", xticks=range(0, len(bias), 5))
ax.spines[["top", "right"]].set_visible(False)
plt.show()
for sweep in (1, 2, 3, 5, 10):
    lost = 1 - abs(bias[sweep]) / abs(bias[0])
    print(
        f"sweep {sweep:2d}: bias {bias[sweep]:6.2f} ± {error[sweep]:.2f}, {100 * lost:3.0f} % of PaRIS's lost"
    )

# %%
# The price: error at an equal budget
# -----------------------------------
# The mean over the sweeps after a burn-in (the *roll-out estimator*) against PaRIS with 200 particles.

cases = {"PaRIS, N = 10": small, "PaRIS, N = 200": large}
for burn_in in (0, 2, 10):
    cases[f"PPG, N = 10, 20 sweeps, burn-in {burn_in}"] = sweeps[:, burn_in:].mean(axis=1)
print(f"{'':36s}{'bias':>8s}{'± s.e.':>8s}{'RMSE':>8s}")
for name, errors in cases.items():
    spread = errors.std() / np.sqrt(len(errors))
    print(f"{name:36s}{errors.mean():8.2f}{spread:8.2f}{np.sqrt(np.mean(errors**2)):8.2f}")

# %%
# The verdict
# -----------
# The claim holds. Within three sweeps about nine tenths of the bias of PaRIS with as many particles is gone,
# and after five or six sweeps what is left cannot be told from zero: each sweep divides it by about two.
#
# But there is a price. Each sweep has only 10 particles, its error is large, and neighbouring sweeps resemble
# each other. At an equal budget the mean over the sweeps does *not* have a lower root mean square error than
# one run of PaRIS with 200 particles, which has little bias left to lose. Sweeps that are thrown away as
# burn-in remove bias and add variance.
#
# So PPG is the estimate to use where many of them are averaged and a bias would stay: in stochastic
# approximation, as of the score in learning, or in many short chains in parallel. For one number from one
# recording, give PaRIS more particles. PaRIS is also the one of the two that runs online:
# ``ss.online(model, ss.PaRIS(functional=lag_one), key=key)``.
