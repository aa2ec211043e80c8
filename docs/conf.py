"""The site: `make docs` builds it without a network, with warnings as errors."""

import os
import re
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
sys.path.insert(0, str(HERE / "_ext"))

project = "statespace"
author = "The statespace developers"
copyright = "the statespace developers"
release = version = metadata.version("statespace-jax")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",  # formulas without a script from elsewhere
    "executed",
    "public_api",
]
executed_pages = ["first-analysis", "which-method"]
exclude_patterns = ["_build", "sg_execution_times.rst", "gallery/sg_execution_times.rst"]
# A word in single backticks is code, in docstrings as in Markdown.
default_role = "code"

html_theme = "furo"
html_title = "statespace"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = False
autodoc_typehints = "none"  # docstrings give types and shapes
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_attr_annotations = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# The gallery: every script of examples/ is executed and becomes a page.


def missing(script: Path) -> list[str]:
    """What a script declares that it needs, and is not here.

    `# needs: package, package` names installed packages; `# needs-data: folder` names folders of
    the one that the environment variable STATESPACE_DATA points to.
    """
    declared = re.findall(r"^# needs(-data)?: *(.+)$", script.read_text(), flags=re.MULTILINE)
    data = os.environ.get("STATESPACE_DATA")
    absent = []
    for is_data, names in declared:
        for name in re.split(r"[,\s]+", names.strip()):
            if is_data:
                if not (data and (Path(data) / name).exists()):
                    absent.append(f"the data {name}")
            elif find_spec(name) is None:
                absent.append(f"the package {name}")
    return absent


SCRIPTS = sorted(p for p in EXAMPLES.glob("*.py") if not p.name.startswith("_"))
NOT_RUN = {p.stem: absent for p in SCRIPTS if (absent := missing(p))}


sphinx_gallery_conf = {
    "examples_dirs": [str(EXAMPLES)],
    "gallery_dirs": ["gallery"],
    "filename_pattern": "|".join(
        re.escape(f"{os.sep}{p.name}") + "$" for p in SCRIPTS if p.stem not in NOT_RUN
    )
    or r"(?!)",
    "ignore_pattern": r"[/\\]_\w*\.py$",
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("fresh_session.begin",),
    "backreferences_dir": "gallery/backreferences",
    "image_srcset": ["2x"],
    "capture_repr": ("_repr_html_",),  # what a page prints is what its code prints
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 1,
    "write_computation_times": False,
}


def listed(absent: list[str]) -> str:
    """What is missing, in words."""
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing"


def say_not_run(app, docname, source):
    """Tell the reader of a page why its script was not run when the site was built."""
    stem = docname.removeprefix("gallery/")
    if not (docname.startswith("gallery/") and stem in NOT_RUN):
        return
    note = f"\n.. note:: Not run when this site was built: {listed(NOT_RUN[stem])}.\n"
    source[0] = re.sub(r"^(=+)$", rf"\1\n{note}", source[0], count=1, flags=re.MULTILINE)


def setup(app):
    """Hook the note in."""
    for stem, absent in NOT_RUN.items():
        print(f"examples/{stem}.py is shown but not run: {listed(absent)}")
    app.connect("source-read", say_not_run)
