"""The graph of runs and pages: what comes before what, what is finished, what is refused, and a single run of it."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from test_study import TINY, write_weights

from medmerge import files
from medmerge.approaches import APPROACHES
from medmerge.cli import main as cli
from medmerge.cli import plan
from medmerge.study import definitions, records
from medmerge.study import notebooks as pages
from medmerge.study import run as study
from medmerge.study.params import ParameterError

ROOT = Path(__file__).resolve().parents[1]
SMALL = {**TINY, "track": "own", "fractions": [0.1, 0.1, 0.8], "lp_epochs": 1, "ft_epochs": 1}
SOURCE = {name: value for name, value in SMALL.items() if not name.startswith(("source_", "lp_"))} | {
    "approaches": ["ft"]
}
SAVES = {"base": "w/objects.safetensors", "source": "w/lesions.safetensors"}
CIRCUMSTANCES = ("cost", "provenance")


def write(name: str, notebook: str = "pair", **values) -> Path:
    """A parameter file of the project."""
    path = Path("params/own") / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"notebook": notebook, **values}))
    return path


@pytest.fixture
def project(project):
    """Two sources, the second from the first, their pair, and a page of its weights; nothing has run."""
    (project / "notebooks").symlink_to(ROOT / "notebooks")
    scratch = {"base_data": "scratch", "base_weights": "random", "target_data": "synthetic:objects"}
    write("base", "source", **SOURCE | scratch, pair="base", save_weights=SAVES["base"])
    write("source", "source", **SOURCE, pair="source", target_data="synthetic:lesions", save_weights=SAVES["source"])
    write("pair", **SMALL, pair="p")
    write("weights", "weights", track="own", studies=["p"])
    return project


def before(found: plan.Plan) -> dict[str, set[str]]:
    """By row and seed, what must be finished before: rows of the same study, or names of other files."""
    named = {folder: f"{run.file.stem}:{run.row.name}/{run.seed}" for folder, run in found.runs.items()}
    return {named[folder]: {named[one] for one in run.needs} for folder, run in found.runs.items()}


def test_weights_come_before_the_runs_that_start_from_them(project):
    base, source = "base:ft-scratch/0", "source:ft-objects/0"
    found = plan.load()
    assert before(found) == {
        **{base: set(), source: {base}, "pair:ft-objects/0": {base}, "pair:lp_ft-objects/0": {base}},
        **{"pair:ft-lesions/0": {source}, "pair:lp_ft-lesions/0": {source}},
        "pair:medmerge-objects-lesions/0": {base, source},
    }
    assert list(found.files) == [Path(f"params/own/{n}.yaml") for n in ("base", "source", "pair", "weights")]
    places = {page.path.stem: len(page.needs) for page in found.pages.values()}
    assert places == {"base": 1, "source": 1, "pair": 5, "weights": 5}


def test_a_seed_comes_after_the_source_of_its_own(project):
    template, seeds = "w/lesions-{seed}.safetensors", {"seeds": [3, 4]}
    write("source", "source", **SOURCE | seeds, pair="source", target_data="synthetic:lesions", save_weights=template)
    write("pair", **SMALL | seeds | {"source_weights": template, "approaches": ["ft"]}, pair="p")
    assert before(plan.load())["pair:ft-lesions/4"] == {"source:ft-objects/4"}
    assert plan.load().missing(Path("params/own/pair.yaml")) == []


def test_rows_that_combine_networks_come_after_those(project):
    write("pair", **SMALL, pair="p", approaches=["soup", "wise_ft", "ft", "lp_ft", "medmerge"])
    found = before(plan.load())
    assert {"pair:ft-objects/0", "pair:ft-lesions/0", "pair:lp_ft-objects/0", "pair:lp_ft-lesions/0"} < found[
        "pair:soup-objects-lesions/0"
    ]
    assert found["pair:wise_ft-lesions/0"] == {"source:ft-objects/0", "pair:lp_ft-lesions/0"}
    order = [run.row.name for run in plan.load().runs.values()]
    assert order.index("lp_ft-lesions") < order.index("wise_ft-lesions")


@pytest.mark.parametrize("name", [name for name, approach in APPROACHES.items() if approach.combines])
def test_what_a_row_combines_is_what_it_asks_for(project, monkeypatch, name):
    write_weights(project)
    asked = []
    part = definitions.part
    monkeypatch.setattr("medmerge.study.run.part", lambda *words: asked.append(part(*words)) or part(*words))
    p = pages.parameters(write("pair", **SMALL, pair="p", approaches=[name]))
    study.run(p, only=[(row, 0) for row in definitions.rows(p)])
    assert asked == [part for row in definitions.rows(p) for part in definitions.parts(row)]


def test_a_page_of_studies_needs_all_of_their_runs(project):
    write("more", **SMALL, pair="p", approaches=["medmerge"], vary={"granularity": ["kernel", "layer"]})
    write("other", **SMALL, pair="q", approaches=["medmerge"])
    write("one", "weights", track="own", studies=["p/densenet_small", "q"])
    found = plan.load()
    runs = {page.path.stem: {found.runs[one].file.stem for one in page.needs} for page in found.pages.values()}
    assert runs["weights"] == {"pair", "more"} and runs["one"] == {"pair", "more", "other"}
    shared = [run.file.stem for run in found.runs.values() if run.row.name == "medmerge-objects-lesions"]
    assert sorted(shared) == ["other", "pair"], (
        "a run that two files ask for is there once, with the one that varies not"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: write("pair", **SMALL, pair="p", lp_epoch=1), "lp_epoch: unknown parameter; did you mean lp_epochs?"),
        (lambda: write("pair", "pear", **SMALL), "no notebook at "),
        (lambda: Path("params/own/pair.yaml").write_text("a: ["), "is not valid YAML"),
    ],
)
def test_a_bad_file_is_an_error_where_it_is_asked_for_and_a_note_elsewhere(project, change, message):
    change()
    found = plan.load()
    assert (
        list(found.unread) == [Path("params/own/pair.yaml")] and message in found.unread[Path("params/own/pair.yaml")]
    )
    assert len(found.runs) == 2
    with pytest.raises(ParameterError, match=re.escape(message)):
        plan.load([Path("params/own/pair.yaml")])


def twin():
    write("twin", "source", **SOURCE, pair="twin", save_weights=SAVES["source"])


def circle():
    write("base", "source", **SOURCE | {"base_weights": SAVES["source"]}, save_weights=SAVES["base"])


def same_folder():
    write("other", **SMALL | {"ft_lr": 0.5}, pair="p", approaches=["medmerge"])


def same_page():
    write("../mine/pair", **SMALL, pair="q")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (twin, r"(source|twin)\.yaml and .*(source|twin)\.yaml both save w/lesions\.safetensors"),
        (circle, r"each needs the weights of the next: .*base\.yaml"),
        (same_folder, r"other\.yaml and .*pair\.yaml ask for different runs in .*: ft_lr is 0\.5 there and 0\.002"),
        (same_page, r"pair\.yaml and params/.*/pair\.yaml are both drawn as .*own/pair\.ipynb; rename one"),
    ],
)
def test_files_that_do_not_go_together(project, change, message):
    change()
    with pytest.raises(ParameterError, match=message):
        plan.load()


def test_what_is_missing_and_will_not_be_made(project):
    found = plan.load()
    assert all(found.missing(file) == [] for file in found.files)
    write("pair", **SMALL | {"base_weights": "w/none.safetensors", "target_data": "ham10k", "target_root": "nowhere"})
    lines = plan.load().missing(Path("params/own/pair.yaml"))
    assert len(lines) == 2 and "no file w/none.safetensors" in lines[0] and "target_root: no nowhere" in lines[1]


def test_runs_one_by_one_in_the_order_of_the_plan(project, capsys):
    """What Snakemake does: what can start is started until nothing is left; the records are a study's in one go."""
    assert drawable() == []
    for run in list(plan.load().runs.values()):
        assert cli.main(plan.command(run)[1:]) == 0
    assert drawable() == ["base", "pair", "source", "weights"]
    p = pages.parameters(Path("params/own/pair.yaml"))
    alone = {record.folder: record_files(record) for record in study.run(p)}
    again = study.run(p.model_copy(update={"results": "again"}))
    assert [record_files(record) for record in again] == list(alone.values()), "the same as in one go"
    Path(SAVES["source"]).unlink()
    (project / "results/own/p/densenet_small/ft-lesions/seed0/run.json").unlink()
    (line,) = plan.load().missing(Path("params/own/pair.yaml"))
    assert "no file w/lesions.safetensors" in line and "`medmerge run params/own/source.yaml` makes it" in line
    assert cli.main(["train", "params/own/source.yaml"]) == 0 and Path(SAVES["source"]).is_file()
    assert plan.load().missing(Path("params/own/pair.yaml")) == []
    assert drawable() == ["base", "source", "weights"], "a run of the pair is not here"
    (project / "results/own/p/densenet_small/medmerge-objects-lesions/seed0/run.json").unlink()
    assert drawable() == ["base", "source"], "nor is a merge"


