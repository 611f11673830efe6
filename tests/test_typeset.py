"""Numbers and tables as every page sets them."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest

from medmerge.pages.typeset import fill, number, span, table


@pytest.mark.parametrize(
    ("value", "form", "written"),
    [
        (-0.0123, "+.3f", "−0.012"),
        (0.0123, "+.3f", "+0.012"),
        (-0.0001, ".3f", "0.000"),
        (-0.0001, "+.3f", "0.000"),
        (0.394, ".1%", "39.4\N{NO-BREAK SPACE}%"),
        (1234567, ",", "1,234,567"),
        (1.3e-12, ".2g", "1.3 × 10⁻¹²"),
        (2e7, ".1g", "2 × 10⁷"),
        (float("nan"), ".3f", "–"),
        (np.float32(-1.5), ".1f", "−1.5"),
    ],
)
def test_a_number_has_one_way_to_be_written(value, form, written):
    assert number(value, form) == written


def test_a_span_is_two_numbers():
    assert span(-0.02, 0.01) == "−0.020 to +0.010"


def cells(html):
    return re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", html)


def test_a_table_shows_readers_numbers_and_its_file_holds_the_numbers_themselves():
    frame = pd.DataFrame({"run": ["A & B", "C"], "difference": [-0.01234567, np.nan], "images": [1200, 3]})
    frame = frame.assign(low=[-0.1, -0.2], high=[0.1, 0.2])[["run", "difference", "low", "high", "images"]]
    assert cells(table(frame).data) == [
        *("run", "difference", "95 % interval", "images"),
        *("A &amp; B", "−0.012", "−0.100 to +0.100", "1,200", "C", "–", "−0.200 to +0.200", "3"),
    ]
    assert "<details>" not in table(frame).data
    folded = table(pd.concat([frame] * 6), {"difference": ".1f"}, title="All rows").data
    assert "<summary>All rows (12 rows)</summary>" in folded and 'download="all-rows.csv"' in folded
    assert '<td class="number">0.0</td>' in folded
    content = base64.b64decode(re.search('base64,([^"]+)', folded)[1])
    kept = pd.read_csv(io.BytesIO(content))
    pd.testing.assert_frame_equal(kept, pd.concat([frame] * 6, ignore_index=True))


@pytest.mark.parametrize(
    ("name", "low", "high", "said"),
    [
        ("learning", -0.001, 0.011, "Not that these runs show"),
        ("learning", 0.001, 0.011, "Yes"),
        ("learning", -0.02, -0.01, "It costs"),
        ("worth", 0.01, 0.2, "A great deal"),
        ("worth", -0.01, 0.2, "This is not shown of every row"),
        ("elsewhere", -0.01, 0.2, "Nothing that we tried differs from it"),
        ("elsewhere", 0.01, 0.2, "Some of it does"),
    ],
)
def test_a_verdict_is_no_stronger_than_its_interval(name, low, high, said):
    one = pd.DataFrame([{"row": "FT A", "against": "FT A", "difference": (low + high) / 2, "low": low, "high": high}])
    facts = {"runs": 3, "difference": (low + high) / 2, "low": low, "high": high, "moved": [0.1], "later": [0.5]}
    facts |= {"gains": one, "check": one.iloc[0], "source": "ham10k", "base": "FT B", "seeds": 1}
    facts |= {"drawn": one, "sure": one[one["low"] > 0], "rivals": 1, "controls": 0}
    assert fill(name, **facts).startswith(f"**{said}")
