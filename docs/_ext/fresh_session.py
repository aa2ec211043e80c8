"""What is put back before each script of the gallery: they run in one process."""

import jax
import matplotlib.pyplot as plt


def begin(gallery_conf, script):
    """Begin as a new Python session does: float32, no open figures, matplotlib's own style."""
    jax.config.update("jax_enable_x64", False)
    plt.close("all")
    plt.rcdefaults()
    plt.rcParams["figure.constrained_layout.use"] = True
