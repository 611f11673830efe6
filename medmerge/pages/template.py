"""Sentences: each is a Jinja template beside this module, filled with numbers that the page has computed."""

import functools
import json
import re

import jinja2
import pandas as pd

from medmerge.pages.typeset import number, span, texts
from medmerge.study import names


def fill(name: str, /, **facts: object) -> str:
    """The template ``templates/<name>.md`` with these facts, in Markdown: a line a paragraph or item of a list.

    Raises:
        jinja2.UndefinedError: the template asks for a fact that is not given.
    """
    lines = re.sub(r"(?<!\n)\n(?!\n|\||- )", " ", re.sub(r"\n{3,}", "\n\n", render(name, **facts).strip()))
    return re.sub(r"  +", " ", lines)


def render(name: str, /, **facts: object) -> str:
    """The same with every line as it stands."""
    return _environment().get_template(f"{name}.md").render(facts)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), undefined=jinja2.StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"table": _markdown, "json": lambda value: json.dumps(value, ensure_ascii=False)}
    environment.filters["title"] = names.title
    environment.filters["form"] = number
    environment.globals["span"] = lambda row, form="+.3f": span(row["low"], row["high"], form)
    return environment


def _markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table."""
    shown = texts(table)
    rows = [shown, ["---"] * len(shown), *zip(*shown.values(), strict=True)]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)


def _cell(text: str) -> str:
    return re.sub(r"([\\|<*])", r"\\\1", " ".join(text.split()))
