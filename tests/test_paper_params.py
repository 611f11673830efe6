"""The paper's experiments, each from its parameter file, on miniatures of the six datasets in official layouts."""

import csv
import random
import re
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import official, write_aptos2019, write_eyepacs, write_isic2018, write_isic2019
from xray_fixtures import write_chexpert_part, write_rsna

from benchmarks import chapter
from medmerge import Parameters
from medmerge.data import CATALOGUE
from medmerge.data.loaders import xray
from medmerge.study import run as study
from medmerge.study.names import title
from medmerge.study.params import load_yaml

ROOT = Path(__file__).parents[1]
BACKBONES = {"densenet121": "densenet_small", "resnet50": "resnet18"}
"""A small network of the kind in place of each of the paper's."""

SMALL = {
    **{"image_size": 32, "lp_epochs": 2, "ft_epochs": 2, "ft_lr": 1e-3, "seeds": [0]},
    **{"device": "cpu", "precision": "fp32", "base_weights": "random"},
}
PAIRS = {"isic2019": "ham10k", "isic2019-clean": "ham10k", "aptos2019": "eyepacs", "aptos2019-clean": "eyepacs"}
PAIRS["rsna"] = "chexpert"
PAPER = {"isic2019": "ISIC-2019", "aptos2019": "APTOS", "rsna": "RSNA-Pneumonia"}
TOTAL = {"isic2019": 180, "isic2019-clean": 110, "aptos2019": 100, "aptos2019-clean": 100, "rsna": 60}


