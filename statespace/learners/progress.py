"""Progress bars: shown for what takes long, or when asked for."""

from __future__ import annotations

import sys
from typing import Any

_PATIENCE = 3.0  # seconds before a bar appears that nobody asked for


def bar(total: int, label: str, progress: bool | None) -> Any:
    """A tqdm bar.

    Args:
        total: number of units of work.
        label: what is going on.
        progress: True to show it, False not to, None to show it to a person (in a
            terminal or a notebook, not in a log) once the work has taken a while.
    """
    from tqdm import tqdm

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        total=total,
        desc=label,
        disable=progress is False or (progress is None and not watched),
        delay=0 if progress else _PATIENCE,
        leave=bool(progress),
    )
