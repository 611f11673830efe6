"""What a source has seen of the target: found, warned of, recorded, and left alone where it is meant."""

import logging
from pathlib import Path

import pandas as pd
import pytest
from data_fixtures import write_csv, write_ham10k, write_image
from test_study import write_weights

from medmerge import Parameters
from medmerge.data.audit import met
from medmerge.study import definitions, inputs
from medmerge.study import run as study
from medmerge.study.params import ParameterError

BASE = {
    **{"base_data": "objects", "base_weights": "w/objects.safetensors", "backbone": "densenet_small"},
    **{"target_data": "csv", "target_root": "images", "target_labels": "images/labels.csv", "image_size": 32},
    **{"device": "cpu", "precision": "fp32", "lp_epochs": 1, "ft_epochs": 1, "approaches": ["ft"]},
}


def parameters(**changes) -> Parameters:
    return Parameters.parse({**BASE, **changes})


@pytest.fixture
def project(project):
    """A folder of forty images of twenty patients in two classes, and weights without a list of images."""
    write_weights(project)
    write_folder(project / "images", range(40))
    return project


def write_folder(root: Path, seeds) -> None:
    rows = [f"{seed}.png,{'ab'[seed % 2]},patient{seed // 4 * 2 + seed % 2}" for seed in seeds]
    for seed in seeds:
        write_image(root / f"{seed}.png", seed)
    write_csv(root, "image,label,group\n" + "\n".join(rows) + "\n")


def trained_source(**changes) -> Parameters:
    """Trains a source on the folder, and returns the parameters of a pair that takes it to the same folder."""
    study.run(parameters(pair="source", save_weights="w/mine.safetensors", **changes))
    return parameters(source_data="mine", source_weights="w/mine.safetensors", **changes)


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame({"sha256": "", **columns})


def test_images_meet_by_id_within_an_archive_and_by_content_everywhere():
    seen = table(dataset=["ham10k", "ham10k"], id=["ISIC_1", "ISIC_2"], group=["HAM_1", "HAM_2"], sha256=["a", "b"])
    images = table(
        id=["ISIC_1", "ISIC_9", "ISIC_8", "ISIC_2_downsampled", "ISIC_7"], group=["x", "HAM_2", "y", "z", "w"]
    )
    images["sha256"] = ["", "c", "b", "", "d"]
    assert met(images, seen, "isic2019").tolist() == ["image", "group", "image", "image", ""]
    assert met(images, seen, "kermany").tolist() == ["", "group", "image", "", ""], "ids of another archive say nothing"
    assert met(images, seen.assign(dataset="csv"), "csv").tolist() == ["", "group", "image", "", ""]


def test_ids_of_lists_of_ones_own_and_of_other_archives_say_nothing():
    seen, images = table(dataset=["csv"], id=["1.png"], group=["1.png"]), table(id=["1.png"], group=["1.png"])
    assert met(images, seen, "csv").tolist() == [""], "an image without a patient is no group of another dataset"
    assert met(images, seen.assign(dataset="fundus4"), "fundus4").tolist() == ["image"]
    sizes = seen.assign(dataset="medmnist:retinamnist")
    assert met(images, sizes, "medmnist:retinamnist_224").tolist() == ["image"], "sizes of a set are one archive"
    assert met(images, sizes, "medmnist:pathmnist").tolist() == [""]


def test_a_source_trained_on_the_target_is_warned_of_and_recorded(project, caplog):
    p = trained_source(split_seed=1)
    p = p.model_copy(update={"split_seed": 2, "approaches": ["ft", "medmerge"]})
    with caplog.at_level(logging.WARNING):
        found = study.run(p)
    seen = pd.read_csv("w/mine.images.csv", dtype=str)
    learnt = set(seen["id"][seen["split"] != "test"])
    tested = set(found[0].predictions["id"])
    assert learnt & tested and tested - learnt
    messages = [record.message for record in caplog.records if "WARNING" in record.message]
    assert len(messages) == 1
    assert f"{len(learnt & tested)} test images that the source has seen" in messages[0]
    assert "mine: the target shares images with this source's training data" in messages[0]
    overlaps = {record.label: record.run["data"]["overlap"] for record in found}
    assert overlaps["FT objects"] == {}
    counts = overlaps["FT mine"]["mine"]
    assert counts["images"]["test"] == len(learnt & tested) and counts["allowed"] is False
    assert sum(counts["images"].values()) == len(learnt) and overlaps["MedMerge objects + mine"]["mine"] == counts


def test_what_is_meant_is_recorded_without_a_warning(project, caplog):
    p = trained_source().model_copy(update={"allow_overlap": True, "split_seed": 2})
    assert study.check_inputs(p, study.check(p)) == []
    with caplog.at_level(logging.WARNING):
        record = study.run(p)[1]
    assert not [one for one in caplog.records if "WARNING" in one.message]
    assert record.run["data"]["overlap"]["mine"]["allowed"] and record.run["data"]["overlap"]["mine"]["images"]["test"]
    assert definitions.definition_hash(record.run["definition"]) == record.run["hash"]
    assert study.check(p.model_copy(update={"allow_overlap": False})) == [], "numbers do not depend on it"


def write_more(project: Path, *, patients: int = 0) -> dict:
    """Forty more images in a folder, of some of the same patients if asked for, and a study of them."""
    group = [f",patient{seed % patients}" if patients else "" for seed in range(100, 140)]
    rows = [f"{seed}.png,{'ab'[seed % 2]}{of}\n" for seed, of in zip(range(100, 140), group, strict=True)]
    for seed in range(100, 140):
        write_image(project / "more" / f"{seed}.png", seed)
    write_csv(project / "more", "image,label" + ",group" * bool(patients) + "\n" + "".join(rows))
    return {"target_root": "more", "target_labels": "more/labels.csv", "pair": "other"}


