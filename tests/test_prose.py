"""Results in sentences are computed, and pages show the records that are here."""

import json
import re
from pathlib import Path

import pytest

from medmerge.study import notebooks as pages

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = [ROOT / "book" / "index.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = sorted(p for p in (ROOT / "results").glob("*/*.ipynb") if p.parts[-2] != "demo")

NAMES = (
    r"(DenseNet|ResNet|ImageNet|AVX)-\d+k?|MobileNetV2|ISIC[ -]20\d\d|APTOS 20\d\d|HAM10(K|000)|SHA-256"
    r"|\bF1\b|bf16|fp32"
)
PLACES = r"Table A?\d|Fig\. \d|section \d|(al\.|et al\.) \d{4}|^\d\. "
SETTINGS = {
    "levels and limits of tests": ["95 %", "5 %", "3 %", "near 0(?!\\.)", "above 0", "leave out 0", "of 0\\b"],
    "where w starts, ends and what it means": [
        "0\\.5",
        "1 keeps",
        "0 drops",
        "1/n",
        "1 [-−] w?",
        "w and 1",
        "to 0, 0.5,\\s+1 or",
    ],
    "sizes": ["224", "64 px", "28 px", "256 bits", "within 32 of", "within 8 bits"],
    "splits of the paper": ["60/20/20", "80/10/10", "80 %"],
    "counts of the paper's tables": ["24 comparisons", "30 rows"],
    "settings of a benchmark": [
        "600 x\\s+450",
        "400 test",
        "same 32",
        "50 epochs",
        "of 10\\b",
        "above 1",
        "below 1",
        "be 1\\b",
    ],
    "codes and units": ["\\(\\*\\*0\\*\\*, \\*\\*1\\*\\*\\)", "10,000 training", "1\\.41 of"],
}
"""Numbers that no record decides, by kind."""


def prose(path: Path) -> str:
    """The sentences of a chapter or of a notebook's Markdown: no code, no directives, roles and links."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = re.sub(r"^(`{3,}|:{3,}).*?$(.*?)^\1", "", text, flags=re.S | re.M)
    text = re.sub(r"\{[\w:-]+\}`[^`]*`|`[^`]*`|\]\([^)]*\)|^:\w+:.*$|\$[^$]*\$", " ", text, flags=re.M)
    return text


def unexplained(text: str) -> list[str]:
    """What is left of the numbers in a text without names, places and settings, each with what is around it."""
    rest = re.sub(f"{NAMES}|{PLACES}", " ", text, flags=re.M)
    rest = re.sub("|".join(one for kind in SETTINGS.values() for one in kind), " ", rest)
    return [text.replace("\n", " ") for text in re.findall(r".{0,30}\d[\d.,]*.{0,20}", rest)]


@pytest.mark.parametrize("path", [*CHAPTERS, *NOTEBOOKS], ids=lambda path: path.stem)
def test_no_result_is_written_by_hand(path):
    assert unexplained(prose(path)) == []


def test_a_result_by_hand_is_seen():
    assert unexplained("MedMerge reaches a macro F1 of 0.713 on 1,234 images.") != []
    assert unexplained("It is better by 2 % in 3 of 4 pairs.") != []


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_pages_show_the_records_that_are_here(path):
    """A record, parameter file or notebook that changes without its page fails here; `make report` draws it again."""
    params = ROOT / "params" / path.parent.name / f"{path.stem}.yaml"
    p = pages.parameters(params)
    noted = json.loads(path.read_text(encoding="utf-8"))["metadata"]["medmerge"]
    assert noted == pages.origin(params, pages.notebook(p), p)
