"""Each dataset as a table: what the files say, what is left out, and what is said about it."""

import shutil

import numpy as np
import pytest
from data_fixtures import real, write_csv, write_ham10k, write_image, write_isic2018

from medmerge.data import DATASETS, DataError, load_table, split

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def count_labels(table):
    return table.frame["label"].map(dict(enumerate(table.classes))).value_counts().to_dict()


# ---------------------------------------------------------------- the real files, against data/README.md


def test_ham10k_is_all_there():
    table = load_table("ham10k", real("ham10000"))
    assert len(table.frame) == 10_015 and table.frame["group"].nunique() == 7_470 and table.classes == CLASSES
    counts = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}
    assert count_labels(table) == counts and table.frame["split"].isna().all()
    assert table.notes == (
        "ISIC2018_Task3_Test_GroundTruth.csv is left out: there is no folder ISIC2018_Task3_Test_Input.",
    )


def test_isic2019_lists_what_the_readme_counts():
    listing = DATASETS["isic2019"](real("isic2019"))
    frame = listing.frame
    assert len(frame) == 25_331 and frame["group"].notna().sum() == 23_247 and frame["group"].nunique() == 11_847
    assert frame["path"].notna().sum() == 2_745
    counts = {"NV": 12875, "MEL": 4522, "BCC": 3323, "BKL": 2624, "AK": 867, "SCC": 628, "VASC": 253, "DF": 239}
    assert frame["label"].value_counts().to_dict() == counts and "UNK" not in listing.classes
    files = (f"ISIC_2019_Training_{name}.csv" for name in ("GroundTruth", "Metadata"))
    assert listing.rows == dict.fromkeys(files, (25_331, 25_331))
    assert listing.notes == ("2,074 of 25,331 ids end in _downsampled.",)


def test_isic2019_partial_download_and_what_of_it_is_ham10k():
    root = real("isic2019")
    with pytest.raises(DataError, match=r"22,586 of 25,331 images are missing.*missing: drop"):
        load_table("isic2019", root)
    table = load_table("isic2019", root, missing="drop")
    assert count_labels(table) == {"NV": 1838, "MEL": 521, "BKL": 386} and table.classes == ("MEL", "NV", "BKL")
    assert "2,745 of 25,331 images are here." in table.notes
    assert any("BCC, AK, DF, VASC, SCC" in note for note in table.notes)
    source = load_table("ham10k", real("ham10000"))
    listing = DATASETS["isic2019"](root).frame
    target = dict(zip(listing["id"], listing["group"], strict=True))
    assert source.frame["id"].map(target).tolist() == source.frame["group"].tolist()
    table = load_table("isic2019", root, missing="drop", exclude=set(source.frame["id"]))
    assert len(table.frame) == 2_745
    assert {"10,015 of 25,331 images are left out by exclude.", "2,745 of 15,316 images are here."} < {*table.notes}


# ---------------------------------------------------------------- the shape of a table, and layouts


