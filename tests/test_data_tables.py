"""Each dataset as a table: what the files say, what is left out, and what is said about it."""

import shutil

import pytest
from data_fixtures import (
    real,
    write_csv,
    write_ham10k,
    write_isic2018,
    write_isic2019,
)

from medmerge.data import DATASETS, DataError, load_table, split

COLUMNS = ["id", "path", "label", "group", "split"]


def count_labels(table):
    return table.frame["label"].map(dict(enumerate(table.classes))).value_counts().to_dict()


# The real files, against data/README.md.


def test_ham10k_is_all_there():
    table = load_table("ham10k", real("ham10000"))
    assert len(table.frame) == 10_015
    assert table.frame["group"].nunique() == 7_470
    assert table.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert count_labels(table) == {
        "nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115,
    }  # fmt: skip
    assert table.notes == (
        "ISIC2018_Task3_Test_GroundTruth.csv is left out: there is no folder ISIC2018_Task3_Test_Input.",
    )
    assert table.frame["split"].isna().all()


def test_isic2019_lists_what_the_readme_counts():
    frame = DATASETS["isic2019"](real("isic2019")).frame
    assert len(frame) == 25_331
    assert frame["group"].notna().sum() == 23_247
    assert frame["group"].nunique() == 11_847
    assert frame["id"].str.endswith("_downsampled").sum() == 2_074
    assert frame["path"].notna().sum() == 2_745
    assert frame["label"].value_counts().to_dict() == {
        "NV": 12875, "MEL": 4522, "BCC": 3323, "BKL": 2624, "AK": 867, "SCC": 628, "VASC": 253, "DF": 239,
    }  # fmt: skip


def test_isic2019_partial_download():
    root = real("isic2019")
    with pytest.raises(DataError, match=r"22,586 of 25,331 images are missing.*missing: drop"):
        load_table("isic2019", root)
    table = load_table("isic2019", root, missing="drop")
    assert len(table.frame) == 2_745
    assert table.classes == ("MEL", "NV", "BKL")
    assert count_labels(table) == {"NV": 1838, "MEL": 521, "BKL": 386}
    assert "2,745 of 25,331 images are here." in table.notes
    assert any("BCC, AK, DF, VASC, SCC" in note for note in table.notes)


def test_ham10k_is_within_isic2019_lesion_by_lesion():
    source = load_table("ham10k", real("ham10000"))
    listing = DATASETS["isic2019"](real("isic2019")).frame
    target = dict(zip(listing["id"], listing["group"], strict=True))
    assert source.frame["id"].map(target).tolist() == source.frame["group"].tolist()
    table = load_table("isic2019", real("isic2019"), missing="drop", exclude=set(source.frame["id"]))
    assert len(table.frame) == 2_745
    assert "10,015 of 25,331 images are left out by exclude." in table.notes
    assert "2,745 of 15,316 images are here." in table.notes


# The shape of a table.


def test_frame_is_sorted_and_typed(tmp_path):
    labels = write_csv(tmp_path, "image,label\nb.png,x\na.png,y\nC.png,x\n", ("a.png", "b.png", "C.png"))
    frame = load_table("csv", tmp_path, labels=labels).frame
    assert list(frame.columns) == COLUMNS
    assert frame["id"].tolist() == ["C.png", "a.png", "b.png"]
    assert frame.index.tolist() == [0, 1, 2]
    assert frame["label"].dtype == "int64"
    assert frame["group"].tolist() == frame["id"].tolist()
    assert frame["split"].tolist() == [None, None, None]
    assert all(type(path) is str for path in frame["path"])


@pytest.mark.parametrize(
    "folder",
    ["HAM10000_images_part_1", "images", "images/images", "ISIC2018_Task3_Training_Input", "."],
)
def test_ham10k_finds_images_where_they_get_unpacked(tmp_path, folder):
    assert len(load_table("ham10k", write_ham10k(tmp_path, folder=folder)).frame) == 14