def write_small_chexpert(folder: Path) -> None:
    """Sixty patients to train on, twenty to validate and twenty to test, with findings drawn at random."""
    draw, number = random.Random(0), 0
    for part, count, known in (("train", 60, ("1.0", "0.0", "-1.0", "")), ("valid", 20, "10"), ("test", 20, "10")):
        rows = {}
        for _ in range(count):
            path = f"{part}/patient{number:05d}/study1/view1_frontal.jpg"
            rows[path] = ",".join(draw.choice(known) for _ in range(14))
            number += 1
        name = "test_labels" if part == "test" else part
        write_chexpert_part(folder, name, rows, number - count)
        official("chexpert")[name] = count


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The six datasets, each in the folder that the parameter files name; the working folder is there."""
    root, draw = tmp_path_factory.mktemp("paper"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MEDMERGE_DATA", raising=False)
        for known in CATALOGUE:
            for what, count in known.rows.items():
                patch.setitem(known.rows, what, count)
        write_isic2018(root / "ham10000", {"Training": 70, "Validation": 14, "Test": 14})
        names = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
        lesions = {f"ISIC_{number:07d}": f"HAM_{number // 2:07d}" for number in range(70)}
        write_isic2019(
            root / "isic2019",
            {image: names[k % 8] for k, image in enumerate([*lesions, *(f"ISIC_{n:07d}" for n in range(500, 610))])},
            lesions,
        )
        eyes = [f"{patient}_{side}" for patient in range(60) for side in ("left", "right")]
        write_eyepacs(root / "eyepacs", {eye: k // 2 % 5 for k, eye in enumerate(eyes[:60])},
                      {eye: k // 2 % 5 for k, eye in enumerate(eyes[60:])})  # fmt: skip
        write_aptos2019(root / "aptos2019", {f"{k:012x}": k % 5 for k in range(100)})
        for k in range(0, 100, 10):
            copy = (root / "aptos2019/train_images" / f"{k:012x}.png").read_bytes()
            (root / "aptos2019/train_images" / f"{k + 5:012x}.png").write_bytes(copy)
        write_small_chexpert(root / "CheXpert-v1.0")
        kinds = (("Normal", 0), ("Lung Opacity", 2), ("No Lung Opacity / Not Normal", 0))
        patients = {f"{draw.bytes(8).hex()}-{k}": kinds[k % 3] for k in range(90)}
        write_rsna(root / "rsna-pneumonia-detection-challenge", patients)
        yield root


def parameters(name: str, **changes) -> Parameters:
    path = ROOT / f"params/paper/{name}.yaml"
    given = load_yaml(path)
    backbone = BACKBONES[given.get("backbone", "densenet121")]
    return Parameters.parse({**given, **SMALL, "backbone": backbone, **changes}, str(path))


@pytest.fixture(scope="module")
def sources(project):
    """The three sources, trained from their parameter files: the only record of each, by name."""
    return {name: study.run(parameters(f"source-{name}"))[0] for name in ("ham10k", "eyepacs", "chexpert")}


def test_every_parameter_file_of_the_paper_is_here():
    files = {path.stem for path in (ROOT / "params/paper").glob("*.yaml")}
    both = {*PAPER, *(f"source-{source}" for source in set(PAIRS.values()))}
    costs = {"cost-densenet121", "cost-resnet50"}
    assert files == {*PAIRS, *both, *(f"{name}-resnet50" for name in both), *costs}


@pytest.mark.parametrize("name", [*PAPER, *(f"{name}-resnet50" for name in PAPER)])
def test_heads_say_what_the_paper_found_and_what_it_takes(name):
    """Numbers in the comment of a file: the rows of the paper's table, and training images by the parameters."""
    path = ROOT / f"params/paper/{name}.yaml"
    head = path.read_text(encoding="utf-8").partition("track:")[0]
    target, _, backbone = name.partition("-")
    with (ROOT / "book/paper-tables.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["backbone"] == (backbone or "densenet121")]
    rows = [r for r in rows if r["target"] == PAPER[target]]
    found = re.findall(r"^#   (.+?) +(0\.\d{3})  (0\.\d{3})$", head, re.M)
    assert found == [(f"{r['approach']} {r['source'].replace('+', ' + ')}", r["accuracy"], r["macro_f1"]) for r in rows]
    assert f"Table {rows[0]['table']} has it" in head and len(rows) == 5
    used, count = chapter.passes(path)
    assert used == (backbone or "densenet121") and f"# A seed is {count / 1e6:.2f} million training images" in head


@pytest.mark.parametrize("name", [*PAPER, *(f"source-{source}" for source in sorted(set(PAIRS.values())))])
def test_the_files_of_both_backbones_differ_in_nothing_else(name):
    one, other = (load_yaml(ROOT / f"params/paper/{name}{end}.yaml") for end in ("", "-resnet50"))
    assert other.pop("backbone") == "resnet50" and other.pop("title") == f"{one.pop('title')}, ResNet-50"
    assert {k: v.replace("resnet50-", "densenet121-") if "weights" in k else v for k, v in other.items()} == one


def test_sources_are_trained_on_the_papers_splits(project, sources):
    images = {name: record.images for name, record in sources.items()}
    assert images["ham10k"] == {"train": 70, "val": 14, "test": 14}
    assert images["eyepacs"] == {"train": 96, "val": 12, "test": 12}
    assert images["chexpert"] == {"train": 60, "val": 20, "test": 20}
    assert [record.multilabel for record in sources.values()] == [False, False, True]
    assert sources["chexpert"].run["data"]["classes"] == list(xray.CHEXPERT_CLASSES)
    notes = " ".join(sources["chexpert"].run["data"]["notes"])
    assert "uncertain labels are taken as ignore" in notes and "blank labels are taken as zeros" in notes
    for name in sources:
        assert (project / f"weights/paper/densenet121-{name}.safetensors").is_file()


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_run_from_their_parameter_files(project, sources, name, caplog):
    records = study.run(parameters(name))
    source = PAIRS[name]
    assert [record.label for record in records] == [
        *("FT ImageNet", f"FT {title(source)}", "LP-FT ImageNet", f"LP-FT {title(source)}"),
        f"MedMerge ImageNet + {title(source)}",
    ]
    run = records[-1].run
    found = run["data"]["overlap"][source]
    assert run["data"]["split"]["method"] == ("grouped" if name.endswith("clean") else "random")
    if name == "isic2019":  # 70 of the source's training images are here, and none of its other two parts
        assert sum(found["images"].values()) == 70 and found["images"]["test"] > 0
        assert "WARNING: ham10k: the target shares images" in caplog.text
    else:
        assert not any([*found["images"].values(), *found["groups"].values()]) and "shares images" not in caplog.text
    expected = {"isic2019": (108, 36, 36), "aptos2019": (80, 10, 10), "rsna": (48, 6, 6)}
    images = tuple(records[-1].images[part] for part in ("train", "val", "test"))
    assert images == expected.get(name, images) and sum(images) == TOTAL[name]


def test_a_pair_runs_with_the_other_backbone_too(project):
    """One of three, whose files differ from the first backbone's in nothing else."""
    study.run(parameters("source-chexpert-resnet50"))
    records = study.run(parameters("rsna-resnet50"))
    assert [record.label for record in records][-1] == "MedMerge ImageNet + CheXpert" and len(records) == 5
    assert {record.run["parameters"]["backbone"] for record in records} == {"resnet18"}
    assert len(records[-1].kernel_weights) == 20, "ResNet-18 has 20 convolutions"
    assert (project / "weights/paper/resnet50-chexpert.safetensors").is_file()
    epochs = [line.split(",")[0] for line in (records[-1].folder / "history.csv").read_text().splitlines()[1:]]
    assert epochs == ["linear_probe"] * 2 + ["fine_tune"] * 2


def test_the_clean_pairs_leave_out_what_the_papers_splits_leak(project, sources):
    images = study.load_data(parameters("isic2019-clean")).images
    assert len(images) == 110 and not images["id"].isin({f"ISIC_{number:07d}" for number in range(70)}).any()
    leaky, clean = (study.load_data(parameters(name)).images for name in ("aptos2019", "aptos2019-clean"))
    assert (leaky.groupby("sha256")["split"].nunique() > 1).any()
    assert (clean.groupby("sha256")["split"].nunique() == 1).all()
