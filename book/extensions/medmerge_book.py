"""What this book needs beyond Jupyter Book: pages computed from the records, figures lent, links to the source.

Directives
    ``{status-built}``, ``{status-parameters}``, ``{status-runs}``: tables of the status page, from ``results/``.
    ``{benchmark} table``: a table of the chapter on speed, from ``benchmarks/*.json``.
    ``{findings} text``, ``{findings-figure}``: the same of the chapter on what was found, from ``results/``.
    ``{paper} text``, ``{paper-figure}``: tables, sentences and the figure of the chapter on the paper's tables.
    ``{lent-figure} notebook.ipynb``: a figure of an executed notebook as a numbered figure of this page.
"""

import base64
import contextlib
import importlib
import inspect
import json
import re
import runpy
import subprocess
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]

# The package is imported where it is used: with torch that takes seconds, which pages without tables need not wait for.


class Computed(SphinxDirective):
    """A directive that stands for the Markdown that it computes; what is wrong with the records stops the build."""

    classes: list[str] = []

    def markdown(self) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        from medmerge.study.params import ParameterError
        from medmerge.study.records import RecordError

        try:
            with contextlib.chdir(ROOT):  # parameter files name places relative to the project
                text = self.markdown()
        except (RecordError, ParameterError) as error:
            raise self.error(str(error)) from error
        container = nodes.container(classes=self.classes)
        self.state.nested_parse(StringList(text.splitlines(), self.name), self.content_offset, container)
        return [container]


class Built(Computed):
    """What the book was built with."""

    def markdown(self) -> str:
        from medmerge.pages import status

        facts = status.built()
        commit = facts.pop("commit")
        lines = ["| what | version |", "| --- | --- |", f"| commit | {_commit(self.config, commit)} |"]
        return "\n".join(lines + [f"| {name} | {version} |" for name, version in facts.items()])


class ParameterFiles(Computed):
    """Every parameter file: what it asks for, and whether the records are there."""

    def markdown(self) -> str:
        from medmerge.pages import status

        files = status.parameter_files(ROOT / "params")
        lines = ["| parameter file | page | asks for | recorded |", "| --- | --- | --- | --- |"]
        for row in files.itertuples():
            link = f"[`{row.file}`]({_repository(self.config)}/blob/main/params/{row.file})"
            complete = "all" if row.recorded == row.asked else f"{row.recorded} of {row.asked}"
            lines.append(f"| {link} | {self.page(row)} | {row.asked} | {complete if row.recorded else 'not run'} |")
        return "\n".join(lines)

    def page(self, row: object) -> str:
        name = row.page.relative_to(self.env.srcdir).with_suffix("").as_posix() if row.page else ""
        return f"{{doc}}`/{name}`" if name in self.env.found_docs else row.title


class Runs(Computed):
    """Every record, those of the repository before those that a build makes."""

    classes = ["short-cells"]

    def markdown(self) -> str:
        from medmerge.pages import status
        from medmerge.study import records

        found = records.gather(ROOT / "results")
        for record in found:
            self.env.note_dependency(str(record.folder / "run.json"))
        strangers = status.unasked(found, status.parameter_files(ROOT / "params"))
        lines = ["| study | run | seed | seconds | definition | commit | recorded | backbone, device, precision |"]
        lines.append("| --- | --- | --- | ---: | --- | --- | --- | --- |")
        found = sorted(found, key=lambda record: record.folder.parts[-5] == "demo")
        for row in status.runs(found).itertuples():
            commit = _commit(self.config, row.commit)
            lines.append(
                f"| {row.track}/{row.pair} | {row.run} | {row.seed} | {row.seconds:,.0f} | `{row.definition[:8]}` | "
                f"{commit} | {row.recorded} | {row.backbone}, {row.device}, {row.precision} |"
            )
        if strangers:
            names = ", ".join(f"`{record.folder.relative_to(ROOT)}`" for record in strangers)
            lines += ["", f"No parameter file asks for {names}."]
        return "\n".join(lines)


class Benchmark(Computed):
    """A table of :mod:`benchmarks.chapter`, by its name."""

    required_arguments = 1

    def markdown(self) -> str:
        for path in (ROOT / "benchmarks").glob("*.json"):
            self.env.note_dependency(str(path))
        chapter = runpy.run_path(str(ROOT / "benchmarks" / "chapter.py"))
        if self.arguments[0] not in chapter["TABLES"]:
            raise self.error(f"no table {self.arguments[0]}; there are {', '.join(chapter['TABLES'])}")
        try:
            return chapter["markdown"](self.arguments[0])
        except FileNotFoundError as error:
            raise self.error(str(error)) from error


