"""Pages whose Python runs when the site is built: below each block is what it printed and drew.

The pages are those of the setting `executed_pages`. Their blocks share one session, as a reader's would.
"""

import contextlib
import io
import re
from pathlib import Path

import fresh_session
import matplotlib.pyplot as plt

BLOCK = re.compile(r"^```python\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)
WIDTH = 720  # pixels of a figure on the page


def execute(app, docname, source):
    """Run the blocks of a page, and put their output below them."""
    if docname not in app.config.executed_pages:
        return
    folder = Path(app.srcdir) / "gallery" / "executed"
    folder.mkdir(parents=True, exist_ok=True)
    fresh_session.begin(None, None)
    session, number = {"__name__": "__main__"}, 0

    def run(block):
        nonlocal number
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block[1], docname, "exec"), session)
        shown = [block[0]]
        if printed.getvalue():
            shown.append(f"```{{code-block}} text\n:class: output\n{printed.getvalue()}```\n")
        for figure in map(plt.figure, plt.get_fignums()):
            name = f"{docname.replace('/', '-')}-{(number := number + 1)}.png"
            figure.savefig(folder / name, dpi=150)
            shown.append(f"```{{image}} /gallery/executed/{name}\n:width: {WIDTH}px\n```\n")
        plt.close("all")
        return "\n".join(shown)

    source[0] = BLOCK.sub(run, source[0])


def setup(app):
    """Register the setting and the hook."""
    app.add_config_value("executed_pages", [], "env")
    app.connect("source-read", execute)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
