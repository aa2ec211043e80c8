"""
How a rat decides, and when it decides otherwise
================================================

Textbooks have subjects of an experiment weigh the evidence in the same way on every trial, with a
"lapse" now and then. Their data often say otherwise: for dozens of trials the animal follows the
stimulus, then for dozens it repeats itself or its last reward, and back again. A hidden Markov model
whose states each have a regression of their own, a GLM-HMM, finds such strategies without being
told what they are.

The data are 20,000 trials of one rat in 80 sessions (Akrami et al. 2018). Two sounds follow each
other; if the first is the louder one, the rat is to go right.
"""

# %%
# Sessions are recordings of their own
# ------------------------------------
# A list of sessions is a panel: states are inferred in each by itself, and what is learned is shared.
# Every fourth session is kept apart, to ask it how many states there are.

import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

trials = ss.datasets.load("rat_decisions")
regressors = [
    "first sound",
    "second sound",
    "previous sounds",
    "previous answer",
    "previous choice",
]
sessions = [
    ss.Series(session["choice"].to_numpy(), inputs=session[regressors].to_numpy())
    for _, session in trials.groupby("session")
]
train = [session for i, session in enumerate(sessions) if i % 4 != 3]
held_out = [session for i, session in enumerate(sessions) if i % 4 == 3]
print(f"{len(train)} sessions to learn from, {len(held_out)} held out")

# %%
# How many strategies?
# --------------------
# One state is plain logistic regression. More states are judged by how well they predict the
# sessions they were not fitted to, in bits per trial above guessing. EM climbs to the nearest
# maximum, so each number of states has two random starts, of which the better one counts. A weak
# Gaussian prior (``ridge``) keeps weights of rare states in bounds.


def best_of(states, starts=2):
    """The better of several fits."""
    models = [
        ss.GLMHMM(states, inputs=len(regressors), ridge=0.25, key=jax.random.key(start))
        for start in range(starts if states > 1 else 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        fits = [
            ss.fit(model, train, learner=ss.EM(iterations=100, tolerance=0.1)) for model in models
        ]
    return max(fits, key=lambda fit: fit.log_likelihood)


fits = {states: best_of(states) for states in (1, 2, 3)}


def bits(log_likelihood, panel):
    """Bits per trial above guessing."""
    return log_likelihood / sum(map(len, panel)) / np.log(2) + 1


learned = [bits(fit.log_likelihood, train) for fit in fits.values()]
predicted = [bits(float(ss.log_likelihood(fit.model, held_out)), held_out) for fit in fits.values()]
fig, ax = plt.subplots(figsize=(4.6, 3.0), layout="constrained")
ax.plot(list(fits), learned, "o-", color="0.6", label="training sessions")
ax.plot(list(fits), predicted, "o-", color="#2b6a99", label="held-out sessions")
ax.set(xlabel="states", ylabel="bits per trial above guessing", xticks=list(fits))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %%
# The second and third states earn most of what is to be gained. (A fourth still adds a little to the
# prediction of held-out sessions, a fifth nothing; three can be looked at one by one.)
#
# What the states are
# -------------------
# States have no order of their own. Here they are sorted by how often the rat is right in them, with
# each trial weighted by the probability of the state.

model = fits[3].model
padded = np.asarray(ss.smooth(model, sessions).padded.probs)
probs = np.concatenate([p[: len(session)] for p, session in zip(padded, sessions)])
correct = trials["correct"].to_numpy() @ probs / probs.sum(axis=0)
order = np.argsort(-correct)
probs, correct = probs[:, order], correct[order]
weights, bias = np.asarray(model.weights)[order, 0], np.asarray(model.bias)[order]
colours = ["#2b6a99", "#c9992b", "#c4572e"]

fig, ax = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
for k, colour in enumerate(colours):
    label = f"state {k + 1}: {correct[k]:.0%} correct"
    ax.plot([*regressors, "bias"], [*weights[k], *bias[k]], "o-", color=colour, label=label)
ax.axhline(0, color="0.7", lw=0.8, zorder=0)
ax.set_ylabel("weight (log odds of right)")
ax.tick_params(axis="x", rotation=15)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %%
# In the first state the rat compares the sounds, and little else counts. In the second it compares them
# as well, but would rather go right. In the third the sounds count half as much as habit: it goes where
# the last answer was, and where it went itself.
#
# Psychometric curves
# -------------------
# The same seen from the task: how often does the rat go right, given what the sounds say (in the units
# of the plain regression), after it went right and after it went left? Points are the trials, weighted
# by the probability of the state; lines are what the state's regression says of these trials.

plain = np.asarray(fits[1].model.weights)[0, 0, :2]
evidence = trials[regressors[:2]].to_numpy() @ plain
edges = np.quantile(evidence, np.linspace(0, 1, 9))
level = np.clip(np.searchsorted(edges, evidence) - 1, 0, 7)
choice, before = trials["choice"].to_numpy(), trials["previous choice"].to_numpy()
said = 1 / (1 + np.exp(-(trials[regressors].to_numpy() @ weights.T + bias[:, 0])))


def mean_by_level(values, weight):
    """Weighted means at each level of the evidence."""
    return np.bincount(level, weight * values) / np.bincount(level, weight)


fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.0), sharey=True, layout="constrained")
for k, (ax, colour) in enumerate(zip(axes, colours)):
    for side, marker, dash, name in ((1, "o", "-", "right"), (-1, "v", "--", "left")):
        weight = probs[:, k] * (before == side)
        x = mean_by_level(evidence, weight)
        ax.plot(x, mean_by_level(said[:, k], weight), dash, color=colour, lw=1.4)
        ax.plot(x, mean_by_level(choice, weight), marker, color=colour, ms=5, label=f"after {name}")
    ax.set_title(f"state {k + 1}", fontsize="medium")
    ax.set(xlabel="evidence for right", ylim=(0, 1))
    ax.axhline(0.5, color="0.85", lw=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
axes[0].set_ylabel("choices to the right")
plt.show()

# %%
# When the rat is in which state
# ------------------------------
# Within a session the states come in stretches. Over the sessions their shares change: the preference
# for the right all but vanishes late in training, and careful comparison takes its place.

which = trials.index.get_level_values("session")
shown = 40
shares = np.array([probs[which == session].mean(axis=0) for session in range(len(sessions))])
fig, (above, below) = plt.subplots(2, 1, figsize=(8.4, 4.8), layout="constrained")
for ax, shares_or_probs, first in ((above, probs[which == shown], 0), (below, shares, 1)):
    x = np.arange(len(shares_or_probs)) + first
    ax.stackplot(x, shares_or_probs.T, colors=colours, alpha=0.85, lw=0)
    ax.margins(x=0)
    ax.set_ylim(0, 1)
    ax.spines[["top", "right"]].set_visible(False)
above.set(xlabel=f"trial of session {shown + 1}", ylabel="probability")
below.set(xlabel="session", ylabel="share of trials")
below.legend([f"state {k + 1}" for k in range(3)], loc="lower left", fontsize="small")
plt.show()

stay = np.diag(np.asarray(model.transition_matrix))[order]
print("a state lasts for", ", ".join(f"{1 / (1 - p):.0f}" for p in stay), "trials on average")