def drawable() -> list[str]:
    """The parameter files of the pages whose records are all here."""
    return sorted(page.file.stem for page in plan.load().drawable())


def record_files(record: records.Record) -> dict[str, object]:
    """What a run's folder holds, without where and how long it was computed."""
    found = {
        path.name: path.read_bytes() for path in record.folder.iterdir() if path.is_file() and path.name != "run.json"
    }
    run = {name: value for name, value in record.run.items() if name not in CIRCUMSTANCES}
    return found | {"run.json": run | {"parameters": {**run["parameters"], "results": ""}}}


def test_train_runs_what_it_is_asked_for_alone(project, capsys, caplog, monkeypatch):
    write_weights(project)
    caplog.set_level("INFO")
    seen, replacing = [], files.replacing
    monkeypatch.setattr(files, "replacing", lambda path: seen.append(path.name) or replacing(path))
    path = write("pair", **SMALL, pair="p", seeds=[3, 5], approaches=["ft"])
    assert cli.main(["train", str(path), "--row", "ft-lesions", "--seed", "5"]) == 0
    assert capsys.readouterr().out.endswith("results/own/p/densenet_small/ft-lesions/seed5\n")
    assert "1 run to do, " in caplog.text and "training images x 1 epochs in all, about 0:" in caplog.text
    assert "run 1 of 1: FT lesions, seed 5" in caplog.text and "fine_tune 1/1" in caplog.text
    assert seen.index("history.csv") < seen.index("predictions.csv"), "can be read before the run is finished"
    assert [str(p.parent.relative_to(project)) for p in project.rglob("run.json")] == [
        "results/own/p/densenet_small/ft-lesions/seed5"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pair", "--row", "ft-lesion"], "--row ft-lesion: did you mean ft-lesions?"),
        (["pair", "--seed", "4"], "--seed 4: the file's seeds are 0; add it there"),
        (["weights"], "params/own/weights.yaml asks for a page, not for runs: medmerge run params/own/weights.yaml"),
        (["pair"], "and $MEDMERGE_DATA is not set; `medmerge run params/own/base.yaml` makes it"),
    ],
)
def test_train_refuses(project, capsys, words, message):
    name, *options = words
    assert cli.main(["train", f"params/own/{name}.yaml", *options]) == 2
    assert message in capsys.readouterr().err and not Path("results").exists()


