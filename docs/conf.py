"""How Sphinx makes the site (``make docs``).

The source folder is the repository itself, so links between guides, notebooks, tables and the
README are the same here as where the files are read as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from inspect import isclass, ismodule, isroutine, unwrap
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_origin

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.logging import getLogger
from sphinx.util.nodes import make_refnode

import fairbilevel

logger = getLogger(__name__)

project = "fairbilevel"
author = "the fairbilevel authors"
copyright = author
release = version = fairbilevel.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/*.rst",
    "docs/api/*.rst",
    "notebooks/*.ipynb",
    "experiments/results/**.md",
]
# Folders that would be walked through for nothing.
exclude_patterns = [".*", "build", "dist", "fairbilevel", "runs", "tests"]
templates_path = [str(Path(__file__).parent / "_templates")]

# Notebooks are shown as they are stored; a test executes them.
nb_execution_mode = "off"
myst_heading_anchors = 4


def home(room: str, name: str) -> str:
    """The name, seen from a room, that something is described under, once in the site."""
    found = getattr(import_module(room), name)
    top = (
        room != "fairbilevel"
        and name in fairbilevel.__all__
        and getattr(fairbilevel, name) is found
    )
    return f"~fairbilevel.{name}" if top else name


def names(room: str) -> list[str]:
    """What a room offers. (A lazy module's ``dir`` lacks the ``__all__`` that Sphinx looks for.)"""
    return list(import_module(room).__all__)


def directive(room: str, name: str) -> str:
    """What describes a name on the page of a room; nothing where another page does."""
    found = getattr(import_module(room), name)
    if ismodule(found) or home(room, name) != name:
        return ""
    if isclass(found):
        derived = public_base(found.__base__) is not object
        return f".. autoclass:: {name}" + derived * "\n   :show-inheritance:"
    return f".. auto{'function' if isroutine(unwrap(found)) else 'data'}:: {name}"


def public_base(base: Any) -> Any:
    """The nearest one whose name is not private; ``NamedTuple`` is a function."""
    return next(b for b in getattr(base, "__mro__", [base]) if not b.__name__.startswith("_"))


@cache
def constants_of(room: str) -> dict[str, list[str]]:
    """The lines below the constants that the files of a room define."""
    folder = getattr(import_module(room), "__path__", [])
    files = [room, *(f"{room}.{file.name}" for file in iter_modules(folder))]
    found = [ModuleAnalyzer.for_module(file).find_attr_docs() for file in files]
    return {name: text for docs in found for (owner, name), text in docs.items() if not owner}


# Pages of rooms are made from their __all__, which names what private files define.
suppress_warnings = ["config.cache"]  # of the functions in the next line
autosummary_context = {"home": home, "directive": directive, "names": names}
autodoc_default_options = {"members": True, "no-value": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"fairbilevel {release}"
html_copy_source = html_show_sourcelink = False

# Kept out of the README, where readers would see it as code.
CONTENTS = """
```{toctree}
:hidden:
:caption: Guides

docs/python
docs/command_line
docs/how_it_works
docs/certificates
docs/shipping
docs/models
docs/models_from_elsewhere
docs/comparing
docs/disparate_impact
docs/hypergradients
docs/large_data
docs/devices
docs/run_folder
docs/crash_safety
```

```{toctree}
:hidden:
:caption: Notebooks

notebooks/quickstart
notebooks/your_own_model
notebooks/mask_dynamics
notebooks/ship_it
notebooks/choosing_a_hypergradient
```

```{toctree}
:hidden:
:caption: Reference

docs/api
docs/results
docs/dependencies
CHANGELOG
CONTRIBUTING
```
"""


def contents(app, page, source):
    """Give pages that must read well elsewhere too what is only of use here."""
    if page == root_doc:
        source[0] += CONTENTS
    if page.startswith("experiments/"):  # reached from the page of results, too many for a menu
        source[0] = "---\norphan: true\n---\n" + source[0]


def constants(app, what, name, found, options, lines):
    """A constant is told by the lines below it and by its value, not by its type's text."""
    if what == "data":
        room, _, name = name.rpartition(".")
        shown = repr(found)
        if get_origin(found):  # another name of a type
            shown = re.sub(r"[\w.]+\.(?=\w)", "", shown)
        if "<" in shown:  # an address in memory
            shown = ", ".join(found) if isinstance(found, Mapping) else ""
        lines[:] = [*constants_of(room).get(name, []), "", f"``{shown}``" if shown else ""]


def properties(app, what, name, found, options, lines):
    """A colon in the first line of a property ends no type, as napoleon would have it."""
    if what == "property":
        lines[:0] = ["..", ""]  # a comment, in which there is none


def signatures(app, what, name, found, options, signature, returns):
    """Defaults that are made anew for each object have no text of their own."""
    return signature and re.sub(r"<[^<>]*>", "...", signature), returns


def bases(app, name, found, options, classes):
    """Say what a reader can look up."""
    classes[:] = map(public_base, classes)


def fields(app, what, name, found, skip, options):
    """Fields of named tuples are described by the class."""
    return True if type(found).__name__ == "_tuplegetter" else None


def resolve(app, env, node, text):
    """Link a name of ours to its page: types come with the private file that defines them, and
    names in docstrings without their room."""
    target = re.sub(r"\._\w+", "", node.get("reftarget", ""))
    if node.get("refdomain") != "py" or ("." in target and not target.startswith("fairbilevel.")):
        return None
    objects = env.domains["py"].objects
    top = f"fairbilevel.{target.rpartition('.')[2]}"
    ending = [name for name in objects if name.endswith(f".{target}")]
    found = next((n for n in (target, top) if n in objects), None)
    name = found or (ending[0] if len(ending) == 1 else None)
    if name is None:
        return None
    place = objects[name]
    return make_refnode(app.builder, node["refdoc"], place.docname, place.node_id, text, name)


def complete(app, env):
    """Refuse a site in which a public name is described nowhere."""
    described = env.domains["py"].objects
    for room in (name for name, place in described.items() if place.objtype == "module"):
        for name in names(room):
            place = home(room, name).lstrip("~")
            place = f"{room}.{name}" if place == name else place
            if place not in described:
                logger.warning("%s has no entry", place, location="docs/api")


def sources(app, page, template, context, doctree):
    """Links back from a source page: viewcode believes all of a file described in one room."""
    found = app.env._viewcode_modules.get(page.removeprefix("_modules/").replace("/", "."))
    if found:
        back, room = r'(viewcode-back" href="[^"]*?/([\w.]+)\.html#)', re.escape(found[3])
        context["body"] = re.sub(rf"{back}{room}\.", r"\1\2.", context["body"])
    elif page == "_modules/index":  # names modules without a source too, which have no page
        context["body"] = re.sub(r"<li><a href=\"builtins.html.*?</li>", "", context["body"])


def setup(app):
    """Connect the above."""
    app.connect("missing-reference", resolve)
    app.connect("env-check-consistency", complete)
    app.connect("html-page-context", sources)
    app.connect("source-read", contents)
    app.connect("autodoc-process-docstring", properties, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", constants)
    app.connect("autodoc-process-signature", signatures)
    app.connect("autodoc-process-bases", bases)
    app.connect("autodoc-skip-member", fields)
