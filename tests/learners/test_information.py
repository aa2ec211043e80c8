"""Curvature, where some of it is unknown."""

import numpy as np

from statespace.learners.information import bends


def test_second_derivatives_that_are_not_there_leave_directions_flat():
    """A coordinate without a Hessian is undetermined; the others bend as they do alone."""
    hessian = np.array([[4.0, 1.0, np.nan], [1.0, 9.0, np.nan], [np.nan, np.nan, np.nan]])
    shape = bends(hessian, 10.0, 1e-16)
    assert shape.flat.sum() == 1
    np.testing.assert_allclose(np.abs(shape.vectors[:, shape.flat][:, 0]), [0, 0, 1], atol=1e-12)
    alone = bends(hessian[:2, :2], 10.0, 1e-16)
    np.testing.assert_allclose(shape.values[~shape.flat], alone.values)
