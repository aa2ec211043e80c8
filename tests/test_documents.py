"""The Python shown in the documents runs as it stands, in a new session."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["README.md", "docs/index.md", "docs/first-analysis.md", "docs/which-method.md"]
)
def test_snippets_run(name):
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL
    )
    assert blocks
    # The README shows last how float64 is switched on, and that comes first in a session.
    flags = [b for b in blocks if "jax.config.update" in b]
    code = "\n".join(flags + [b for b in blocks if b not in flags])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
