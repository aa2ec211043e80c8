"""
Has the yearly swing of CO₂ grown?
==================================

On Mauna Loa the carbon dioxide in the air rises year by year, and within each year it falls while the
northern forests grow and rises while they rest. Is this swing the same every year, or does it
change? Each answer is a structural model: a trend plus a seasonal pattern, which is either fixed or
moves. Both are fitted to the record up to 1996 by maximum likelihood, criticised, and asked for five
years that they have not seen.

``make demo`` runs this page; the figures go to ``figures/``.
"""

# %%
# The record
# ----------
# Monthly means of weekly measurements since 1958. Five months were never measured; they stay ``NaN``.

# needs: statsmodels
# sphinx_gallery_thumbnail_number = -1

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import statespace as ss

jax.config.update("jax_enable_x64", True)  # float64, for the digits of the table

co2 = ss.datasets.load("co2").resample("MS").mean().rename_axis("month")
known, held_out = co2[:"1996"], co2["1997":]
print(co2.attrs["title"])
print(f"{len(known)} months to learn from, {known.isna().sum()} of them missing")
print(f"{len(held_out)} months held out")

# %%
# Two models
# ----------
# Parts add with ``+``. The numbers are where the search begins, in ppm. A seasonal without a ``scale`` has
# nothing that moves it: its pattern is the same every year.

trend = ss.LocalLinearTrend(level_scale=0.2, slope_scale=0.01, noise_scale=0.2)
models = {
    "fixed swing": trend + ss.Seasonal(12, kind="trigonometric", harmonics=4),
    "changing swing": trend + ss.Seasonal(12, scale=0.01, kind="trigonometric", harmonics=4),
}

fits = {name: ss.fit(model, known) for name, model in models.items()}
forecasts = {name: ss.forecast(f.model, known, steps=len(held_out)) for name, f in fits.items()}
posteriors = {name: ss.smooth(f.model, co2) for name, f in fits.items()}

# %%
# Side by side
# ------------
# Both models start from the same ten unknown numbers (level, slope and four harmonics), so that their log
# likelihoods can be compared. The scores of the forecasts are those of the five years to come as they were
# seen at the end of 1996, and of one month ahead, over and over.


def column(name):
    """One model's column of the table: what was found, how well it fits, how well it foresees."""
    fit, score = fits[name], forecasts[name].score(held_out)
    tests, unseen = fit.residual_tests(lags=24), slice(len(known), None)
    rows = {"log likelihood": f"{fit.log_likelihood:.2f}", "AIC": f"{fit.aic:.2f}"}
    for parameter, value in fit.parameters.items():
        rows[parameter] = f"{value:.4f} ± {fit.standard_errors[parameter]:.4f}"
    for label, test in [
        ("Ljung–Box to lag 24, p", tests.autocorrelation),
        ("Jarque–Bera, p", tests.normality),
        ("constant variance, p", tests.heteroskedasticity),
    ]:
        rows[label] = f"{test[0].p_value:.3f}" if test[0].p_value >= 0.001 else "<0.001"
    rows["five years: log score a month"] = f"{score.log_score:.3f}"
    rows["five years: CRPS (ppm)"] = f"{score.crps:.3f}"
    rows["five years: mean |error| (ppm)"] = f"{score.mae:.3f}"
    rows["five years: inside 80 %"] = f"{score.coverage[0.8]:.0%}"
    rows["one month: log score"] = f"{posteriors[name].pointwise[unseen].mean():.3f}"
    return rows


columns = {name: column(name) for name in fits}
labels = list(columns["changing swing"])
print("\n" + " " * 31 + "".join(f"{name:>20}" for name in columns))
for label in labels:
    print(f"{label:31}" + "".join(f"{rows.get(label, '—'):>20}" for rows in columns.values()))

# %%
# The fixed pattern leaves something in its prediction errors (Ljung–Box), which a right model would
# not. The moving one does not, is likelier by far, and foresees better, one month and five years
# ahead. The sixty errors of one long forecast hang together, so that their coverage is a rough check
# only. What each model leaves unexplained, a year apart above all:

