"""What the fuzz tests share: how many inputs each tries, and the count of what came of them for pytest's last lines."""

import os
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from medmerge.cli import expected

OUTCOMES = ("refused", "accepted")
TRIED: Counter = Counter()
"""Inputs by what was read and what came of it, ``refused`` or ``accepted``."""


def examples(count: int) -> Callable:
    """A test's settings: ``count`` inputs, the same every time; with ``MEDMERGE_FUZZ=100`` 100 times as many, anew."""
    times = int(os.environ.get("MEDMERGE_FUZZ", "1"))
    return settings(
        max_examples=count * times,
        derandomize=times == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def attempt(what: str, function: Callable, *arguments: object) -> object:
    """What the function returns, or None where it refused its input with one of the project's own errors."""
    try:
        result = function(*arguments)
    except Exception as error:
        if not isinstance(error, expected()):
            raise
        assert str(error).strip(), "an error without a message"
        TRIED[what, "refused"] += 1
        return None
    TRIED[what, "accepted"] += 1
    return result


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
