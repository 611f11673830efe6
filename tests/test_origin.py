"""What the status page is made of: records with their origin, parameter files with their state."""

import json
import shutil
from pathlib import Path

import pytest

from medmerge.pages import origin
from medmerge.study import records
from medmerge.study.params import ParameterError
from medmerge.study.records import RecordError

ROOT = Path(__file__).parents[1]
RUNS = sorted((ROOT / "results/open").glob("*/*/*/seed*/run.json"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own: two open studies' records with DenseNet-121, and their parameter files."""
    for name in ("skin", "source-ham10k"):
        records_of_one = Path("results/open", name, "densenet121")
        shutil.copytree(ROOT / records_of_one, tmp_path / records_of_one)
        (tmp_path / "params/open").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / f"params/open/{name}.yaml", tmp_path / "params/open")
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_run_with_its_origin(project):
    found = records.gather(project / "results")
    table = origin.runs(found)
    assert len(table) == len(found) > 5
    for record, row in zip(found, table.itertuples(), strict=True):
        run = json.loads((record.folder / "run.json").read_text())
        assert run["hash"].startswith(row.definition) and len(row.definition) == 10
        assert run["provenance"]["commit"].startswith(row.commit)
        assert row.seconds == pytest.approx(sum(phase["seconds"] for phase in run["cost"].values()))
        assert (row.run, row.seed, row.device, row.precision) == (
            record.label, run["seed"], run["device"], run["precision"],
        )  # fmt: skip


def test_parameter_files_and_what_they_ask_for(project):
    table = origin.parameter_files(project / "params").set_index("file")
    assert list(table.index) == ["open/skin.yaml", "open/source-ham10k.yaml"]
    assert list(table["asked"]) == list(table["recorded"]) and all(table["asked"] > 0)
    assert list(table["page"]) == [None, None]
    asked = table["asked"]["open/skin.yaml"]
    shutil.rmtree(project / "results/open/skin/densenet121/ft-ham10k/seed0")
    table = origin.parameter_files(project / "params").set_index("file")
    assert table.loc["open/skin.yaml", ["asked", "recorded"]].tolist() == [asked, asked - 1]


def test_a_page_whose_record_is_missing_is_named_with_the_record(project):
    (project / "results/open/skin.ipynb").write_text("{}")
    assert origin.parameter_files(project / "params")["page"][0] == project / "results/open/skin.ipynb"
    (project / "results/open/skin/densenet121/ft-ham10k/seed0/run.json").unlink()
    with pytest.raises(
        RecordError, match=r"results/open/skin.ipynb .* missing: ft-ham10k, seed 0\. .*params/open/skin"
    ):
        origin.parameter_files(project / "params")


@pytest.mark.parametrize(
    ("notebook", "text", "asked", "recorded", "lacking"),
    [
        ("data", "datasets: [ham10k=ham, rsna=rsna]", 3, 0, "ham10k"),  # two sheets, and what they share
        ("cost", "backbone: densenet_small\ncost_repeats: 3", 1, 0, "densenet_small-224px"),
        ("weights", "studies: [skin]", 1, 1, ""),
    ],
)
def test_a_page_that_is_measured_asks_for_its_sheets(project, notebook, text, asked, recorded, lacking):
    (project / "params/open/own.yaml").write_text(f"notebook: {notebook}\ntrack: open\n{text}\n")
    row = origin.parameter_files(project / "params").set_index("file").loc["open/own.yaml"]
    assert (row.asked, row.recorded, row.page) == (asked, recorded, None)
    (project / "results/open/own.ipynb").write_text("{}")
    if lacking:
        with pytest.raises(RecordError, match=f"own.ipynb shows runs whose records are missing: .*{lacking}"):
            origin.parameter_files(project / "params")
    else:
        assert origin.parameter_files(project / "params").set_index("file")["page"]["open/own.yaml"]


def test_a_page_on_the_premise_asks_for_its_measurement_and_its_runs(project):
    text = (project / "params/open/skin.yaml").read_text().replace("notebook: pair", "notebook: premise\npremise: true")
    (project / "params/open/premise.yaml").write_text(f"{text}\napproaches: [medmerge]\n")
    row = origin.parameter_files(project / "params").set_index("file").loc["open/premise.yaml"]
    assert (row.asked, row.recorded, row.page) == (2, 1, None), "the merge is recorded, the measurement is not"


def test_a_file_that_no_run_could_start_from(project):
    (project / "params/open/wrong.yaml").write_text("track: open\nepochs: 3\n")
    with pytest.raises(ParameterError, match="epochs"):
        origin.parameter_files(project / "params")


def test_records_that_no_file_asks_for(project):
    found = records.gather(project / "results")
    assert origin.unasked(found, origin.parameter_files(project / "params")) == []
    (project / "params/open/source-ham10k.yaml").unlink()
    strangers = origin.unasked(found, origin.parameter_files(project / "params"))
    assert [record.folder.parts[-4] for record in strangers] == ["source-ham10k"]


def test_the_committed_records_are_those_that_the_parameter_files_ask_for(monkeypatch):
    """No record of an earlier definition lies about, and no page shows a run that is not recorded."""
    monkeypatch.chdir(ROOT)
    files = origin.parameter_files(ROOT / "params")
    assert origin.unasked(records.gather(ROOT / "results", "open/*/*/*/seed*"), files) == []
    assert sum(files[files["track"] == "open"]["recorded"]) >= len(RUNS) > 5