class Text(Computed):
    """A table or sentences of a page's module, by its name in ``TEXTS``."""

    required_arguments = 1
    module = ""

    def markdown(self) -> str:
        self.env.note_reread()  # it reads whatever records there are
        texts = importlib.import_module(f"medmerge.{self.module}").TEXTS
        if self.arguments[0] not in texts:
            raise self.error(f"no text {self.arguments[0]}; there are {', '.join(texts)}")
        return texts[self.arguments[0]]()


class Paper(Text):
    """Of the chapter on the paper's tables."""

    module = "paperpage"


class Findings(Text):
    """Of the chapter on what was found."""

    module = "findingspage"


class LentFigure(SphinxDirective):
    """A figure of an executed notebook as a numbered figure of this page; the caption is the content."""

    required_arguments = 1
    has_content = True
    option_spec = {"name": directives.unchanged_required, "figure": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.relfn2path(self.arguments[0])[1])
        self.env.note_dependency(str(path))
        wanted = self.options["figure"]
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError) as error:
            raise self.error(f"cannot read {self.arguments[0]}: {error}") from error
        for cell in cells:
            shown = cell["metadata"].get("mystnb", {})
            if shown.get("figure", {}).get("name") == wanted:
                png = next((o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})), None)
                if png:
                    return [self.figure(png.replace("\n", ""), shown["image"]["alt"])]
        raise self.error(f"{self.arguments[0]} holds no figure {wanted!r}")

    def figure(self, png: str, alt: str) -> nodes.figure:
        figure = nodes.figure("", nodes.image(uri=f"data:image/png;base64,{png}", alt=alt, width="100%"))
        caption = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, caption)
        figure += nodes.caption("", "", *caption[0].children)
        self.add_name(figure)
        self.set_source_info(figure)
        return figure


class DrawnFigure(LentFigure):
    """The figure of a page's module, drawn when the book is built; the caption is the content."""

    required_arguments = 0
    option_spec = {"name": directives.unchanged_required}
    module = ""

    def run(self) -> list[nodes.Node]:
        with contextlib.chdir(ROOT):
            figure = importlib.import_module(f"medmerge.{self.module}").figure()
        if figure is None:
            return []
        png, _ = figure._repr_png_()
        return [self.figure(base64.b64encode(png).decode(), figure.alt)]


class PaperFigure(DrawnFigure):
    """The figure of the paper's tables."""

    module = "paperpage"


class FindingsFigure(DrawnFigure):
    """The figure of what was found; nothing where no pair counts."""

    module = "findingspage"


def _repository(config: object) -> str:
    return config.html_theme_options["repository_url"].rstrip("/")


def _commit(config: object, commit: str) -> str:
    """A commit as a link, where it is one of this history: others, and ``unknown``, could not be followed."""
    plain = commit.removesuffix("+changes")
    try:
        known = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", plain, "HEAD"]
        subprocess.run(known, capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return f"`{commit[:8]}`"
    changes = " with changes" if plain != commit else ""
    return f"[`{plain[:8]}`]({_repository(config)}/commit/{plain}){changes}"


def link_to_source(config: object, domain: str, info: dict[str, str]) -> str | None:
    """Where the source of a documented object is shown (sphinx.ext.linkcode)."""
    if domain != "py" or not info["module"]:
        return None
    thing = importlib.import_module(info["module"])
    try:
        for part in info["fullname"].split("."):
            thing = getattr(thing, part)
        thing = thing.fget if isinstance(thing, property) else getattr(thing, "func", thing)
        thing = inspect.unwrap(thing)
        path = Path(inspect.getsourcefile(thing)).resolve().relative_to(ROOT)
        lines, first = inspect.getsourcelines(thing)
    except (AttributeError, TypeError, ValueError, OSError):
        return None
    return f"{_repository(config)}/blob/main/{path.as_posix()}#L{first}-L{first + len(lines) - 1}"


def join_names(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Several arguments explained at once: without this Sphinx would take the first of ``a, b:`` for a type."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"^:(?:param|ivar) [\w, ]+:", lambda match: match[0].replace(", ", ","), line)


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("status-built", Built)
    app.add_directive("status-parameters", ParameterFiles)
    app.add_directive("status-runs", Runs)
    app.add_directive("benchmark", Benchmark)
    app.add_directive("findings", Findings)
    app.add_directive("findings-figure", FindingsFigure)
    app.add_directive("paper", Paper)
    app.add_directive("paper-figure", PaperFigure)
    app.add_directive("lent-figure", LentFigure)
    app.config.linkcode_resolve = lambda domain, info: link_to_source(app.config, domain, info)
    app.connect("autodoc-process-docstring", join_names, priority=600)  # after napoleon, which has 500
    app.setup_extension("sphinx.ext.linkcode")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
