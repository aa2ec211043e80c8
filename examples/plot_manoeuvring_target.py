"""
Tracking a target that manoeuvres
=================================

An aircraft flies straight, and now and then it turns. A Kalman filter for straight flight is led astray by
each turn; one that is ready for turns at any time trusts its radar too much on the straights. A *switching*
model has a law for each, and a hidden regime that says which of them holds. The interacting multiple model
filter (Blom & Bar-Shalom 1988) runs one Gaussian filter a regime and weighs them by how well they predict:
it has been the standard of air traffic control ever since.
"""

# %%
# The flight
# ----------
# A flight in air traffic control (after Bar-Shalom, Li & Kirubarajan 2001, section 11.7): at 120 m/s
# straight, a left turn of 1° a second for 90 s, straight, a right turn of 3° a second for 30 s, straight
# again. A radar sees the position every 5 s, with an error of 100 m in each coordinate.

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)

interval = 5.0
rates = np.radians(
    np.repeat([0.0, 1.0, 0.0, -3.0, 0.0], [25, 18, 25, 6, 25])
)  # rad/s, each for 5 s
heading = np.pi + interval * np.concatenate([[0], np.cumsum(rates)])
fine = heading[:-1, None] + rates[:, None] * np.linspace(0, interval, 50, endpoint=False)
moves = 0.12 * interval * np.stack([np.cos(fine), np.sin(fine)], axis=-1).mean(axis=1)
track = np.array([25.0, 10.0]) + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
times = interval * np.arange(len(track))
turning = np.concatenate([[False], rates != 0])

generator = np.random.default_rng(0)
flights = track + 0.1 * generator.normal(size=(100, *track.shape))  # km
radar = ss.Series(flights[0], times=times)

# %%
# The models
# ----------
# Both regimes have one state: position, velocity and the rate of turning. A turn is that of
# :class:`~statespace.CoordinatedTurn`, which is not linear: the velocity turns at the rate. Straight flight
# is linear. What it leaves behind as the rate is a guess at that of the turn to come, so that a turn begins
# with any rate, and from then on keeps it. How large the rates are, how rough the flight is and how long
# straights and turns last are parameters.


class Manoeuvring(eqx.Module):
    """Straight flight and turns; kilometres, seconds, radians."""

    acceleration_scale: jax.Array = ss.parameter("positive")  # km / s^(3/2)
    rate_scale: jax.Array = ss.parameter("positive")  # of turns, rad / s
    seconds: jax.Array = ss.parameter("positive")  # that a straight and a turn last, on average

    @property
    def initial(self):
        """Near where the radar found it, going anywhere."""
        start = ss.Gaussian([25.0, 10.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.2, 0.2, 0.03])
        return ss.Switching(ss.Categorical([0.9, 0.1]), [start])

    @property
    def transition(self):
        """Straight, and turning."""
        matrix = jnp.eye(5).at[:2, 2:4].set(interval * jnp.eye(2)).at[4, 4].set(0.0)
        times = jnp.array([[interval**3 / 3, interval**2 / 2], [interval**2 / 2, interval]])
        noise = jnp.zeros((5, 5)).at[4, 4].set(self.rate_scale**2)
        noise = noise.at[:4, :4].set(self.acceleration_scale**2 * jnp.kron(times, jnp.eye(2)))
        straight = ss.AffineGaussian(matrix, covariance=noise)
        turn = ss.CoordinatedTurn(
            self.acceleration_scale, 0.1, np.zeros(5), np.ones(5), turn_scale=1e-4
        )
        leave = -jnp.expm1(-interval / self.seconds)
        kernel = ss.FiniteKernel(jnp.diag(1 - leave) + jnp.diag(leave)[:, ::-1])
        return ss.Switching(kernel, [straight, turn.transition])

    @property
    def observation(self):
        """The radar sees the position."""
        return ss.Switching(None, [ss.AffineGaussian(jnp.eye(2, 5), scale=jnp.full(2, 0.1))])


# %%
# ``fit`` climbs the likelihood of the filter, which is differentiable, on one flight.

imm = ss.InteractingMultipleModel()
start = Manoeuvring(acceleration_scale=2e-4, rate_scale=0.02, seconds=[60.0, 60.0])
learner = ss.MaximumLikelihood(standard_errors=False, progress=False)
fitted = ss.fit(start, radar, method=imm, learner=learner)
model = fitted.model
for name, value in ss.parameters(model).items():
    print(f"{name:20s}", np.round(value, 5))

# %%
# Five filters
# ------------
# One hundred flights on this track, each with errors of its own, at once by ``jax.vmap``. The Kalman filters
# differ in how much acceleration they expect. ``GaussianSum`` keeps eight laws in place of two.


def steady(scale):
    """Straight flight with this much acceleration, in km / s^(3/2)."""
    law = ss.Gaussian([25.0, 10.0, 0.0, 0.0], [1.0, 1.0, 0.2, 0.2])
    return ss.ConstantVelocity(acceleration_scale=scale, noise_scale=0.1, initial_law=law)


@eqx.filter_jit
def run(method, model, flights):
    """Filtered positions and log likelihoods of all flights."""

    def one(y):
        found = method.posterior(model, ss.Series(y, times=times), "filtered")
        return found.mean[:, :2], found.log_likelihood

    return jax.vmap(one)(flights)


