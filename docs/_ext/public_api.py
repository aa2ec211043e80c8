"""The reference, taken from the public face of the package itself.

`.. public-api:: statespace.verbs` lists and documents every name in `statespace.__all__` that is
defined in that module or below it. If there is none, or the package lists the module itself, it is one
that is used by its own name (`ss.plot.smoothed`), and its own public names are listed. A public name
that is on no page is a warning, so that the reference stays complete by itself.
"""

import importlib
import inspect
import types

from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

PACKAGE = "statespace"


def public_names(module: types.ModuleType) -> dict[str, object]:
    """Return the public objects of a module by name, submodules apart."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if below(value, module.__name__)]
    found = {name: getattr(module, name) for name in names if not name.startswith("_")}
    return {k: v for k, v in found.items() if not isinstance(v, types.ModuleType)}


def below(value: object, prefix: str) -> bool:
    """Whether a value is defined in the module `prefix` or in one below it."""
    module = getattr(value, "__module__", None) or ""
    return module == prefix or module.startswith(prefix + ".")


def is_namespace(package: types.ModuleType, name: str) -> bool:
    """Whether the package lists this module among its public names."""
    own = name.removeprefix(PACKAGE + ".")
    return own in package.__all__ and isinstance(getattr(package, own, None), types.ModuleType)


class PublicAPI(SphinxDirective):
    """Document the public names of one or more modules."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        """Write autosummary and autodoc directives, and have them parsed."""
        package = importlib.import_module(PACKAGE)
        self.env.note_dependency(package.__file__)
        face = public_names(package)
        groups: dict[str, dict[str, object]] = {}
        for prefix in self.arguments[0].split():
            found = {PACKAGE: {k: v for k, v in face.items() if below(v, prefix)}}
            if not found[PACKAGE] or is_namespace(package, prefix):
                try:
                    own = public_names(importlib.import_module(prefix))
                    found[prefix] = {k: v for k, v in own.items() if k not in face}
                except ImportError as error:
                    logger.warning("%s", error, location=self.get_location())
            if not any(found.values()):
                logger.warning("%s: nothing public", prefix, location=self.get_location())
            page = self.env.metadata[self.env.docname]
            for home, names in found.items():
                page["public_api"] = " ".join([page.get("public_api", ""), *names])
                if names:
                    groups.setdefault(home, {}).update(names)
        lines = []
        for home, names in groups.items():
            order = sorted(names, key=lambda name: inspect.isclass(names[name]))
            lines += [f".. currentmodule:: {home}", "", ".. autosummary::", "   :nosignatures:", ""]
            lines += [f"   {name}" for name in order]
            for name in order:
                if inspect.isclass(names[name]):
                    lines += ["", f".. autoclass:: {name}", "   :members:"]
                else:
                    kind = "autofunction" if callable(names[name]) else "autodata"
                    lines += ["", f".. {kind}:: {name}"]
            lines.append("")
        return self.parse_text_to_nodes("\n".join(lines))


def check_complete(app, env):
    """Warn of public names that no page documents."""
    documented = set()
    for page in env.metadata.values():
        documented.update(page.get("public_api", "").split())
    left = set(public_names(importlib.import_module(PACKAGE))) - documented
    for name in sorted(left):
        logger.warning("%s.%s is public and on no page of docs/api", PACKAGE, name)


def skip_tuple_fields(app, what, name, value, skip, options):
    """Leave out the fields of named tuples: the class's docstring says what they are."""
    doc = getattr(value, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") else None


def setup(app):
    """Register the directive and the check."""
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.add_directive("public-api", PublicAPI)
    app.connect("env-check-consistency", check_complete)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
