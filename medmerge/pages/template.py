"""Sentences: each is a Jinja template beside this module, filled with numbers that the page has computed."""

import functools
import re

import jinja2


def fill(name: str, **facts: object) -> str:
    """The template ``templates/<name>.md`` with these facts, in Markdown: a line a paragraph or item of a list.

    Raises:
        jinja2.UndefinedError: the template asks for a fact that is not given.
    """
    lines = re.sub(r"(?<!\n)\n(?![\n|-])", " ", re.sub(r"\n{3,}", "\n\n", render(name, **facts).strip()))
    return re.sub(r"  +", " ", lines)


def render(name: str, **facts: object) -> str:
    """The same with every line as it stands."""
    return _environment().get_template(f"{name}.md").render(facts)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), undefined=jinja2.StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["form"] = lambda value, form: format(value, form)
    environment.globals["span"] = lambda row, form="+.3f": f"{row['low']:{form}} to {row['high']:{form}}"
    return environment
