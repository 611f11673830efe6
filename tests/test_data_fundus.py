"""EyePACS, APTOS 2019 and fundus4: where the files may lie, and every way in which they can be wrong."""

import zipfile

import pytest
from data_fixtures import official, write_aptos2019, write_eyepacs, write_image

from medmerge.data import DataError, load_table
from medmerge.data.loaders import fundus

TRAIN = {"10_left": 0, "10_right": 4, "13_left": 1, "13_right": 0}
TEST = {"1_left": 2, "1_right": 3}
COMPETITION = "aptos2019-blindness-detection"
APTOS = {"000c1434d8d7": 2, "001639a390f0": 4, "0024cdab0c1e": 1}


def rename(root, old, new):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


def test_eyepacs(tmp_path):
    table = load_table("eyepacs", write_eyepacs(tmp_path, TRAIN, TEST))
    frame = table.frame.set_index("id")
    assert frame.loc["1_right"].to_dict() == {
        "path": str(tmp_path / "test" / "1_right.jpeg"), "label": 3, "group": "EyePACS 1", "split": "test",
    }  # fmt: skip
    assert frame["group"].value_counts().to_dict() == {"EyePACS 1": 2, "EyePACS 10": 2, "EyePACS 13": 2}
    assert (frame["split"] == "train").sum() == 4 and table.notes == ()


@pytest.mark.parametrize("layout", ["train/train", "beside", "kaggle"])
def test_eyepacs_where_images_get_unpacked(tmp_path, layout):
    root = write_eyepacs(tmp_path, TRAIN, TEST)
    for part in ("train", "test"):
        rename(root, part, "moved")
        places = {
            "beside": ".",
            "train/train": f"{part}/{part}",
            "kaggle": f"diabetic-retinopathy-{part}-unzipped/{part}",
        }
        for image in sorted((root / "moved").iterdir()):
            rename(root, f"moved/{image.name}", f"{places[layout]}/{image.name}")
    if layout == "kaggle":
        for name in ("trainLabels.csv", "retinopathy_solution.csv"):
            rename(root, name, f"diabetic-retinopathy-detection/{name}")
    table = load_table("eyepacs", root)
    assert len(table.frame) == 6 and table.frame["path"].notna().all()


def test_eyepacs_labels_in_the_zip_that_kaggle_serves(tmp_path):
    root = write_eyepacs(tmp_path, TRAIN, TEST)
    expected = load_table("eyepacs", root)
    with zipfile.ZipFile(root / "trainLabels.csv.zip", "w") as archive:
        archive.write(root / "trainLabels.csv", "trainLabels.csv")
        archive.writestr("__MACOSX/._trainLabels.csv", b"\x00")
    (root / "trainLabels.csv").unlink()
    assert load_table("eyepacs", root).frame.equals(expected.frame)
    with zipfile.ZipFile(root / "trainLabels.csv.zip", "a") as archive:
        archive.writestr("more.csv", "image,level\n")
    with pytest.raises(DataError, match=r"trainLabels.csv.zip has 2 files instead of one table"):
        load_table("eyepacs", root)
    (root / "trainLabels.csv.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"trainLabels.csv.zip cannot be read as a table"):
        load_table("eyepacs", root)


@pytest.mark.parametrize("folder", ["train_images", "train_images/train_images", ".", f"{COMPETITION}/train_images"])
def test_aptos2019(tmp_path, folder):
    root = write_aptos2019(tmp_path, APTOS, folder)
    if folder.startswith(COMPETITION):
        rename(root, "train.csv", f"{COMPETITION}/train.csv")
    table = load_table("aptos2019", root)
    assert table.frame["id"].tolist() == list(APTOS) and table.frame["label"].tolist() == [2, 4, 1]
    assert table.classes == fundus.GRADES
    assert table.notes == ("3 of 3 images carry no group; each is a group of its own.",)


@pytest.fixture
def four(tmp_path, monkeypatch):
    names = {
        "cataract": ["0_left.jpg", "625_left.jpg", "cataract_001.png", "_0_4015166.jpg", "_0_33.jpg", "_7_1.jpg"],
        "diabetic_retinopathy": ["625_left.jpeg", "625_right.jpeg"],
        "glaucoma": ["1020_left.jpg", "Glaucoma_001.png", "625_right.jpg", "_0_1.jpg", "_1_2.jpg", "_2_3.jpg"],
        "normal": ["8_left.jpg", "8_right.jpg"],
    }
    for folder, files in names.items():
        for number, file in enumerate(files):
            write_image(tmp_path / folder / file, number)
        official("fundus4")[f"the folder {folder}"] = len(files)
    monkeypatch.setattr(fundus, "GLAUCOMA_ORIGINALS", 3)
    return tmp_path


def test_fundus4_groups(four):
    table = load_table("fundus4", four)
    assert table.frame.set_index("id")["group"].to_dict() == {
        "cataract/0_left.jpg": "ODIR 0",
        "cataract/625_left.jpg": "ODIR 625",
        "cataract/cataract_001.png": "cataract/cataract_001.png",
        "cataract/_0_4015166.jpg": "fundus4 cataract 0",
        "cataract/_0_33.jpg": "fundus4 cataract 0",
        "cataract/_7_1.jpg": "fundus4 cataract 7",
        "diabetic_retinopathy/625_left.jpeg": "EyePACS 625",
        "diabetic_retinopathy/625_right.jpeg": "EyePACS 625",
        # Sorted, the originals are 1020_left.jpg, 625_right.jpg and Glaucoma_001.png.
        "glaucoma/1020_left.jpg": "ODIR 1020",
        "glaucoma/_0_1.jpg": "ODIR 1020",
        "glaucoma/625_right.jpg": "ODIR 625",
        "glaucoma/_1_2.jpg": "ODIR 625",
        "glaucoma/Glaucoma_001.png": "glaucoma/Glaucoma_001.png",
        "glaucoma/_2_3.jpg": "glaucoma/Glaucoma_001.png",
        "normal/8_left.jpg": "ODIR 8",
        "normal/8_right.jpg": "ODIR 8",
    }
    assert table.notes[0].startswith("6 of 16 images are flipped or shifted copies of others; 3 of them")
