"""RSNA, Kermany and NIH: official layouts, the facts about the real files, and copies that were altered."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_fixtures import official, real, write_image
from xray_fixtures import KERMANY_IMAGES, NEITHER, NORMAL, OPACITY, edit, write_kermany, write_nih, write_rsna

from medmerge.data import DataError, load_images, load_table, split
from medmerge.data.decode import read_dicom
from medmerge.data.loaders import xray as xray_module

PATIENTS = {
    "0004cfab": (NEITHER, 0),
    "00436515": (OPACITY, 2),
    "003d8fa0": (NORMAL, 0),
    "00704310": (OPACITY, 1),
    "00aecb01": (NORMAL, 0),
}
LABELS, INFO = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"


@pytest.fixture
def rsna(tmp_path):
    return write_rsna(tmp_path / "rsna", PATIENTS)


@pytest.fixture
def kermany(tmp_path):
    return write_kermany(tmp_path / "kermany")


def test_rsna_as_distributed(rsna, tmp_path):
    table = load_table("rsna", rsna)
    assert table.classes == (NORMAL, OPACITY)
    frame = table.frame
    assert frame["id"].tolist() == ["003d8fa0", "00436515", "00704310", "00aecb01"]
    assert frame["label"].tolist() == [0, 1, 1, 0] and frame["group"].tolist() == frame["id"].tolist()
    assert table.notes == ("1 of 5 patients are 'No Lung Opacity / Not Normal' and left out.",)
    images = load_images(table, 16, cache=tmp_path / "cache")
    assert (images.pixels[..., 0] == images.pixels[..., 2]).all() and images.pixels.std() > 20
    assert read_dicom(Path(frame["path"][0]).read_bytes()).shape == (12, 10)
    with pytest.raises(DataError, match="rsna has no official split"):
        split(table, method="official")


def test_rsna_real_label_files():
    table = load_table("rsna", real("rsna"), missing="keep")
    assert np.bincount(table.labels).tolist() == [8_851, 6_012] and len(table.frame) == 14_863
    assert table.notes[:2] == (
        f"{INFO} has 30,226 of the official 30,227 rows, which makes no difference: the class of 1 (first "
        "489a175a-4c5c-4b7f-8fdc-cd8514404dbe) follows from Target 1, Lung Opacity.",
        "11,821 of 26,684 patients are 'No Lung Opacity / Not Normal' and left out.",
    )
    assert xray_module.rsna(real("rsna")).rows == {LABELS: (30_227, 30_227)}


def test_rsna_short_class_info(rsna):
    expected = load_table("rsna", rsna).frame
    edit(rsna / INFO, f"00436515,{OPACITY}\n", "", 1)
    table = load_table("rsna", rsna)
    assert table.frame.equals(expected)
    assert table.notes[0].endswith(
        "has 5 of the official 6 rows, which makes no difference: each patient has another one."
    )
    edit(rsna / INFO, f"00704310,{OPACITY}\n", "")
    table = load_table("rsna", rsna)
    assert table.frame.equals(expected) and "the class of 1 (first 00704310) follows" in table.notes[0]
    edit(rsna / INFO, f"003d8fa0,{NORMAL}\n", "")
    with pytest.raises(DataError, match="003d8fa0 has the class 'unknown' and the Target 0"):
        load_table("rsna", rsna)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (LABELS, "003d8fa0,,,,,0", "003d8fa0,,,,,1", "003d8fa0 has the class 'Normal' and the Target 1"),
        (LABELS, "00436515,265.0", "00436515,264.0", r"1 rows are there twice, the first of patient 00436515"),
        (LABELS, "003d8fa0,,,,,0", "003d8fa0,,,,,no", r"patient 003d8fa0 has the Target 'no'; it is one of 0, 1"),
        (INFO, f"003d8fa0,{NORMAL}", "003d8fa0,Healthy", "the class 'Healthy'; it is one of Normal, Lung Op"),
        (LABELS, "00704310", "99704310", r"not about the same patients: 1 are in one alone, first 00704310"),
    ],
)
def test_rsna_altered_files(rsna, file, old, new, message):
    edit(rsna / file, old, new, 1 if new else -1)
    with pytest.raises(DataError, match=message):
        load_table("rsna", rsna)


def test_kermany_as_distributed(kermany):
    table = load_table("kermany", kermany)
    frame = table.frame.set_index("id")
    assert table.classes == ("NORMAL", "PNEUMONIA") and table.notes == ()
    assert len(frame) == sum(map(len, KERMANY_IMAGES.values()))
    for place, names in KERMANY_IMAGES.items():
        part, label = place.split("/")
        assert (frame.loc[list(names), "split"] == part).all()
        assert (frame.loc[list(names), "label"] == table.classes.index(label)).all()
    groups = frame["group"]
    assert groups["person1_bacteria_1"] == groups["person1_bacteria_2"] == "person1_bacteria"
    assert groups["person1_virus_6"] == groups["person1_virus_7"] == "person1_virus"
    assert groups["person447_virus_921_1"] == "person447_virus"
    assert groups["IM-0429-0001-0002"] == "IM-0429" and groups["NORMAL2-IM-0383-0001"] == "NORMAL2-IM-0383"


def test_kermany_as_the_authors_archived_it(tmp_path):
    """There val's images are in train, and names carry the patient's number."""
    images = {
        "train/NORMAL": ("NORMAL-1003233-0001", "NORMAL-1003233-0002", "NORMAL-1040-0001"),
        "train/PNEUMONIA": ("BACTERIA-1008087-0001", "VIRUS-7040-0001"),
        "test/NORMAL": ("NORMAL-11419-0001",),
        "test/PNEUMONIA": ("VIRUS-11900-0001",),
    }
    root = write_kermany(tmp_path, images)
    official("kermany").update(dict.fromkeys(official("kermany"), 1) | {"train/NORMAL": 2})
    table = load_table("kermany", root)
    assert table.frame["group"].nunique() == 6 and len(table.frame) == 7
    write_image(root / "chest_xray" / "train" / "NORMAL" / "NORMAL-99-0001.jpeg")
    with pytest.raises(DataError, match="train/NORMAL has 4 rows, the official file 3: rows were added"):
        load_table("kermany", root)


def test_kermany_real_images():
    """The counts, and what names say: see the docstring of `xray.kermany`."""
    table = load_table("kermany", real("kermany"))
    frame = table.frame
    counts = pd.crosstab(frame["split"], frame["label"])
    assert counts.loc["train"].tolist() == [1_341, 3_875] and counts.loc["test"].tolist() == [234, 390]
    assert table.notes == ("The 16 official validation images are in no folder val.",)
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    by_label = frame.groupby(["label", "split"])["group"].nunique()
    assert by_label.to_dict() == {(0, "test"): 225, (0, "train"): 1_211, (1, "test"): 203, (1, "train"): 2_443}
    numbers = frame["group"].str.extract(r"(\d+)(?:_\w+)?$")[0]
    for label, shared, tested in ((0, 94, 202), (1, 170, 202)):
        train, test = (set(numbers[(frame["label"] == label) & (frame["split"] == part)]) for part in ("train", "test"))
        assert (len(train & test), len(test)) == (shared, tested)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train/NORMAL/IM-0115-0001_flipped.jpeg", r"IM-0115-0001_flipped\.jpeg is no official name, such as person1"),
        ("train/COVID19/person1_virus_1.jpeg", r"train has a folder COVID19; the classes are NORMAL and PNEUMONIA"),
        ("test/NORMAL/IM-0002-0001.jpeg", r"test/NORMAL has 2 rows, the official file 1: rows were added"),
    ],
)
def test_kermany_altered(kermany, name, message):
    write_image(kermany / "chest_xray" / name)
    with pytest.raises(DataError, match=message):
        load_table("kermany", kermany)


ARCHIVE = tuple(f"images_{number:03d}/images" for number in (1, 7, 12))


@pytest.mark.parametrize("folders", [("images",), ("images/images",), ARCHIVE, ("",)])
def test_nih_layouts(tmp_path, folders):
    table = load_table("nih_pneumonia", write_nih(tmp_path, folders))
    assert table.classes == ("No Finding", "Pneumonia") and table.notes == ()
    assert table.frame["label"].tolist() == [0, 1] * 4
    assert table.frame["id"].iloc[0] == "00000061_000" and os.path.isfile(table.frame["path"].iloc[-1])
    assert table.frame["group"].tolist() == [f"NIH {number // 2 + 61:08d}" for number in range(8)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("_000.png,00000061", "_000.png,00000099", r"00000061_000\.png is listed for patient '00000099'; by its name"),
        ("00000062_002.png", "img2.png", r"'img2\.png' is no official name, such as 00000061_012\.png"),
        ("No Finding", "Normal", r"has the label 'Normal', which is none of No Finding, Pneumonia"),
    ],
)
def test_nih_altered_lists(tmp_path, old, new, message):
    expected = load_table("nih_pneumonia", write_nih(tmp_path)).frame
    edit(tmp_path / "labels.csv", ",000000", ",")  # as a spreadsheet cuts zeros
    assert load_table("nih_pneumonia", tmp_path).frame.equals(expected)
    edit(write_nih(tmp_path) / "labels.csv", old, new)
    with pytest.raises(DataError, match=message):
        load_table("nih_pneumonia", tmp_path)
