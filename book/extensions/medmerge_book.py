"""What this book needs beyond Jupyter Book: text lent by notebooks, the API, links to the source.

Directives
    ``{glued} notebook.ipynb name``: Markdown that an executed notebook keeps under a name, with more than a word.
    ``{api} modules``: what modules offer.
"""

import ast
import functools
import importlib
import inspect
import json
import operator
import pkgutil
import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
COLON = "\ue000"
"""Stands for a colon while napoleon reads."""


class Glued(SphinxDirective):
    """What a notebook has glued as text, parsed as Markdown; what is missing stops the build."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # what it reads is no source of this page
        container = nodes.container()
        self.state.nested_parse(StringList(self.markdown().splitlines(), self.name), self.content_offset, container)
        return [container]

    def markdown(self) -> str:
        source, name = self.arguments
        path = Path(self.env.relfn2path(source)[1])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                if output.get("metadata", {}).get("scrapbook", {}).get("name") == name:
                    return ast.literal_eval("".join(output["data"]["application/papermill.record/text/plain"]))
        raise self.error(f"{source} has glued nothing as {name}")


class Reference(SphinxDirective):
    """What modules offer, a section each; ``package.* -name`` is all of a package but one module."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        return [self.section(name) for name in modules(self.arguments[0])]

    def section(self, name: str) -> nodes.section:
        section = nodes.section("", nodes.title("", "", nodes.literal("", name)), names=[name])
        self.state.document.note_implicit_target(section, section)
        own = [] if hasattr(importlib.import_module(name), "__path__") else ["   :ignore-module-all:"]  # no one else's
        lines = ["```{eval-rst}", f".. automodule:: {name}", *own, "```"]
        self.state.nested_parse(StringList(lines, name), self.content_offset, section)
        return section


def modules(patterns: str) -> list[str]:
    """The modules that the words of an ``{api}`` mean, in their order."""
    found, left_out = [], set(re.findall(r"(?<= -)\w+", patterns))
    for pattern in (word for word in patterns.split() if word[0] != "-"):
        package = importlib.import_module(pattern.removesuffix(".*"))
        inside = pkgutil.iter_modules(package.__path__, f"{package.__name__}.") if pattern.endswith(".*") else ()
        found += [package.__name__] if package.__doc__ else []
        found += [module.name for module in inside if not module.ispkg]
    return [name for name in found if name.rpartition(".")[2] not in left_out]


def _repository(config: object) -> str:
    return config.html_theme_options["repository_url"].rstrip("/")


def link_to_source(config: object, domain: str, info: dict[str, str]) -> str | None:
    """Where the source of a documented object is shown (sphinx.ext.linkcode)."""
    try:
        thing = operator.attrgetter(info["fullname"])(importlib.import_module(info["module"]))
        thing = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "func", thing))
        path = Path(inspect.getsourcefile(thing)).resolve().relative_to(ROOT)
        lines, first = inspect.getsourcelines(thing)
    except (AttributeError, TypeError, ValueError, OSError):
        return None
    return f"{_repository(config)}/blob/main/{path.as_posix()}#L{first}-L{first + len(lines) - 1}"


def keep_words(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """A constant's words before a colon are no type, as napoleon takes them for."""
    if what in ("attribute", "data"):
        lines[:] = [line.replace(":", COLON) for line in lines]


def join_names(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Several arguments explained at once: without this Sphinx would take the first of ``a, b:`` for a type."""
    names = re.compile(r"^:(?:param|ivar) [\w, ]+:")
    lines[:] = [names.sub(lambda match: match[0].replace(", ", ","), line.replace(COLON, ":")) for line in lines]


def shorten_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """A model's fields are told one by one, without their bounds in a signature; ``<factory>`` is no Python."""
    if hasattr(thing, "model_fields"):
        return "(**values)", None
    return (signature.replace("<factory>", "..."), returns) if signature else None


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("glued", Glued)
    app.add_directive("api", Reference)
    app.config.linkcode_resolve = functools.partial(link_to_source, app.config)
    app.connect("autodoc-process-docstring", keep_words, priority=400)  # before napoleon, which has 500
    app.connect("autodoc-process-docstring", join_names, priority=600)
    app.connect("autodoc-process-signature", shorten_signature)
    app.setup_extension("sphinx.ext.linkcode")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