def test_a_page_is_current_as_long_as_what_it_was_drawn_from(project):
    write_weights(project)
    path = write("pair", "pair", **SMALL, pair="p", approaches=["medmerge", "ft"])
    notebook = Path("mine.ipynb")
    nbformat.write(nbformat.read(ROOT / "notebooks/pair.ipynb", 4), notebook)
    p = pages.parameters(path)
    (record, *_) = study.run(p)
    page = nbformat.v4.new_notebook(metadata={"medmerge": pages.origin(path, notebook, p)})
    assert not pages.current(path, notebook, p)
    nbformat.write(page, pages.output(p, path))
    assert pages.current(path, notebook, p)
    edited = nbformat.read(notebook, 4)
    edited.cells[0].source += " More."
    files = [record.folder / name for name in ("run.json", "predictions.csv", "kernel_weights.safetensors")]
    kept = {place: place.read_bytes() for place in (path, notebook, *files)}
    for changed, content in zip(kept, (b"\n# more", nbformat.writes(edited).encode(), *[b"\n"] * 3), strict=True):
        changed.write_bytes(content if changed == notebook else kept[changed] + content)
        assert not pages.current(path, notebook, p), changed
        changed.write_bytes(kept[changed])
    assert pages.current(path, notebook, p)


# ---------------------------------------------------------------- the repository's own files


@pytest.fixture
def repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    return plan.load()


def test_every_file_of_the_repository_is_in_the_graph(repository):
    paths = sorted(ROOT.glob("params/*/*.yaml"))
    assert not repository.unread and {path.resolve() for path in repository.files} == set(paths)
    assert {page.file.resolve() for page in repository.pages.values()} == set(paths), "each names its notebook"
    order = list(repository.runs)
    assert all(order.index(one) < order.index(folder) for folder, run in repository.runs.items() for one in run.needs)


@pytest.mark.parametrize(
    ("track", "pair", "sources"),
    [
        ("demo", "pair", {"base", "source"}),
        ("demo", "three", {"base", "source", "source-scratch"}),
        ("demo", "rivals", {"base", "source", "pair"}),
        ("open", "premise-elsewhere", {"source-ham10k-scratch"}),
        ("paper", "isic2019-clean", {"source-ham10k"}),
        ("paper", "rsna", {"source-chexpert"}),
    ],
)
def test_the_repositorys_sources_come_before_its_pairs(repository, track, pair, sources):
    path = Path(f"params/{track}/{pair}.yaml")
    runs = repository.runs
    todo = [folder for folder, run in runs.items() if run.file == path]
    for folder in todo:
        todo += [one for one in runs[folder].needs if one not in todo]
    assert {runs[folder].file for folder in todo} == {path, *(Path(f"params/{track}/{one}.yaml") for one in sources)}
