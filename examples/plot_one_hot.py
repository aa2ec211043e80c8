"""
Who drives whom, and when: switching connectivity of a population
=================================================================

Neurons influence each other, and the influence depends on what the brain is doing. A hidden Markov
model can have one matrix of couplings for each state; but with twenty neurons and three states that is
twelve hundred numbers, most of which are zero in truth and none of which is zero in a fit. A prior that
says *inhibitory, none or excitatory* for each pair finds the connections that exist, and says how sure
it is of each (Li et al. 2024, the one-hot HMM-GLM).

The population is simulated here, so that what is found can be compared with what is true.
"""

# %%
# A population that switches
# --------------------------
# Sixteen neurons fire at most one spike in a bin on average; three states, each with its own couplings.
# A pair of neurons has a tendency (to be excitatory, say) that the states share, and each state draws
# its own sign from it. A spike acts on the next bins through a decaying filter.

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

states, neurons, bins, sessions = 3, 16, 1500, 5
rng = np.random.default_rng(4)
tendency = rng.dirichlet([0.2, 1.6, 0.2], size=(neurons, neurons))
draws = rng.random((states, neurons, neurons, 1)) > tendency.cumsum(axis=-1)
signs = draws.sum(axis=-1).clip(max=2) - 1
coupling = signs * np.log1p(3 * rng.random(signs.shape))

settings = {
    "family": "poisson",
    "link": "sigmoid",
    "channels": neurons,
    "history": ss.emissions.Exponential(lags=5),
    "shared_bias": True,
}
truth = ss.GLMHMM(states, transition=0.98 * np.eye(3) + 0.01 * (1 - np.eye(3)), **settings)
truth = ss.replace(truth, {"emission.coupling": coupling[..., None]})
recordings = [ss.simulate(truth, bins, key=jax.random.key(i)) for i in range(sessions)]
data = [ss.Series(recording.y) for recording in recordings]

fig, (above, below) = plt.subplots(
    2, 1, figsize=(8.4, 3.6), height_ratios=(5, 1), sharex=True, layout="constrained"
)
window = slice(0, 400)
above.imshow(np.asarray(recordings[0].y)[window].T, aspect="auto", cmap="Greys", vmax=3)
above.set(ylabel="neuron", yticks=[])
below.imshow(np.asarray(recordings[0].states)[None, window], aspect="auto", cmap="Set2", vmax=7)
below.set(xlabel="bin", ylabel="state", yticks=[])
plt.show()

# %%
# First a Gaussian prior, then the one-hot prior
# ----------------------------------------------
# EM with a Gaussian prior around the mean over the states finds *when* the population is in which state.
# From there the one-hot prior finds *which* connections there are: a fit is the start of another learner
# by being passed in place of the model.

gaussian = ss.fit(
    ss.GLMHMM(states, pooling=9.0, key=jax.random.key(1), **settings),
    data,
    learner=ss.EM(tolerance=0.1),
)
one_hot = ss.fit(gaussian, data, learner=ss.OneHot())
print(one_hot.summary())

# %%
# States have no order of their own: match them with the true ones by their couplings.


def matched(fit):
    """Couplings of a fit, and its states, in the order of the truth."""
    found = np.asarray(fit.model.coupling)[..., 0]
    distance = np.abs(found[:, None] - coupling).sum(axis=(2, 3))
    order = distance.argmin(axis=0)
    return found[order], order


found = {"truth": coupling}
found["Gaussian prior"], _ = matched(gaussian)
found["one-hot prior"], order = matched(one_hot)

fig, axes = plt.subplots(
    3, states, figsize=(7.4, 6.4), sharex=True, sharey=True, layout="constrained"
)
for row, (name, matrices) in zip(axes, found.items()):
    for ax, matrix in zip(row, matrices):
        shown = ax.imshow(matrix, cmap="RdBu_r", vmin=-1.4, vmax=1.4)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"{name}\nto")
for k in range(states):
    axes[0, k].set_title(f"state {k + 1}", fontsize="medium")
    axes[-1, k].set_xlabel("from")
fig.colorbar(shown, ax=axes, shrink=0.4, label="coupling")
plt.show()

# %%
# How sure of each connection?
# ----------------------------
# Left: each dot is a pair of neurons in a state. Estimates under the Gaussian prior scatter around zero
# for pairs that are not connected; under the one-hot prior they are pulled in, and the strong ones are
# not shrunk. Right: of the connections that were given a probability of about p, about p exist.

inclusion = one_hot.inclusion[order].ravel()
exists = (coupling != 0).ravel()
colours = {"Gaussian prior": "#c9992b", "one-hot prior": "#2b6a99"}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.6), layout="constrained")
for name, colour in colours.items():
    error = np.abs(found[name] - coupling).mean()
    label = f"{name}: mean error {error:.3f}"
    left.plot(
        coupling.ravel(), found[name].ravel(), ".", ms=4, color=colour, alpha=0.6, label=label
    )
left.plot([-1.4, 1.4], [-1.4, 1.4], color="0.7", lw=0.8, zorder=0)
left.set(xlabel="true coupling", ylabel="estimate")
left.legend(frameon=False, fontsize="small")

group = np.digitize(inclusion, [0.05, 0.2, 0.5, 0.98])
count = np.bincount(group)
said, true = np.bincount(group, inclusion) / count, np.bincount(group, exists) / count
error = np.sqrt(true * (1 - true) / count)
right.plot([0, 1], [0, 1], color="0.7", lw=0.8, zorder=0)
right.errorbar(said, true, error, fmt="o", color="#2b6a99", capsize=2)
right.set(xlabel="probability of a connection", ylabel="fraction that exist")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# And the states themselves
# -------------------------

path = np.concatenate([np.asarray(p.most_likely) for p in ss.smooth(one_hot.model, data)])
true_path = np.concatenate([np.asarray(recording.states) for recording in recordings])
called = one_hot.signs[order]
print(f"bins whose state is found:  {np.mean(order[true_path] == path):.1%}")
print(
    f"signs found, of the pairs that are connected: {np.mean(called[signs != 0] == signs[signs != 0]):.0%}"
)
print(f"called a connection, of the pairs that are not: {np.mean(called[signs == 0] != 0):.1%}")
