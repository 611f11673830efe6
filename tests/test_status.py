"""What the status page is made of: records with their origin, parameter files with their state."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from medmerge.pages import status
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


def git(*arguments: str, date: str = "2024-03-11T12:00:00Z") -> None:
    who = {
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_DATE": date,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "PATH": "/usr/bin:/bin",
    }
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *names, *arguments], check=True, capture_output=True, env=who)


def test_every_run_with_its_origin(project):
    found = records.gather(project / "results")
    table = status.runs(found)
    assert len(table) == len(found) > 5
    for record, row in zip(found, table.itertuples(), strict=True):
        run = json.loads((record.folder / "run.json").read_text())
        assert run["hash"].startswith(row.definition) and len(row.definition) == 10
        assert run["provenance"]["commit"].startswith(row.commit)
        assert row.seconds == pytest.approx(sum(phase["seconds"] for phase in run["cost"].values()))
        assert (row.run, row.seed, row.device, row.precision) == (
            record.label, run["seed"], run["device"], run["precision"],
        )  # fmt: skip
    assert list(table["recorded"]) == [status.NOT_COMMITTED] * len(found)
    assert len(status.runs([])) == 0


def test_the_date_is_that_of_the_last_commit_that_wrote_the_record(project):
    git("init", "-q")
    git("add", "results/open/source-ham10k")
    git("commit", "-qm", "one", date="2024-03-11T12:00:00Z")
    git("add", "results/open/skin/densenet121/ft-ham10k")
    git("commit", "-qm", "two", date="2024-04-01T12:00:00Z")
    path = project / "results/open/source-ham10k/densenet121/ft-tinyimagenet/seed0/run.json"
    path.write_text(path.read_text() + "\n")
    git("commit", "-qam", "three", date="2024-05-05T12:00:00Z")
    dates = {row.folder.parts[-2]: row.recorded for row in status.runs(records.gather(project / "results")).itertuples()
             if row.pair == "source-ham10k" or row.folder.parts[-2] == "ft-ham10k"}  # fmt: skip
    assert dates == {"ft-tinyimagenet": "2024-05-05", "ft-ham10k": "2024-04-01"}


def test_a_shallow_clone_knows_no_dates(project, tmp_path_factory, monkeypatch):
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    git("commit", "-qm", "two", "--allow-empty", date="2024-06-01T12:00:00Z")
    clone = tmp_path_factory.mktemp("clone") / "shallow"
    git("clone", "-q", "--depth", "1", project.as_uri(), str(clone))
    monkeypatch.chdir(clone)
    assert set(status.runs(records.gather(clone / "results"))["recorded"]) == {status.NOT_COMMITTED}


def test_parameter_files_and_what_they_ask_for(project):
    table = status.parameter_files(project / "params").set_index("file")
    assert list(table.index) == ["open/skin.yaml", "open/source-ham10k.yaml"]
    assert list(table["asked"]) == list(table["recorded"]) and all(table["asked"] > 0)
    assert list(table["page"]) == [None, None]
    asked = table["asked"]["open/skin.yaml"]
    shutil.rmtree(project / "results/open/skin/densenet121/ft-ham10k/seed0")
    table = status.parameter_files(project / "params").set_index("file")
    assert table.loc["open/skin.yaml", ["asked", "recorded"]].tolist() == [asked, asked - 1]


def test_a_page_whose_record_is_missing_is_named_with_the_record(project):
    (project / "results/open/skin.ipynb").write_text("{}")
    assert status.parameter_files(project / "params")["page"][0] == project / "results/open/skin.ipynb"
    (project / "results/open/skin/densenet121/ft-ham10k/seed0/run.json").unlink()
    with pytest.raises(
        RecordError, match=r"results/open/skin.ipynb .* missing: ft-ham10k, seed 0\. .*params/open/skin"
    ):
        status.parameter_files(project / "params")


def test_a_file_about_datasets_asks_for_their_sheets(project):
    (project / "params/open/data.yaml").write_text("notebook: data\ntrack: open\ndatasets: [ham10k=ham, rsna=rsna]\n")
    table = status.parameter_files(project / "params").set_index("file")
    assert table.loc["open/data.yaml", ["asked", "recorded"]].tolist() == [3, 0]  # two sheets, and what they share


def test_a_page_on_costs_asks_for_its_measurement(project):
    text = "notebook: cost\ntrack: open\nbackbone: densenet_small\ncost_repeats: 3\n"
    (project / "params/open/cost.yaml").write_text(text)
    row = status.parameter_files(project / "params").set_index("file").loc["open/cost.yaml"]
    assert (row.asked, row.recorded, row.page) == (1, 0, None)
    (project / "results/open/cost.ipynb").write_text("{}")
    with pytest.raises(RecordError, match="cost.ipynb shows runs whose records are missing: densenet_small-224px"):
        status.parameter_files(project / "params")


def test_a_page_on_the_premise_asks_for_its_measurement_and_its_runs(project):
    text = (project / "params/open/skin.yaml").read_text().replace("notebook: pair", "notebook: premise\npremise: true")
    (project / "params/open/premise.yaml").write_text(f"{text}\napproaches: [medmerge]\n")
    row = status.parameter_files(project / "params").set_index("file").loc["open/premise.yaml"]
    assert (row.asked, row.recorded, row.page) == (2, 1, None), "the merge is recorded, the measurement is not"
    (project / "results/open/premise.ipynb").write_text("{}")
    with pytest.raises(RecordError, match="premise.ipynb shows runs whose records are missing: what lies between"):
        status.parameter_files(project / "params")


def test_a_page_of_weights_asks_for_the_merged_runs_that_it_shows(project):
    (project / "params/open/weights.yaml").write_text("notebook: weights\ntrack: open\nstudies: [skin]\n")
    page = project / "results/open/weights.ipynb"
    page.write_text("{}")
    row = status.parameter_files(project / "params").set_index("file").loc["open/weights.yaml"]
    assert (row.asked, row.recorded, row.page) == (1, 1, page)
    assert row.folders[0].parts[-2:] == ("medmerge-tinyimagenet-ham10k", "seed0")
    shutil.rmtree(row.folders[0])
    shutil.rmtree(project / "params/open")
    (project / "params/open").mkdir()
    (project / "params/open/weights.yaml").write_text("notebook: weights\ntrack: open\nstudies: [skin]\n")
    with pytest.raises(RecordError, match="weights.ipynb shows runs whose records are missing: skin"):
        status.parameter_files(project / "params")


def test_a_file_that_no_run_could_start_from(project):
    (project / "params/open/wrong.yaml").write_text("track: open\nepochs: 3\n")
    with pytest.raises(ParameterError, match="epochs"):
        status.parameter_files(project / "params")


def test_records_that_no_file_asks_for(project):
    found = records.gather(project / "results")
    assert status.unasked(found, status.parameter_files(project / "params")) == []
    (project / "params/open/source-ham10k.yaml").unlink()
    strangers = status.unasked(found, status.parameter_files(project / "params"))
    assert [record.folder.parts[-4] for record in strangers] == ["source-ham10k"]


def test_the_committed_records_are_those_that_the_parameter_files_ask_for(monkeypatch):
    """No record of an earlier definition lies about, and no page shows a run that is not recorded."""
    monkeypatch.chdir(ROOT)
    files = status.parameter_files(ROOT / "params")
    assert status.unasked(records.gather(ROOT / "results", "open/*/*/*/seed*"), files) == []
    assert sum(files[files["track"] == "open"]["recorded"]) >= len(RUNS) > 5


def test_what_the_book_was_built_with():
    facts = status.built()
    assert {"commit", "python", "torch", "medmerge", "system"} <= facts.keys()