@pytest.mark.parametrize(("name", "tabs"), [("HAM10000_metadata", False), ("HAM10000_metadata.tab", True)])
def test_ham10k_metadata_as_dataverse_serves_it(tmp_path, name, tabs):
    root = write_ham10k(tmp_path)
    expected = load_table("ham10k", root)
    text = (root / "HAM10000_metadata.csv").read_text()
    (root / "HAM10000_metadata.csv").unlink()
    (root / name).write_text("\ufeff" + text.replace(",", "\t") if tabs else text, encoding="utf-8")
    table = load_table("ham10k", root)
    assert table.frame.equals(expected.frame)
    assert table.notes == (f"Labels are from {name}.",)


def test_isic2019_unknown_is_a_class_only_if_used(tmp_path):
    table = load_table("isic2019", write_isic2019(tmp_path, {"ISIC_1": "MEL", "ISIC_2": "UNK"}))
    assert table.classes[-1] == "UNK" and table.frame["label"].tolist() == [0, 8]


# What is left out.


def test_missing_keeps_classes_or_drops_them(tmp_path):
    root = write_ham10k(tmp_path)
    for image in ("ISIC_0000004", "ISIC_0000005"):  # both of bkl
        (root / "images" / f"{image}.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of 14 images are missing.*first ISIC_0000004"):
        load_table("ham10k", root)
    table = load_table("ham10k", root, missing="drop")
    assert table.classes == ("akiec", "bcc", "df", "mel", "nv", "vasc")
    assert count_labels(table) == dict.fromkeys(table.classes, 2)
    assert table.notes == ("12 of 14 images are here.", "Classes with no image left, taken out: bkl.")


def test_exclude_comes_before_missing(tmp_path):
    root = write_ham10k(tmp_path)
    (root / "images" / "ISIC_0000004.jpg").unlink()
    table = load_table("ham10k", root, exclude=["ISIC_0000004", "ISIC_0000005", "elsewhere"])
    assert len(table.frame) == 12 and "bkl" not in table.classes
    assert table.notes[0] == "2 of 14 images are left out by exclude."


# ISIC-2018 task 3 as the archive has it.

ISIC2018 = {"Training": 28, "Validation": 7, "Test": 14}


@pytest.mark.parametrize("own_folders", [True, False])
def test_isic2018_of_the_archive(tmp_path, own_folders):
    table = load_table("ham10k", write_isic2018(tmp_path, ISIC2018, own_folders=own_folders))
    assert table.frame["split"].value_counts().to_dict() == {"train": 28, "val": 7, "test": 14}
    assert table.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert [table.classes[label] for label in table.labels[:7]] == ["mel", "nv", "bcc", "akiec", "bkl", "df", "vasc"]
    assert table.frame["group"].tolist()[:3] == ["HAM_0000000", "HAM_0000000", "HAM_0000001"]
    assert table.notes == ("21 of 49 images carry no group; each is a group of its own.",)
    assert split(table, method="official").tolist() == table.frame["split"].tolist()


def test_isic2018_parts_without_images_are_left_out_and_said(tmp_path):
    root = write_isic2018(tmp_path, ISIC2018)
    shutil.rmtree(root / "ISIC2018_Task3_Validation_Input")
    shutil.rmtree(root / "ISIC2018_Task3_Test_Input")
    table = load_table("ham10k", root)
    assert len(table.frame) == 28 and table.frame["split"].isna().all()
    assert table.notes == tuple(
        f"ISIC2018_Task3_{part}_GroundTruth.csv is left out: there is no folder ISIC2018_Task3_{part}_Input."
        for part in ("Validation", "Test")
    )


def test_isic2018_without_lesions_would_leak_them(tmp_path):
    root = write_isic2018(tmp_path, ISIC2018)
    grouping = root / "ISIC2018_Task3_Training_LesionGroupings.csv"
    text = grouping.read_text()
    grouping.write_text(text.replace("ISIC_0000003", "ISIC_0900003"))
    with pytest.raises(DataError, match=r"not about the same images: 1 are only in the first, 1 only in the second"):
        load_table("ham10k", root)
    grouping.unlink()
    with pytest.raises(DataError, match="there is no ISIC2018_Task3_Training_LesionGroupings.csv"):
        load_table("ham10k", root)
