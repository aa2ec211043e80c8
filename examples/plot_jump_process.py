"""
A jump process from irregular samples
=====================================

A particle sits on one of three sites, in a potential that is switched on and off: a *flashing ratchet*,
the simplest model of a molecular motor. It jumps at moments of its own, and is looked at now and then, at
others, with noise. At which rates does it jump? Where is it most of the time, how long does it take from one
site to another, and does it run in circles?

A Markov jump process answers all of this from its matrix of rates. Over any interval its transition
probabilities are a matrix exponential, so irregular moments need no grid.
"""

# %%
# The ratchet, and what is seen of it
# -----------------------------------
# Six states: site 0, 1 or 2, with the potential on or off. With the potential on the particle slides down
# to site 0; with it off it jumps either way; the switch goes at rate 1. That makes 18 possible jumps out
# of 30. Seen are the position and a lamp that is bright when the potential is on, both with an error. There
# are twenty recordings, each of 200 looks within 10 time units, at random moments.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

site = np.arange(3)
rates = np.zeros((6, 6))
rates[:3, :3] = np.exp(-(site - site[:, None]) / 2)
rates[3:, 3:] = 1.0
rates[:3, 3:] = rates[3:, :3] = np.eye(3)
np.fill_diagonal(rates, 0.0)
names = ("0 on", "1 on", "2 on", "0 off", "1 off", "2 off")

shown = np.column_stack([np.tile(site, 2), np.repeat([1.0, 0.0], 3)])
noisy = ss.emissions.Gaussian(mean=shown, scale=np.full((6, 2), 0.3))
truth = ss.MarkovJumpProcess(rates, noisy, state_names=names)

paths = truth.sample_paths(10.0, key=jax.random.key(0), paths=20)
rng = np.random.default_rng(0)
times = np.sort(rng.uniform(0, 10, (20, 200)), axis=1)
states = np.asarray(paths.at(times))
looks = shown[states] + 0.3 * rng.normal(size=(20, 200, 2))
seen = [
    ss.Series(y, times=t, channels=["position", "lamp"]) for y, t in zip(looks, times, strict=True)
]
gaps = np.diff(times)
print(
    f"{int(paths.jumps.sum())} jumps; seen after intervals of {gaps.min():.5f} to {gaps.max():.2f}"
)

# %%
# Fit
# ---
# Nothing is known of the rates: all 30 jumps are allowed, and start at one half. EM infers the path between
# the observations, exactly, and learns from how long it stays and how often it jumps. What the instruments
# show in each state, and how precisely, is learned as well.

start = ss.MarkovJumpProcess(
    np.full((6, 6), 0.5),
    ss.emissions.Gaussian(mean=shown + 0.1, scale=np.full((6, 2), 0.5)),
    state_names=names,
)
fit = ss.fit(start, seen, learner=ss.EM(tolerance=1e-3))
print(fit.reason, "after", fit.iterations, "iterations")
print(np.round(np.asarray(fit.model.transition.generator), 2))
found = np.stack([np.asarray(p.most_likely) for p in ss.smooth(fit.model, seen)])
nearest = np.argmin(((looks[:, :, None] - shown) ** 2).sum(-1), axis=-1)
print(
    f"states found: {(found == states).mean():.1%}; "
    f"by the nearest reading alone: {(nearest == states).mean():.1%}"
)

# %%
# ``forecast`` answers for any moments, also between the observations. The path is known for sure only where
# it was looked at often. Here is the first recording.

BLUE, RED = "#2b6a99", "#c8553d"
clock = np.linspace(0, 10, 800)
between = ss.forecast(fit.model, seen[0], times=clock).probs
known = np.asarray(paths.at(clock))[0]

fig, (top, low) = plt.subplots(
    2, 1, figsize=(8.6, 4.2), height_ratios=(1, 1.3), sharex=True, layout="constrained"
)
top.plot(clock, shown[known, 0], color="0.6", lw=1.2, drawstyle="steps-post", label="where it was")
bright = looks[0, :, 1] > 0.5
for lamp, colour, label in ((bright, RED, "lamp bright"), (~bright, BLUE, "lamp dim")):
    top.plot(times[0, lamp], looks[0, lamp, 0], ".", color=colour, ms=5, label=label)
top.set(ylabel="position", yticks=[0, 1, 2], xlim=(0, 10))
top.legend(frameon=False, fontsize="small", ncols=3, loc="upper right", bbox_to_anchor=(1, 1.25))
low.imshow(
    np.asarray(between).T, aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(0, 10, 5.5, -0.5)
)
low.plot(clock, known, color=RED, lw=0.9, drawstyle="steps-post")
low.set(yticks=range(6), yticklabels=names, xlabel="time", ylabel="state")
low.set_title("probability of each state; the line is the truth", loc="left", fontsize="medium")
top.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# How sure are the rates?
# -----------------------
# The data are few for 30 rates, and many of these may be zero. A hierarchical prior says just that: rates are
# alike, drawn from a law that is learned with them, and two states may have no jumps between them at all.
# ``JumpGibbs`` draws whole paths and rates in turn from their joint posterior. These are few draws, for a
# page that is made in a minute; the warning says so.

