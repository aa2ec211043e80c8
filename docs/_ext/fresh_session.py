"""What is put back before each script of the gallery: they run in one process."""

import jax
import matplotlib.pyplot as plt


def begin(gallery_conf, script):
    """Begin as a new Python session does: float32, no open figures, matplotlib's own style.

    Compiled programs are forgotten as well: each takes several memory maps, Linux allows a process 65,530,
    and the whole site would need about as many.
    """
    jax.config.update("jax_enable_x64", False)
    jax.clear_caches()
    plt.close("all")
    plt.rcdefaults()
    plt.rcParams["figure.constrained_layout.use"] = True