filters = {
    "Kalman, small noise": (ss.Kalman(), steady(1e-3)),
    "Kalman, in between": (ss.Kalman(), steady(4e-3)),
    "Kalman, large noise": (ss.Kalman(), steady(1.6e-2)),
    "interacting models": (imm, model),
    "Gaussian sum": (ss.GaussianSum(components=8), model),
}
later = np.arange(len(times)) >= 10  # by then every filter has found the direction
errors = {}
print(f"{'RMSE (m)':22s}{'straight':>10s}{'turns':>8s}{'all':>8s}{'log likelihood':>18s}")
for name, (method, law) in filters.items():
    found, log_likelihood = run(method, law, flights)
    squares = np.sum((np.asarray(found) - track) ** 2, axis=2).mean(axis=0) * 1e6
    errors[name] = np.sqrt(squares)
    parts = [np.sqrt(squares[later & part].mean()) for part in (~turning, turning, True)]
    print(f"{name:22s}{parts[0]:10.0f}{parts[1]:8.0f}{parts[2]:8.0f}{log_likelihood.mean():18.1f}")

# %%
# Whatever noise it is given, one filter pays for the straights in the turns or the other way round. The
# switching filters do as well as the best of them in the turns, and better on the straights.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.plot(*track.T, color="0.75", lw=4, label="flight")
left.plot(*flights[0].T, ".", color="0.3", ms=3, label="radar")
left.set(xlabel="east (km)", ylabel="north (km)", aspect="equal")
left.legend(frameon=False)
colours = ["#9a9a9a", "#c9992b", "#4b8b3b", "#2b6a99", "#c4572e"]
for (name, error), colour in zip(errors.items(), colours):
    if name != "Kalman, in between":
        right.semilogy(times[later], error[later], color=colour, label=name)


def shade(axes):
    """Where the truth turns."""
    for a, b in ((25, 43), (68, 74)):
        axes.axvspan(times[a], times[b], color="0.92", zorder=0)


shade(right)
right.set(xlabel="time (s)", ylabel="RMSE of the position (m)")
right.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0, 0.98))

# %%
# Which regime, how fast a turn, and where to?
# --------------------------------------------
# Nobody told the model when the turns are (shaded), nor how sharp: both come out of the positions, some
# looks of the radar late. Here the radar fails for 30 s in the first turn, and for good in the second one.
# What comes after is the forecast: turns end, so that the probability of turning falls, and with it what is
# expected of the rate.

now, minute = 72, 12
seen = np.where((np.arange(now) // 6 == 5)[:, None], np.nan, flights[0, :now])
ahead = ss.forecast(model, ss.Series(seen, times=times[:now]), minute, method=imm)
filtered = ss.filter(model, ss.Series(seen, times=times[:now]), method=imm)
shown = slice(0, now + minute)
probs = np.concatenate([filtered.probs[:, 1], ahead.probs[:, 1]])
future = ahead.posterior.mean[now:, 4]
degrees = np.degrees(np.concatenate([filtered.mean[:, 4], future]))

figure, (above, below) = plt.subplots(2, 1, figsize=(8, 4.4), sharex=True, layout="constrained")
above.fill_between(times[shown], probs, color="#c4572e", alpha=0.6, lw=0)
above.set(ylabel="P(turning)", ylim=(0, 1))
below.plot(times[shown], degrees, color="#2b6a99", label="expected")
below.step(times[1:][shown], np.degrees(rates[shown]), color="0.3", lw=1, ls="--", label="truth")
below.set(xlabel="time (s)", ylabel="rate of turning (°/s)")
for axis in (above, below):
    shade(axis)
    axis.axvspan(times[30], times[35], color="#2b6a99", alpha=0.15, label="no radar")
    axis.axvspan(times[now - 1], times[now + minute - 1], color="#2b6a99", alpha=0.15)
    axis.set_xlim(0, times[now + minute - 1])
below.legend(frameon=False, loc="lower left")

# %%
# The forecast in the plane, by draws: some go on turning, others fly straight from one of the moments on.

draws = np.asarray(ahead.sample(jax.random.key(0), 400))
figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
axis.plot(*track[50 : now + minute].T, color="0.75", lw=4, label="flight")
axis.plot(*seen[50:].T, "o", color="0.3", ms=3, label="radar")
for k, colour in ((3, "#c9992b"), (7, "#c4572e"), (11, "#8a5a9e")):
    label = f"in {int(interval) * (k + 1)} s"
    axis.plot(*draws[:, k].T, ".", color=colour, ms=2, alpha=0.6, label=label)
axis.plot(*np.asarray(ahead.mean).T, color="0.1", lw=1, label="mean of the forecast")
axis.set(xlabel="east (km)", ylabel="north (km)", aspect="equal", xlim=(-9, 9), ylim=(-21, -4))
axis.legend(frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))

# %%
# As the looks come in
# --------------------
# ``ss.online`` takes one at a time. It raises the alarm when a turn is more likely than not.

tracker = ss.online(model, method=imm, dt=interval)
state, alarms = tracker.init(), []
for position in flights[1]:
    state = tracker.update(state, position)
    alarms.append(float(state.probs[1]) > 0.5)
for what, begin in (("first", 25), ("second", 68)):
    delay = np.argmax(alarms[begin + 1 :]) + 1
    print(f"the {what} turn, {interval * delay:.0f} s after it began")
plt.show()