@pytest.mark.parametrize(
    "folder", ["HAM10000_images_part_1", "images", "images/images", "ISIC2018_Task3_Training_Input", "."]
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
    assert table.frame.equals(expected.frame) and table.notes == (f"Labels are from {name}.",)


def test_what_is_missing_or_excluded_takes_its_class_along(tmp_path):
    root = write_ham10k(tmp_path)
    (root / "images" / "ISIC_0000004.jpg").unlink()
    table = load_table("ham10k", root, exclude=["ISIC_0000004", "ISIC_0000005", "elsewhere"])
    assert len(table.frame) == 12 and "bkl" not in table.classes, "exclude comes before missing"
    assert table.notes[0] == "2 of 14 images are left out by exclude."
    (root / "images" / "ISIC_0000005.jpg").unlink()  # both of bkl
    with pytest.raises(DataError, match=r"2 of 14 images are missing.*first ISIC_0000004"):
        load_table("ham10k", root)
    table = load_table("ham10k", root, missing="drop")
    assert count_labels(table) == dict.fromkeys((one for one in CLASSES if one != "bkl"), 2)
    assert table.notes == ("12 of 14 images are here.", "Classes with no image left, taken out: bkl.")


ISIC2018 = {"Training": 28, "Validation": 7, "Test": 14}


@pytest.mark.parametrize("own_folders", [True, False])
def test_isic2018_of_the_archive(tmp_path, own_folders):
    root = write_isic2018(tmp_path, ISIC2018, own_folders=own_folders)
    table = load_table("ham10k", root)
    assert table.frame["split"].value_counts().to_dict() == {"train": 28, "val": 7, "test": 14}
    assert table.classes == CLASSES
    assert [table.classes[label] for label in table.labels[:7]] == ["mel", "nv", "bcc", "akiec", "bkl", "df", "vasc"]
    assert table.frame["group"].tolist()[:3] == ["HAM_0000000", "HAM_0000000", "HAM_0000001"]
    assert table.notes == ("21 of 49 images carry no group; each is a group of its own.",)
    assert split(table, method="official").tolist() == table.frame["split"].tolist()
    for part in ("Validation", "Test"):
        shutil.rmtree(root / f"ISIC2018_Task3_{part}_Input")
    table = load_table("ham10k", root)
    assert len(table.frame) == 28 and table.frame["split"].isna().all()
    assert table.notes == tuple(
        f"ISIC2018_Task3_{part}_GroundTruth.csv is left out: there is no folder ISIC2018_Task3_{part}_Input."
        for part in ("Validation", "Test")
    )


def test_isic2018_without_lesions_would_leak_them(tmp_path):
    root = write_isic2018(tmp_path, ISIC2018)
    grouping = root / "ISIC2018_Task3_Training_LesionGroupings.csv"
    grouping.write_text(grouping.read_text().replace("ISIC_0000003", "ISIC_0900003"))
    with pytest.raises(DataError, match=r"not about the same images: 1 are only in the first, 1 only in the second"):
        load_table("ham10k", root)
    grouping.unlink()
    with pytest.raises(DataError, match="there is no ISIC2018_Task3_Training_LesionGroupings.csv"):
        load_table("ham10k", root)


# ---------------------------------------------------------------- a user's own images


def test_folder_by_class(tmp_path):
    for number, file in enumerate(("cat/b.jpg", "cat/a.PNG", "dog/x/c.jpeg", "dog/d.tif", "Eel/e.bmp")):
        write_image(tmp_path / file, number)
    table = load_table("folder", tmp_path)
    assert table.classes == ("Eel", "cat", "dog") and table.frame["label"].tolist() == [0, 1, 1, 2, 2]
    assert table.frame["id"].tolist() == ["Eel/e.bmp", "cat/a.PNG", "cat/b.jpg", "dog/d.tif", "dog/x/c.jpeg"]
    assert table.frame["path"].tolist() == [str(tmp_path / image) for image in table.frame["id"]]
    assert table.frame["split"].isna().all()
    assert table.notes == ("5 of 5 images carry no group; each is a group of its own.",)


def test_csv_of_several_labels_an_image(tmp_path):
    text = "image,labels,group\na.png,Edema|Effusion,p1\nb.png,,p1\nc.png, Effusion | Nodule |,p2\n"
    files = ("a.png", "b.png", "c.png")
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, text, files))
    assert table.multilabel and table.classes == ("Edema", "Effusion", "Nodule")
    assert table.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert table.frame["group"].tolist() == ["p1", "p1", "p2"] and table.notes == ()
    text = "image,label:Nodule,label: Edema,age\na.png,1,0.0,50\nb.png,0,-1,51\nc.png,,1,52\n"
    labels = write_csv(tmp_path, text, files)
    table = load_table("csv", tmp_path, labels=labels)
    assert table.classes == ("Nodule", "Edema") and table.notes[0] == "Columns not used: age."
    assert np.array_equal(table.labels, np.float32([[1, 0], [0, np.nan], [0, 1]]), equal_nan=True)
    table = load_table("csv", tmp_path, labels=labels, uncertain="ones", blank="ignore")
    assert np.array_equal(table.labels, np.float32([[1, 0], [0, 1], [np.nan, 1]]), equal_nan=True)
