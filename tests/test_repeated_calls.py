"""What a verb does anew when it is called again: nothing of the model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statespace as ss

BUILT = []


class Watched(eqx.Module):
    """A random walk seen through noise, which notes when one of its conditionals is built."""

    scale: jax.Array = ss.parameter("positive")

    @property
    def initial(self):
        BUILT.append("initial")
        return ss.Gaussian(jnp.zeros(1), jnp.ones(1))

    @property
    def transition(self):
        BUILT.append("transition")
        return ss.AffineGaussian(jnp.eye(1), scale=self.scale[None])

    @property
    def observation(self):
        BUILT.append("observation")
        return ss.AffineGaussian(jnp.eye(1), scale=jnp.ones(1))


@pytest.mark.parametrize("verb", [ss.filter, ss.smooth, ss.log_likelihood])
@pytest.mark.parametrize("data", [np.arange(5.0), [np.arange(5.0), np.arange(3.0)]])
def test_conditionals_are_built_while_compiling_only(verb, data):
    eqx.clear_caches()
    BUILT.clear()
    first = verb(Watched(1.0), data)
    assert set(BUILT) == {"initial", "transition", "observation"}
    BUILT.clear()
    second = verb(Watched(2.0), data)
    assert not BUILT
    assert not np.array_equal(*(leaf_of(out) for out in (first, second)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_recordings_of_any_length_are_made_without_compiling(dtype):
    """Nor does one share memory with the array that it was made of."""
    compiled = []
    listener = lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else 0
    jax.monitoring.register_event_duration_secs_listener(listener)
    room = np.zeros(2000, dtype)
    lead = -room.ctypes.data % 64 // room.itemsize  # aligned memory is what JAX would read in place
    y = room[lead : lead + 1713].reshape(571, 3)
    series = [ss.Series(y[:n], inputs=y[:n, :2]) for n in (571, 467, 97)]
    panel = ss.Panel(series)
    parts = [np.asarray(s.y) for s in panel.series]
    jax.monitoring.unregister_event_duration_listener(listener)
    assert not compiled
    assert [len(part) for part in parts] == [571, 467, 97]
    y[:] = 7.0
    assert not np.any(series[0].y)
    assert series[0].y.dtype == dtype


def leaf_of(result):
    """The first array of what a verb returned, the log likelihood where it has one."""
    found = getattr(result, "padded", result)
    return np.asarray(getattr(found, "log_likelihood", found))
