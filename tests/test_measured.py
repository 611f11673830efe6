"""What is measured once: kept and read back, refused where it is damaged or was measured with other parameters."""

import dataclasses
import json

import pytest

from medmerge import Parameters
from medmerge.study.measured import Measured, Sheet
from medmerge.study.params import ParameterError
from medmerge.study.records import RecordError


class Length(Sheet):
    definition: dict
    metres: float


@pytest.fixture
def length(tmp_path) -> Measured:
    def check(p: Parameters) -> None:
        if p.pair == "nothing":
            raise ParameterError("pair: there is nothing to measure")

    return Measured(
        where=lambda p: tmp_path / "lengths" / f"{p.pair}.json",
        asked=lambda p: {"seed": p.seeds[0], "resize": p.resize},
        measure=lambda p: Length(definition={"seed": p.seeds[0]}, metres=1.5),
        load=lambda path: Length.model_validate_json(path.read_bytes()),
        definition=lambda found: found.definition,
        check=check,
    )


def test_a_measurement_is_made_once_and_read_then(length):
    p, asked = Parameters(pair="a"), []
    counted = dataclasses.replace(length, measure=lambda p: asked.append(p) or length.measure(p))
    assert counted.read(p) is None and counted.state(p) is None
    assert counted.run(p) == counted.run(p) == length.measure(p) and asked == [p]
    assert counted.state(p) == length.where(p), "a parameter that an older record does not know had its default"
    content = json.loads(length.where(p).read_text())
    length.where(p).write_text(json.dumps(content | {"feet": 5}))
    assert counted.run(p) == length.measure(p), "nor is what only others know a reason to refuse it"


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ('{"definition": {}, "metres": "long"}', {}, r"a\.json is damaged \(metres: Input should be a valid number\)"),
        ('{"definition": {"seed": 0}, "metres": NaN}', {}, r"a\.json is damaged \("),
        (None, {"seeds": [3]}, r"a\.json was measured with seed 0, not 3"),
    ],
)
def test_what_is_damaged_or_of_other_parameters_is_named_and_left_alone(length, content, changes, message):
    length.run(Parameters(pair="a"))
    path = length.where(Parameters(pair="a"))
    path.write_text(content or path.read_text())
    before = path.read_bytes()
    with pytest.raises(RecordError, match=f"(?s){message}.*remove it to measure again"):
        length.run(Parameters(pair="a", **changes))
    assert path.read_bytes() == before


def test_what_cannot_be_measured_is_refused_before(length):
    with pytest.raises(ParameterError, match="nothing to measure"):
        length.run(Parameters(pair="nothing"))
    assert not length.where(Parameters()).parent.exists()