draws = ss.fit(
    ss.freeze(fit.model, "emission"),
    seen,
    learner=ss.JumpGibbs(warmup=50, samples=300, chains=2),
    priors={"transition.rates": ss.HierarchicalGamma()},
    key=jax.random.key(2),
)
kernel = fit.model.transition
drawn = np.asarray(draws.draws["transition.rates"]).reshape(-1, 30)
low_, high_ = np.quantile(drawn, (0.05, 0.95), axis=0)
true = np.array([rates[i, j] for i, j in kernel.edges])
linked = (drawn > 0).mean(axis=0)
print(f"probability of a jump that there is:     at least {linked[true > 0].min():.2f}")
print(f"probability of a jump that there is not: at most {linked[true == 0].max():.2f}")
inside = (true > low_) & (true < high_)
print(
    f"rates within their 90 % intervals, of those that are not zero: {inside[true > 0].mean():.0%}"
)
for label, value in (("EM", fit.parameters["transition.rates"]), ("posterior mean", drawn.mean(0))):
    print(
        f"root-mean-square error of the rates, {label}: {np.sqrt(np.mean((value - true) ** 2)):.3f}"
    )

order = np.lexsort((np.arange(30), -true))
at = np.arange(30)
fig, ax = plt.subplots(figsize=(8.6, 3.4), layout="constrained")
ax.vlines(at, low_[order], high_[order], color=BLUE, lw=5, alpha=0.35, label="posterior, 90 %")
ax.plot(at, drawn.mean(0)[order], "o", color=BLUE, ms=4, label="posterior mean")
ax.plot(at, fit.parameters["transition.rates"][order], "x", color="0.45", ms=5, label="EM")
ax.plot(at, true[order], "_", color=RED, ms=11, mew=1.8, label="truth")
ax.set(ylabel="rate per unit of time", xlim=(-0.7, 29.7))
ax.set_xticks(
    at,
    [f"{names[i]} → {names[j]}" for i, j in (kernel.edges[e] for e in order)],
    rotation=90,
    fontsize=7,
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small")
plt.show()

# %%
# What follows from the rates
# ---------------------------
# A function of the rates has the posterior that the draws give it. Here: where the particle is in the long
# run, how long it takes from one state to another on average, and how much entropy is produced, which is
# zero for a process that looks the same run backwards. A ratchet that flashes does not.


def of_each_draw(report):
    """A report on the process, for every draw of its rates."""
    return np.asarray(jax.jit(jax.vmap(lambda r: report(kernel.with_rates(r))))(jnp.asarray(drawn)))


laws = of_each_draw(lambda q: q.stationary_law())
passage = of_each_draw(lambda q: q.mean_first_passage_times())
entropy = of_each_draw(lambda q: q.entropy_production())

fig, (left, middle, right) = plt.subplots(
    1, 3, figsize=(9.4, 3.2), width_ratios=(1.1, 1.2, 1), layout="constrained"
)
low_, high_ = np.quantile(laws, (0.05, 0.95), axis=0)
left.bar(range(6), laws.mean(0), color=BLUE, alpha=0.5)
left.vlines(range(6), low_, high_, color=BLUE, lw=1.5)
left.plot(range(6), truth.transition.stationary_law(), "_", color=RED, ms=14, mew=1.8)
left.set_xticks(range(6), names, rotation=45)
left.set_title("stationary law", loc="left", fontsize="medium")
image = middle.imshow(np.median(passage, axis=0), cmap="Blues", vmin=0)
exact = np.asarray(truth.transition.mean_first_passage_times())
for i, j in np.ndindex(6, 6):
    if i != j:
        dark = np.median(passage, axis=0)[i, j] > 0.6 * passage.mean(0).max()
        text = f"{np.median(passage[:, i, j]):.1f}\n({exact[i, j]:.1f})"
        middle.text(
            j, i, text, ha="center", va="center", fontsize=5.5, color="w" if dark else "0.2"
        )
middle.set_xticks(range(6), names, rotation=45)
middle.set_yticks(range(6), names)
middle.set(xlabel="to", ylabel="from")
middle.set_title("mean first passage (truth)", loc="left", fontsize="medium")
finite = entropy[np.isfinite(entropy)]
right.hist(finite, bins=40, density=True, color=BLUE, alpha=0.5)
right.axvline(float(truth.transition.entropy_production()), color=RED, lw=1.8)
right.set(xlabel="nats per unit of time", yticks=[])
right.set_title("entropy production", loc="left", fontsize="medium")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The longest relaxation time says after how long the process has forgotten where it began: beyond it, two
# looks tell no more about each other.

for label, process in (("found", draws.model), ("truth", truth)):
    print(f"relaxation times, {label}:", np.round(process.transition.relaxation_times(), 2))
