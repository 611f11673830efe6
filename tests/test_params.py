"""Parameters: what a file or a notebook may say, and a clear refusal of everything else."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill.inspection import inspect_notebook

from medmerge.study import notebooks as pages
from medmerge.study import params
from medmerge.study.params import ParameterError, Parameters, assigned_values, load_yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in (ROOT / "notebooks").glob("*.ipynb")}
FILES = sorted((ROOT / "params").rglob("*.yaml"))


THREE = {"base_data": "a", "source_data": "b", "source_weights": "b.pt", "more_data": ["c"], "more_weights": ["c.pt"]}


def refused(values: dict, **options) -> list[str]:
    """The lines of the refusal, one a problem."""
    with pytest.raises(ParameterError) as raised:
        Parameters.parse(values, **options)
    first, *lines = str(raised.value).split("\n  ")
    assert first == f"{options.get('origin', 'parameters')}: {len(lines)} problem" + "s" * (len(lines) > 1)
    return lines


def test_defaults_are_the_papers():
    p = Parameters.parse({})
    assert (p.backbone, p.image_size, p.lp_epochs, p.ft_epochs) == ("densenet121", 224, 50, 50)
    assert (p.lp_lr, p.ft_lr, p.weight_decay, p.batch_size) == (1e-4, 1e-5, 0.01, 32)
    assert p.approaches == ["ft", "lp_ft", "medmerge"] and p.normalisation == "auto"
    with pytest.raises(ValueError, match="frozen"):
        p.ft_lr = 1.0


def test_every_parameter_has_a_reason():
    for name, field in Parameters.model_fields.items():
        assert field.description and not field.is_required(), name
        assert f"| `{name}` | `{field.default!r}` | {field.description} |" in params.markdown()


def test_unknown_names_give_the_nearest():
    assert refused({"ft_epoch": 3}) == ["ft_epoch: unknown parameter; did you mean ft_epochs?"]
    assert refused({"zzz": 3})[0].startswith("zzz: unknown parameter; known: notebook, track, title, ")
    assert refused({1: 2, None: 3})[0].startswith("1: unknown parameter")
    for spelt_out, short in {"lp_learning_rate": "lp_lr", "fine_tuning_lr": "ft_lr", "img_size": "image_size"}.items():
        assert refused({spelt_out: 1}) == [f"{spelt_out}: unknown parameter; did you mean {short}?"]
    assert refused({"lp_lr": 1.0}, allowed=["ft_lr", "pair"]) == ["lp_lr: unknown parameter; did you mean ft_lr?"]


def test_all_problems_come_at_once():
    lines = refused(
        {"ft_epoch": 3, "ft_lr": "fast", "batch_size": 1, "seeds": [0, -1], "track": "dmo"}, origin="x.yaml"
    )
    assert [line.split(":")[0] for line in lines] == ["ft_epoch", "track", "batch_size", "seeds[1]", "ft_lr"]
    lines = refused({"fractions": [0.5, 0.2, 0.2], "seeds": [1, 1], "source_data": "a", "target_data": "csv"})
    starts = ["source_data and source_weights", "fractions", "seeds", "target_labels"]
    assert [line.split(":")[0] for line in lines] == starts


@pytest.mark.parametrize("text", ["1e-3", "12345678e-12"])
def test_numbers_that_yaml_reads_as_text_are_numbers(text):
    assert isinstance(yaml.safe_load(f"ft_lr: {text}")["ft_lr"], str)
    p = Parameters.parse({"ft_lr": text, "w_lr": text, "vary": {"lp_lr": [text, 0.5]}})
    assert p.ft_lr == p.w_lr == float(text) and p.vary == {"lp_lr": [float(text), 0.5]}
    assert refused({"ft_epochs": "1e2"}) == ["ft_epochs: '1e2': input should be a valid integer"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("lp_epochs", value) for value in (True, 0, 1.5, "many", None)],
        *[("ft_lr", value) for value in (True, 0, float("nan"), "fast", None)],
        *[("seeds", value) for value in (0, [], [True], [-1], ["0"])],
        *[("fractions", value) for value in ([0.5, 0.5], [1.0, 0.0, 0.0])],
        *[("batchnorm", value) for value in (True, 2, "first")],
        *[("pair", value) for value in ("", "a/b", "../up", "a b", 3)],
        *[("source_data", value) for value in ("a/b", ".hidden")],
        *[("image_size", 15), ("split", "patient"), ("approaches", "ft"), ("device", "gpu"), ("select", "first")],
    ],
)
def test_wrong_types_and_values(name, value):
    other = {"source_weights": "w.pt"} if name == "source_data" else {}
    lines = refused({name: value, **other})
    assert all(line.startswith(name) for line in lines)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"base_data": "a", "source_data": "a", "source_weights": "c.pt"},
            r"source_data, more_data: \['a'\] named twice",
        ),
        (THREE | {"more_weights": []}, "more_data and more_weights: give one entry each"),
        (THREE | {"source_data": "", "source_weights": ""}, "more_data: these come after source c"),
        (THREE | {"batchnorm": 3}, "batchnorm: sources count from 0 to 2"),
        ({"target_labels": "l.csv"}, "target_labels: give it for target_data csv"),
        ({"save_weights": "w.safetensors"}, r"save_weights: saves one network a seed; give approaches: \[ft\]"),
        ({"save_weights": "w.safetensors", "approaches": ["ft"], "seeds": [0, 1]}, r"of several seeds needs \{seed\}"),
        ({"studies": ["skin"], "notebook": "pair"}, "studies: is for a page of its own: weights, features, findings"),
    ],
)
def test_impossible_combinations(values, message):
    with pytest.raises(ParameterError, match=message):
        Parameters.parse(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair: a\nft_lr: 1.0\npair: b\n", "pair comes twice[\\s\\S]*line 3"),
        ("just words", "holds str, not parameters"),
        ("pair: [a\n", "not valid YAML"),
        ("? {a: b}\n: 1\n", "not valid YAML"),
        ("pair: !!python/object/apply:os.mkdir [sprung]\n", "not valid YAML.*python/object/apply:os.mkdir"),
    ],
)
def test_bad_yaml(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message) as raised:
        load_yaml(path)
    assert str(path) in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["p.yaml"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("title: Fußball".encode("latin-1"))
    for path in (tmp_path, tmp_path / "skim.yaml", tmp_path / "latin.yaml"):
        with pytest.raises(ParameterError, match=f"^{path} cannot be read"):
            load_yaml(path)


def test_from_notebook_takes_the_variables_that_are_parameters_and_no_injected_name_that_is_none():
    cell = "# Parameters\nft_epochs = 3\n{name} = 0.5\n".format
    rest = {"pair": "a", "ft_epochs": 3, "lp_lr": 0.5, "scores": object(), "_": 1, "pd": pytest, "ft_epoch": 2}
    found = Parameters.parse({"pair": "a", "ft_epochs": 3, "lp_lr": 0.5})
    assert Parameters.from_notebook({"In": ["", "pair = 'a'"], **rest}) == found
    assert (
        Parameters.from_notebook({"In": ["", cell(name="lp_lr"), "other = 1\nft_epoch = 2", "%magic"], **rest}) == found
    )
    wrong = {"In": ["", cell(name="lp_rl"), "import x"], "lp_rl": 0.5, **rest}
    with pytest.raises(ParameterError, match=r"the notebook's parameters: 1 problem\s+lp_rl: .*did you mean lp_lr\?"):
        Parameters.from_notebook(wrong)
    wrong["In"].append(cell(name="lp_lr"))
    assert Parameters.from_notebook(wrong) == found, "a mended cell counts, not the one before it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_parameter_files_parse_and_fit_their_notebook(path):
    values = load_yaml(path)
    p = pages.parameters(path)
    assert p.notebook in NOTEBOOKS and p.track == path.parent.name
    assert f"{p.notebook}.ipynb params/{path.parent.name}/{path.name}" in re.sub(" +", " ", path.read_text())
    assert not [name for name, value in values.items() if isinstance(value, str) and value.startswith(("/", "~"))]


def parameters_cell(name: str) -> str:
    notebook = nbformat.read(NOTEBOOKS[name], 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebooks_cell_of_parameters_sets_its_own_and_no_later_cell_does(name):
    """A rerun in a live kernel would take it for one. Papermill warns of what it cannot read in the cell."""
    own = assigned_values(parameters_cell(name))
    assert own["notebook"] == name and own["track"] in ("demo", "open") and len(own) <= 5
    assert Parameters.parse(own, allowed=pages.KINDS.get(name, pages.Kind()).takes).notebook == name
    assert list(inspect_notebook(str(NOTEBOOKS[name]))) == list(own)
    code = [cell for cell in nbformat.read(NOTEBOOKS[name], 4).cells if cell.cell_type == "code"]
    body = [
        line
        for cell in code
        if "parameters" not in cell.metadata.get("tags", [])
        for line in ast.parse(cell.source).body
    ]
    targets = [target for line in body if isinstance(line, ast.Assign) for target in line.targets]
    later = {target.id for target in targets if isinstance(target, ast.Name)}
    assert later and not later & set(Parameters.model_fields)
