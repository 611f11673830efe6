"""What the fuzz tests share: how many inputs each tries, and inputs that are nearly right."""

import os
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from medmerge.cli import expected


def examples(count: int) -> Callable:
    """A test's settings: ``count`` inputs, the same every time; with ``MEDMERGE_FUZZ=100`` 100 times as many, anew."""
    times = int(os.environ.get("MEDMERGE_FUZZ", "1"))
    same = {"derandomize": times == 1, "database": None, "deadline": None}
    return settings(max_examples=count * times, suppress_health_check=list(HealthCheck), **same)


def attempt(function: Callable, *arguments: object) -> object:
    """What the function returns, or None where it refused its input with one of the project's own errors."""
    try:
        return function(*arguments)
    except expected() as error:
        assert str(error).strip(), "an error without a message"
        return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""Any value that JSON has, and NaN."""


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some of them changed, left out, repeated or added."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 1, 2, 8, 64, 10**9])))
        content[start:end] = draw(st.binary(max_size=8) | st.just(bytes(content[start:end]) * 2))
    return bytes(content)


@st.composite
def changed(draw: st.DrawFn, value: object) -> object:
    """A JSON value with one place of it deleted, renamed or of another kind."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(["within", "within", "within", "delete", "rename", "replace"]))
        rest = {name: one for name, one in value.items() if name != key}
        if how == "delete":
            return rest
        if how == "rename":
            return {**rest, draw(st.text(max_size=8)): value[key]}
        return {**value, key: draw(changed(value[key]) if how == "within" else JSON)}
    if isinstance(value, list) and value and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], *draw(st.lists(changed(value[place]), max_size=2)), *value[place + 1 :]]
    return draw(JSON)