def test_an_overlap_that_is_meant_and_is_not_there_is_warned_of(project, caplog):
    """A contaminated arm whose target lacks the source's images would measure nothing, and would look as if it had."""
    p = trained_source().model_copy(update=write_more(project) | {"allow_overlap": True})
    with caplog.at_level(logging.WARNING):
        study.run(p, {(row, 0) for row in definitions.rows(p) if row.name in ("ft-objects", "ft-mine")})
    messages = [record.message for record in caplog.records if "WARNING" in record.message]
    assert messages == ["WARNING: allow_overlap: true, but the target holds no image that mine has seen"]


def test_weights_from_elsewhere_are_compared_with_their_dataset_or_said_to_be_unknown(project):
    """Weights that came without a list of images: all images of the dataset that they are named after."""
    write_ham10k(project / "ham")
    Path("w/other.safetensors").write_bytes(Path("w/objects.safetensors").read_bytes())
    p = parameters(source_data="ham10k", source_weights="w/other.safetensors", target_data="isic2019", target_labels="")
    images = pd.DataFrame({"id": ["ISIC_0000003", "ISIC_0000099"], "group": "HAM_0000001", "sha256": ""})
    images["split"] = ["train", "test"]
    found = inputs.overlap(p, images, ["objects", "ham10k"])
    assert list(found) == ["ham10k"] and "source_root does not say" in found["ham10k"]["unknown"]
    known = p.model_copy(update={"source_root": "ham"})
    assert inputs.overlap(known, images, ["objects", "ham10k"])["ham10k"] == {
        "images": {"train": 1, "val": 0, "test": 0},
        "groups": {"train": 0, "val": 0, "test": 1},
        "allowed": False,
    }


IMAGES = pd.DataFrame({"id": ["a"], "group": ["a"], "sha256": "", "split": "test"})


def test_a_list_that_is_damaged_lost_or_of_other_weights_is_not_believed(project):
    def unknown(p, name="mine"):
        return inputs.overlap(p, IMAGES, [name])[name]["unknown"]

    p, path = trained_source(), Path("w/mine.images.csv")
    pd.read_csv(path, dtype=str).assign(dataset="kermany").to_csv(path, index=False)
    assert "lists no image of csv, which these were" in unknown(p)
    path.write_text("id,group\n1,2\n")
    assert "mine.images.csv cannot be read" in unknown(p)
    path.unlink()
    assert "the weights, trained on csv, come without a list of their images" in unknown(p)
    first = p.model_copy(update={"base_data": "ham10k", "base_weights": p.source_weights, "source_data": ""})
    assert "trained on csv" in unknown(first, "ham10k"), "the first source too"
    own = parameters(source_data="folder", source_weights="w/objects.safetensors", source_root="images")
    assert "without a list" in unknown(own, "folder"), "lists of one's own cannot be compared by name"


@pytest.mark.parametrize(("target", "named"), [("medmnist:dermamnist_64", True), ("isic2019", False), ("csv", False)])
def test_datasets_of_one_archive_under_other_names_are_not_said_to_share_nothing(project, target, named):
    Path("w/objects.images.csv").write_text("id,group,sha256,split,dataset\nx,y,,train,ham10k\n")
    found = inputs.overlap(parameters().model_copy(update={"target_data": target}), IMAGES, ["objects"])["objects"]
    assert ("hold images of one archive" in found.get("unknown", "")) == named


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results": "images/results"}, "results: .* is in target_root .*, which is only read"),
        ({"split": "file", "split_file": "nowhere.csv"}, "split_file: no nowhere.csv: there is no "),
        ({"split_file": "x.csv"}, "split_file: give it with split: file, and only then"),
        ({"split": "random", "group_identical": True}, "group_identical: is for split: grouped"),
    ],
)
def test_places_and_splits_that_do_not_fit(project, changes, message):
    with pytest.raises(ParameterError, match=message):
        study.check(parameters(**changes))


def test_a_split_can_be_kept_and_used_again(project):
    first = study.run(parameters(pair="one"))[0]
    path = project / "results/demo/one/split.csv"
    again = study.run(parameters(pair="two", split="file", split_file=str(path)))[0]
    assert again.run["data"]["split"]["fingerprint"] == first.run["data"]["split"]["fingerprint"]
    assert again.run["data"]["fingerprint"] == first.run["data"]["fingerprint"]
    assert again.predictions.equals(first.predictions)


def test_what_a_sources_own_base_has_seen_is_handed_on(project):
    """A source fine-tuned from weights that carry a list has learnt from those images too."""
    study.run(parameters(pair="first", save_weights="w/first.safetensors"))
    write_folder(project / "images", range(100, 140))
    changes = {"base_data": "first", "base_weights": "w/first.safetensors", "save_weights": "w/second.safetensors"}
    study.run(parameters(pair="second", **changes))
    seen = pd.read_csv("w/second.images.csv", dtype=str)
    first = pd.read_csv("w/first.images.csv", dtype=str)
    learnt = first[first["split"] != "test"]
    assert set(learnt["id"]) == set(seen["id"][seen["split"] == "source"])
    assert set(seen["id"][seen["split"] != "source"]) == {f"{number}.png" for number in range(100, 140)}
