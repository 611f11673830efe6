"""What is declared, what is pinned and what is installed are one and the same."""

import ast
import importlib.metadata as metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Import names that differ from the name of the distribution that brings them.
DISTRIBUTION_OF = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "IPython": "ipykernel",  # every release of ipykernel requires it
    "nbformat": "papermill",  # likewise
    "nbclient": "papermill",
    "jupyter_core": "ipykernel",
    "traitlets": "ipywidgets",
}


def read_requirements(text: str) -> dict[str, Requirement]:
    lines = (line.split(" #")[0].strip() for line in text.splitlines() if not line.startswith("#"))
    parsed = [Requirement(line) for line in lines if line]
    by_name = {canonicalize_name(requirement.name): requirement for requirement in parsed}
    assert len(by_name) == len(parsed), "a requirement is listed twice"
    return by_name


def read_dependencies() -> dict[str, Requirement]:
    extras = [item for items in PROJECT["optional-dependencies"].values() for item in items]
    return read_requirements("\n".join(PROJECT["dependencies"] + extras))


def tracked_files() -> list[Path]:
    """Every file that git tracks or would track: new ones count before they are committed."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in files if path.is_file()]


PINS = read_requirements((ROOT / "requirements.txt").read_text())


def test_the_pins_are_the_dependencies():
    assert set(PINS) == set(read_dependencies())


@pytest.mark.parametrize("name", PINS)
def test_pin_is_exact_within_its_range_and_installed(name):
    (specifier,) = PINS[name].specifier
    assert specifier.operator == "==" and "*" not in specifier.version
    assert read_dependencies()[name].specifier.contains(specifier.version)
    assert PINS[name].specifier.contains(metadata.version(name), prereleases=True)


def test_environment_installs_that_very_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}
    assert PROJECT["requires-python"] == ">=3.11"


def test_binder_takes_a_part_of_that_list_at_the_same_versions():
    lines = (ROOT / "binder" / "requirements.txt").read_text().splitlines()
    light = read_requirements("\n".join(line for line in lines if not line.startswith("--")))
    for name, requirement in light.items():
        assert list(requirement.specifier)[0].operator == "=="
        assert requirement.specifier.contains(metadata.version(name)), name
    needed = {canonicalize_name(Requirement(item).name) for item in PROJECT["dependencies"]}
    assert needed <= set(light) and not {"jupyter-book", "selenium"} & set(light)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in lines  # without CUDA's libraries: 5 GB less


def test_only_the_package_is_packaged():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["packages"]["find"]["include"] == ["medmerge", "medmerge.*"]
    assert metadata.version("medmerge") == PROJECT["version"]


def code(path: Path) -> str:
    """What a module or a notebook runs."""
    if path.suffix == ".py":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_direct_imports_are_declared():
    """A notebook's too: on Colab the package is installed without the book's."""
    declared = {canonicalize_name(Requirement(item).name) for item in PROJECT["dependencies"]}
    undeclared = {}
    for path in sorted([*(ROOT / "medmerge").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]):
        for node in ast.walk(ast.parse(code(path))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for top in {module.partition(".")[0] for module in modules}:
                if top in sys.stdlib_module_names or top in ("medmerge", "benchmarks"):
                    continue
                if canonicalize_name(DISTRIBUTION_OF.get(top, top)) not in declared:
                    undeclared.setdefault(top, str(path.relative_to(ROOT)))
    assert not undeclared, f"imported, but no dependency in pyproject.toml: {undeclared}"


def test_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    jsonschema.validate(citation, json.loads((ROOT / "tests" / "vendor" / "cff-1.2.0.schema.json").read_text()))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    book = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert book["repository"]["url"] == citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_workflows_ask_make_for_what_it_knows():
    makefile = (ROOT / "Makefile").read_text()
    scripts = [*sorted((ROOT / ".github" / "workflows").glob("*.yml")), ROOT / ".ci" / "run"]
    asked = {target for path in scripts for target in re.findall(r"\bmake (\w+)\b(?! would)", path.read_text())}
    assert {"book", "test", "links"} <= asked
    assert not [target for target in asked if not re.search(rf"^{target}:", makefile, re.M)]


def test_files_are_small():
    big = {
        str(path.relative_to(ROOT)): path.stat().st_size
        for path in tracked_files()
        if path.stat().st_size > 1_000_000 and "vendor" not in path.parts
    }
    assert not big, f"over 1 MB: {big}"


def test_the_package_imports_what_is_asked_for_when_it_is(tmp_path):
    code = """
import sys, medmerge
heavy = {"torch", "torchvision", "numpy", "pandas", "yaml", "anywidget", "matplotlib"}
print(sorted(heavy & sys.modules.keys()), dir(medmerge) == medmerge.__all__ == sorted(medmerge.__all__))
medmerge.KernelMerge, medmerge.save, medmerge.linear_probe
print(sorted({"anywidget", "ipywidgets", "matplotlib"} & sys.modules.keys()))
from medmerge import *
print(explore.__module__, records.__name__, all(globals()[name] is getattr(medmerge, name) for name in dir(medmerge)))
medmerge.nothing
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[] True", "[]", "medmerge.explorer.widget medmerge.study.records True"]
    assert done.stderr.endswith("AttributeError: module 'medmerge' has no attribute 'nothing'\n")


def test_no_link_is_committed():
    """A link leads to a place of one machine; git would put it where another keeps its own .venv."""
    modes = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True).stdout
    assert not [line for line in modes.splitlines() if line.startswith("120000")]


def test_no_path_of_one_machine():
    folders = rb"(?:home|Users|root|work|mnt|media|scratch)/[\w.-]+"
    pattern = re.compile(rb"(?<![\w.:/*-])/(?:" + folders + rb"|tmp/ipykernel_\d+)|[A-Z]:\\Users\\")
    assert pattern.search(b'open("/home/someone/x.csv")')
    assert not pattern.search(b"https://example.org/home/x and ./work/x")
    here = re.escape(str(ROOT).encode())
    found = {}
    for path in tracked_files():
        content = path.read_bytes()
        if "vendor" in path.parts or b"\0" in content[:8192] or path == Path(__file__):
            continue
        hit = pattern.search(content) or re.search(here, content)
        if hit:
            found[str(path.relative_to(ROOT))] = hit.group().decode()
    assert not found
