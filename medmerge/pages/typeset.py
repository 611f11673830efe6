"""Numbers, tables and sentences as the book sets them: every page's write theirs through here.

Sentences are Jinja templates beside this module, filled with numbers that the page has computed.
"""

import base64
import functools
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from numbers import Integral, Real

import jinja2
import pandas as pd

from medmerge.study import names

FORMS = {
    **{"difference": "+.3f", "p": ".2g", "p (Holm)": ".2g", "rate of w": ".2g"},
    **{"images": ",", "kernels": ",", "steps": ",", "training images": ","},
}
"""Formats of columns that mean the same on every page; whole numbers have ``,`` by default, seconds and MiB
``,.0f``, others ``.3f``."""

LONG = 10
"""A table of more lines is folded."""

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, form: str = ".3f") -> str:
    """A number in one of Python's formats: with a minus that is one and none before zero, "39.4 %" with a space that
    breaks no line, powers of ten in place of e-05, and a dash for what is not a number.
    """
    if value != value:
        return "–"
    text = format(value, form)
    if not re.search("[1-9]", text):
        text = text.lstrip("+-")
    text = re.sub(r"e\+?(-?)0*(\d+)", lambda e: f" × 10{(e[1] + e[2]).translate(_RAISED)}", text)
    return text.replace("-", "−").replace("%", "\N{NO-BREAK SPACE}%")


def span(low: float, high: float, form: str = "+.3f") -> str:
    """Two ends of an interval, as :func:`number` writes them."""
    return f"{number(low, form)} to {number(high, form)}" if low == low else number(low)


def estimate(value: float, low: float, high: float, form: str = "+.3f") -> str:
    """A number with its interval in brackets, as :func:`number` writes them."""
    return f"{number(value, form)} ({span(low, high, form)})"


def table(
    frame: pd.DataFrame,
    forms: Mapping[str, str] | None = None,
    *,
    title: str = "Table",
    interval: str = "95 % interval",
    folded: bool | None = None,
) -> object:
    """A frame as a notebook shows it, without its index, with its numbers as CSV to download.

    Args:
        forms, interval: as for :func:`texts`.
        title: what a folded table is called; its file is named after it.
        folded: whether it opens on demand only; by default if it is longer than :data:`LONG`.
    """
    from IPython.display import HTML  # comes with a notebook, not with this package

    shown = texts(frame, forms, interval)
    numbers = {name for name in frame if pd.api.types.is_numeric_dtype(frame[name])}
    numbers |= {name for name, cells in shown.items() if cells and all(" to " in text for text in cells)}
    looks = [' class="number"' if name in numbers else "" for name in shown]

    def line(tag: str, cells: Iterable[str]) -> str:
        return "".join(f"<{tag}{look}>{escape(str(t))}</{tag}>" for t, look in zip(cells, looks, strict=True))

    body = "\n".join(f"<tr>{line('td', cells)}</tr>" for cells in zip(*shown.values(), strict=True))
    head = f"<tr>{line('th', shown)}</tr>".replace("<th", '<th scope="col"')
    text = f'<table class="dataframe">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>'
    if folded if folded is not None else len(frame) > LONG:
        heading = f"<summary>{escape(title)} ({len(frame)} rows)</summary>"
        text = f"<details>\n{heading}\n{text}\n{_csv(frame, title)}\n</details>"
    return HTML(text)


def texts(
    frame: pd.DataFrame, forms: Mapping[str, str] | None = None, interval: str = "95 % interval"
) -> dict[str, list[str]]:
    """By column what cells say. Columns ``low`` and ``high`` become one, in the format of the one before them.

    Args:
        forms: formats by column, as :func:`number` takes them, over :data:`FORMS`.
        interval: the name of that column.
    """
    forms, shown, before = {**FORMS, **(forms or {})}, {}, ""
    for name in frame:
        if name == "low":
            ends = zip(frame["low"], frame["high"], strict=True)
            shown[interval] = [span(*both, forms.get(before, ".3f")) for both in ends]
        elif name != "high":
            whole = str(name).endswith((", s", ", MiB"))
            shown[name] = [_cell(value, forms.get(name, ",.0f" if whole else "")) for value in frame[name]]
            before = name
    return shown


def _cell(value: object, form: str) -> str:
    if not isinstance(value, Real) or isinstance(value, bool):
        return "–" if value is None else str(value)
    return number(value, form or ("," if isinstance(value, Integral) else ".3f"))


def _csv(frame: pd.DataFrame, title: str) -> str:
    """A link that holds the numbers themselves, to seven digits."""
    content = base64.b64encode(frame.to_csv(index=False, float_format="%.7g").encode()).decode()
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    return f'<a download="{name}.csv" href="data:text/csv;charset=utf-8;base64,{content}">{escape(title)} as CSV</a>'


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
    environment.filters |= {"table": _markdown, "json": functools.partial(json.dumps, ensure_ascii=False)}
    environment.filters |= {"title": names.title, "form": number}
    environment.globals["span"] = lambda row, form="+.3f": span(row["low"], row["high"], form)
    return environment


def _markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table."""
    shown = texts(table)
    rows = [shown, ["---"] * len(shown), *zip(*shown.values(), strict=True)]
    cells = ([re.sub(r"([\\|<*])", r"\\\1", " ".join(text.split())) for text in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
