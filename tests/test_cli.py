"""The command line: parameters are refused before anything runs, and what a notebook leaves is fit to publish."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError
from test_study import write_weights

from medmerge.cli import main as cli
from medmerge.cli import runs

ROOT = Path(__file__).parents[1]
PAIR_PAGE = str(ROOT / "notebooks/pair.ipynb")
PAIR = {
    **{"track": "demo", "pair": "tiny", "base_data": "objects", "base_weights": "w/objects.safetensors"},
    **{"source_data": "lesions", "source_weights": "w/lesions.safetensors", "backbone": "densenet_small"},
    **{"image_size": 32, "fractions": "[0.1, 0.1, 0.8]", "lp_epochs": 1, "ft_epochs": 1, "device": "cpu"},
}


@pytest.fixture
def project(project):
    """A project with two sources and the parameters of a pair."""
    write_weights(project)
    write_parameters("tiny")
    return project


def write_parameters(name: str, **changes) -> str:
    values = {key: value for key, value in {**PAIR, **changes}.items() if value is not None}
    Path(f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return f"{name}.yaml"


def write_notebook(name: str, code: str, parameters: str | None = 'track = "demo"\ntitle = ""\npair = "x"') -> str:
    cells = [nbformat.v4.new_markdown_cell("# A heading\n\nWords."), nbformat.v4.new_code_cell(code)]
    if parameters is not None:
        cells.insert(1, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), name)
    return name


def files(folder: Path) -> list:
    ignored = {".ipython", "__pycache__"}
    return sorted(p for p in folder.rglob("*") if p.is_file() and not ignored & set(p.parts))


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--help"], "usage: medmerge"), (["--version"], "medmerge 0."), (["chek"], "invalid choice: 'chek'")],
)
def test_help_version_and_typos_load_nothing_heavy(words, said):
    code = (
        "import sys\nfrom medmerge.cli import main\ntry:\n    main.main(sys.argv[1:])\nfinally:\n"
        "    assert not {'torch', 'torchvision', 'pandas', 'matplotlib', 'numpy', 'pydantic'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_check_of_finished_runs_loads_no_pytorch():
    code = (
        "import sys\nfrom medmerge.cli import main\nassert main.main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    files = ["params/open/skin.yaml", "params/open/external-ft.yaml", "params/open/weights.yaml"]
    command = [sys.executable, "-c", code, "check", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "external-ft.yaml: 3 runs, 3 finished" in done.stdout and done.stderr == ""


def test_check_lists_the_runs_of_each_file_and_goes_on_after_one_that_is_refused(project, capsys):
    write_parameters("two", seeds="[0, 1]", approaches="[medmerge]")
    write_parameters("typo", ft_epoch=3)
    write_parameters("absent", base_weights="w/none.pt")
    before = files(project)
    assert cli.main(["check", "typo.yaml", "absent.yaml", "nowhere.yaml", "tiny.yaml", "two.yaml"]) == 2
    out, error = capsys.readouterr()
    assert out.splitlines() == [
        *("tiny.yaml: 5 runs, 0 finished", "  to run: FT objects, seed 0", "  to run: FT lesions, seed 0"),
        *("  to run: LP-FT objects, seed 0", "  to run: LP-FT lesions, seed 0"),
        *("  to run: MedMerge objects + lesions, seed 0", "two.yaml: 2 runs, 0 finished"),
        *(f"  to run: MedMerge objects + lesions, seed {seed}" for seed in (0, 1)),
    ]
    for words in ("typo.yaml: 1 problem", "absent.yaml: base_weights: no file", "nowhere.yaml cannot be read"):
        assert f"medmerge: {words}" in error
    assert "did you mean ft_epochs?" in error and files(project) == before


@pytest.mark.parametrize(
    ("notebook", "changes", "message"),
    [
        (PAIR_PAGE, {"ft_epoch": 3}, "ft_epoch: unknown parameter; did you mean ft_epochs?"),
        (PAIR_PAGE, {"notebook": "source"}, "bad.yaml is for the notebook source, not for pair"),
        (PAIR_PAGE, {"base_weights": "w/none.pt"}, "base_weights: no file w/none.pt: there is no "),
        ("nowhere.ipynb", {}, "nowhere.ipynb; in "),
        ("broken.ipynb", {}, "broken.ipynb is not a notebook"),
        ("none.ipynb", {}, "none.ipynb: papermill needs one cell tagged `parameters`"),
        ("computed.ipynb", {}, "one cell tagged `parameters`, of `name = value` lines"),
    ],
)
def test_run_refuses_before_anything_is_written(project, capsys, notebook, changes, message):
    write_parameters("bad", **changes)
    Path("broken.ipynb").write_text("{")
    write_notebook("none.ipynb", "1", parameters=None)
    write_notebook("computed.ipynb", "1", parameters="track = str(1)")
    before = files(project)
    assert cli.main(["run", notebook, "bad.yaml"]) == 2
    out, error = capsys.readouterr()
    assert message in error and "Traceback" not in error and out == "" and files(project) == before


def texts(notebook) -> str:
    return nbformat.writes(notebook)


@pytest.mark.slow
def test_run_executes_the_pair_notebook(project, capsys):
    path = write_parameters("tiny", title='"A pair, tiny"')
    assert cli.main(["run", str(ROOT / "notebooks/pair.ipynb"), path]) == 0
    output = project / "results/demo/tiny.ipynb"
    assert capsys.readouterr().out.splitlines()[-2:] == [str(output), f"To look at it: jupyter lab {output}"]
    notebook = nbformat.read(output, 4)
    nbformat.validate(notebook)
    content = texts(notebook)
    assert str(project) not in content and str(ROOT) not in content and "/tmp/" not in content
    assert "papermill" not in notebook.metadata and set(notebook.metadata["medmerge"]) == {
        *("parameters", "study", "sha256", "inputs")
    }
    assert not [cell for cell in notebook.cells if {"papermill", "execution"} & set(cell.metadata)]
    assert notebook.cells[0].source.startswith("# A pair, tiny\n")
    commands = re.findall(r"^medmerge .*", notebook.cells[-1].source, re.M)
    row = "--row medmerge-objects-lesions --seed 0"
    assert commands == ["medmerge run pair.ipynb tiny.yaml", f"medmerge rerun tiny.yaml {row}"]
    assert "of the 4 baselines" in content and "MedMerge objects + lesions" in content
    assert len(list((project / "results/demo/tiny/densenet_small").glob("*/seed0/run.json"))) == 5
    assert [p.name for p in output.parent.iterdir() if p.suffix == ".ipynb"] == ["tiny.ipynb"]
    assert cli.main(["check", path]) == 0
    assert capsys.readouterr().out == "tiny.yaml: 5 runs, 5 finished\n"


def test_a_failing_notebook_keeps_the_previous_output(project, capsys):
    good = write_notebook("study.ipynb", "print(pair, 6 * 7)")
    Path("p.yaml").write_text("pair: mine\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "left", lambda p: [])
        assert cli.main(["run", good, "p.yaml"]) == 0
        output, failed = project / "results/demo/p.ipynb", project / "results/demo/p.failed.ipynb"
        assert "mine 42" in output.read_text() and nbformat.read(output, 4).cells[0].source.startswith("# A heading")
        before = output.read_bytes()
        write_notebook("study.ipynb", "print(pair)\nraise ValueError('on purpose')")
        capsys.readouterr()
        assert cli.main(["run", "study.ipynb", "p.yaml"]) == 1
        error = capsys.readouterr().err
        assert "medmerge: ValueError: on purpose" in error and f"It stopped in {failed}" in error
        assert output.read_bytes() == before and "on purpose" in failed.read_text()
        write_notebook("study.ipynb", "print(pair, 6 * 7)")
        assert cli.main(["run", "study.ipynb", "p.yaml", "--output", "elsewhere/q.ipynb"]) == 0
        assert failed.exists() and Path("elsewhere/q.ipynb").is_file()
        assert cli.main(["run", "study.ipynb", "p.yaml"]) == 0
        assert not failed.exists() and output.read_bytes() == before


def test_a_page_is_never_written_over_anothers(project, monkeypatch, capsys):
    write_notebook("study.ipynb", "print(pair)")
    monkeypatch.setattr(runs, "left", lambda p: [])
    Path("p.yaml").write_text("pair: mine\n")
    assert cli.main(["run", "study.ipynb", "p.yaml"]) == 0
    before = Path("results/demo/p.ipynb").read_bytes()
    Path("other").mkdir()
    for file, study in (("other/p.yaml", "mine"), ("p.yaml", "yours")):
        Path(file).write_text(f"pair: {study}\n")
        assert cli.main(["run", "study.ipynb", file]) == 2
        assert "p.ipynb is another's page" in capsys.readouterr().err
        assert Path("results/demo/p.ipynb").read_bytes() == before


@pytest.mark.parametrize("marker", ["_config.yml", ""])
def test_paths_of_a_parameter_file_count_from_its_project_whatever_the_folder(project, capsys, marker, monkeypatch):
    """The nearest folder above the file with a _config.yml, else the file's own."""
    if not marker:
        (project / "_config.yml").unlink()
    file = project / ("params/tiny.yaml" if marker else "tiny.yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes((project / "tiny.yaml").read_bytes())
    monkeypatch.chdir("/")
    assert cli.main(["check", str(file)]) == 0
    file.write_text(file.read_text().replace("w/objects", "w/none"))
    assert cli.main(["check", str(file)]) == 2
    assert f"there is no {project / 'w/none.safetensors'}, and $MEDMERGE_DATA is not set" in capsys.readouterr().err


def test_plain_papermill_refuses_an_unknown_parameter(project):
    with pytest.raises(PapermillExecutionError, match=r"ft_epoch: unknown parameter; did you mean ft_epochs\?"):
        papermill.execute_notebook(
            *(ROOT / "notebooks/pair.ipynb", project / "out.ipynb", {"ft_epoch": 3, "pair": "x"}),
            kernel_name="python3",
            cwd=str(project),
            progress_bar=False,
        )
    assert not (project / "results").exists()


def test_weights_that_cannot_be_downloaded_end_with_the_next_step(tmp_path, monkeypatch, capsys):
    def offline(url, **_):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    params = tmp_path / "p.yaml"
    params.write_text("base_weights: imagenet\nbackbone: squeezenet1_1\nimage_size: 32\napproaches: [ft]\n")
    assert cli.main(["check", str(params)]) == 2
    message = capsys.readouterr().err
    assert "could not be downloaded (<urlopen error no network>)" in message and "give its path" in message