# sphinx_gallery_multi_image_block = "single"

figures = Path("figures")
figures.mkdir(exist_ok=True)


def save(name, title=None):
    """Write the current figure."""
    if title:
        plt.gcf().suptitle(title, x=0.02, ha="left")
    plt.gcf().savefig(figures / f"{name}.png", dpi=150)


for name, posterior in posteriors.items():
    ss.plot.diagnostics(posterior)
    save(f"errors-{name.replace(' ', '-')}", name)

# %%
# The parts
# ---------
# What the record says of trend and season once all of it has been seen. That the season grows was not put in:
# the model only lets it move.

smoothed = posteriors["changing swing"]
ss.plot.components(smoothed)
save("components")

# %%
# The swing of each year, from the lowest month to the highest, is a nonlinear function of the states.
# Draws of whole trajectories, exact given the data, give its law.


def swings(posterior, draws=400):
    """Draws of each year's swing, shape ``(draws, years)``, and the years."""
    states = np.asarray(posterior.sample(jax.random.key(0), draws))
    pattern = [i for i, name in enumerate(posterior.names) if name.startswith("seasonal.cos")]
    season = states[:, co2.index.year >= 1959][..., pattern].sum(axis=-1)
    return np.ptp(season.reshape(draws, -1, 12), axis=-1), np.arange(1959, 2002)


def draw_swings(ax):
    """Each year's swing under both models, with 90 % bands."""
    for (name, posterior), color in zip(posteriors.items(), ("0.55", "#2b6a99")):
        drawn, years = swings(posterior)
        low, middle, high = np.quantile(drawn, (0.05, 0.5, 0.95), axis=0)
        ax.fill_between(years, low, high, color=color, alpha=0.25, lw=0)
        ax.plot(years, middle, color=color, lw=1.6, label=name)
    ax.set_ylabel("swing of the year (ppm)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper left")


draw_swings(plt.subplots(figsize=(7.4, 3.2), layout="constrained")[1])
save("swing")
drawn, years = swings(smoothed)
growth = drawn[:, -5:].mean(axis=1) / drawn[:, :5].mean(axis=1) - 1
low, high = np.quantile(growth, (0.05, 0.95))
print(f"the swing grew by {growth.mean():.0%} ({low:.0%} to {high:.0%}) from 1959–63 to 1997–01")

# %%
# The forecast
# ------------
# Five years from the end of 1996, and what came.


def draw_forecast(ax, name="changing swing"):
    """The fan of the forecast after the last years that were known."""
    ss.plot.forecast(forecasts[name], known, actual=held_out, last=60, axes=ax)


draw_forecast(plt.subplots(figsize=(7.4, 3.4), layout="constrained")[1])
save("forecast")

# %%
# All in one picture:

fig, panels = plt.subplot_mosaic(
    [["record", "record"], ["swing", "forecast"]], figsize=(9.6, 6.2), layout="constrained"
)
trend = smoothed.components["trend"].mean
panels["record"].plot(co2.index, co2, color="0.45", lw=0.8, label="observed")
panels["record"].plot(co2.index, trend, color="#2b6a99", lw=1.6, label="trend")
panels["record"].set_ylabel(co2.name)
panels["record"].margins(x=0.01)
draw_swings(panels["swing"])
draw_forecast(panels["forecast"])
panels["forecast"].set_xlabel("")
titles = {
    "record": "The record and its trend",
    "swing": "The swing of each year, with 90% bands",
    "forecast": "Five years foreseen, and what came",
}
for name, ax in panels.items():
    ax.set_title(titles[name], loc="left", fontsize="medium", weight="bold", color="0.2")
    ax.legend(frameon=False, fontsize="small", loc="upper left", ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
save("overview")

print(f"\nfigures are in {figures.resolve()}:")
print("\n".join(f"  {path.name}" for path in sorted(figures.glob("*.png"))))
