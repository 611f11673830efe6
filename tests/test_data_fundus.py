"""EyePACS, APTOS 2019 and fundus4: where the files may lie, and every way in which they can be wrong."""

import zipfile

import pytest
from data_fixtures import (
    altered,
    augmented,
    real,
    separated,
    with_line,
    write_aptos2019,
    write_eyepacs,
    write_image,
    write_lines,
)

from medmerge.data import DATASETS, DataError, load_table, split
from medmerge.data.loaders import fundus

TRAIN = {"10_left": 0, "10_right": 4, "13_left": 1, "13_right": 0}
TEST = {"1_left": 2, "1_right": 3}
COMPETITION = "aptos2019-blindness-detection"
APTOS = {"000c1434d8d7": 2, "001639a390f0": 4, "0024cdab0c1e": 1}


def rename(root, old, new):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


# EyePACS.


def test_eyepacs(tmp_path):
    table = load_table("eyepacs", write_eyepacs(tmp_path, TRAIN, TEST))
    frame = table.frame.set_index("id")
    assert frame.loc["1_right"].to_dict() == {
        "path": str(tmp_path / "test" / "1_right.jpeg"), "label": 3, "group": "EyePACS 1", "split": "test",
    }  # fmt: skip
    assert frame["group"].value_counts().to_dict() == {"EyePACS 1": 2, "EyePACS 10": 2, "EyePACS 13": 2}
    assert (frame["split"] == "train").sum() == 4 and table.notes == ()


def test_eyepacs_official_split_draws_val_from_train_by_patient(tmp_path):
    train = {f"{number}_{side}": number % 5 for number in range(40) for side in ("left", "right")}
    test = {f"{number}_{side}": number % 5 for number in range(40, 60) for side in ("left", "right")}
    table = load_table("eyepacs", write_eyepacs(tmp_path, train, test))
    parts = split(table, method="official")
    assert set(table.frame["id"][parts == "test"]) == set(test)
    assert table.frame["group"].groupby(parts).nunique().sum() == 60


@pytest.mark.parametrize("layout", ["train/train", "beside", "kaggle"])
def test_eyepacs_where_images_get_unpacked(tmp_path, layout):
    root = write_eyepacs(tmp_path, TRAIN, TEST)
    for part in ("train", "test"):
        rename(root, part, "moved")
        if layout == "beside":
            for image in sorted((root / "moved").iterdir()):
                image.rename(root / image.name)
            (root / "moved").rmdir()
        else:
            rename(
                root,
                "moved",
                f"{part}/{part}" if layout == "train/train" else f"diabetic-retinopathy-{part}-unzipped/{part}",
            )
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


def test_eyepacs_with_one_labels_file(tmp_path):
    root = write_eyepacs(tmp_path, TRAIN, TEST)
    (root / "retinopathy_solution.csv").unlink()
    with pytest.raises(DataError, match=r"retinopathy_solution.csv has 0 rows, the official file 2: 2 are missing"):
        load_table("eyepacs", root)
    table = load_table("eyepacs", root, missing="drop")
    assert len(table.frame) == 4
    assert "retinopathy_solution.csv has 0 of the official 2 rows." in table.notes
    (root / "trainLabels.csv").unlink()
    with pytest.raises(
        DataError, match=r"eyepacs: there is no trainLabels.csv in .*diabetic-retinopathy-detection/data"
    ):
        load_table("eyepacs", root, missing="drop")


def test_eyepacs_names_with_suffixes_are_read_and_said(tmp_path):
    root = write_eyepacs(tmp_path, TRAIN, TEST)
    labels = root / "trainLabels.csv"
    labels.write_text(labels.read_text().replace("_left,", "_left.jpeg,").replace("image,level", "Image,Level"))
    table = load_table("eyepacs", root)
    assert set(table.frame["id"]) == {*TRAIN, *TEST} and table.frame["path"].notna().all()
    assert table.notes == (
        "trainLabels.csv: Columns read under other names: Image as image, Level as level.",
        "trainLabels.csv: the suffix is taken off 2 names of images.",
    )


def renamed(lines):
    return [lines[0], *(f"eye{line}" for line in lines[1:])]


def doubled(lines):
    return ["image,level,level", *(f"{line},0" for line in lines[1:])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "trainLabels.csv has 35,125 rows, the official file 35,126: 1 are missing"),
        (lambda lines: [*lines, lines[-1]], "trainLabels.csv has 35,127 rows.*rows were added"),
        (lambda lines: [*lines[:-1], lines[1]], "the image 10_left is listed more than once"),
        (augmented, "trainLabels.csv has 100,000 rows, the official file 35,126: rows were added, by augmentation"),
        (separated, "trainLabels.csv is separated by ';': its first line is 'image;level'"),
        (with_line(0, "image,grade"), "trainLabels.csv has no column level; its columns are image, grade"),
        (doubled, "trainLabels.csv has two columns called level"),
        (renamed, "row 1 names the image 'eye10_left', and 35,126 of 35,126 rows are so; .* is like 10_left"),
        (with_line(9, "x-1.png,0"), "trainLabels.csv: row 9 names the image 'x-1.png', and 1 of 35,126"),
        (with_line(2, "10_right,5"), "row 2, image 10_right, has the label '5', which is none of 0, 1, 2, 3, 4"),
        (with_line(2, "10_right,"), "row 2, image 10_right, has no label"),
        (with_line(2, "10_right,1,2"), "trainLabels.csv cannot be read as a table"),
    ],
)
def test_eyepacs_altered(tmp_path, change, message):
    root = altered(tmp_path, "eyepacs", "trainLabels.csv", change)
    with pytest.raises(DataError, match=message):
        load_table("eyepacs", root)


@pytest.mark.parametrize("file", ["trainLabels.csv", "retinopathy_solution.csv"])
def test_eyepacs_longer_files_are_never_read(tmp_path, file):
    root = altered(
        tmp_path, "eyepacs", file, lambda lines: [*lines, lines[-1].replace(lines[-1].split("_")[0], "999999")]
    )
    for missing in ("error", "drop", "keep"):
        with pytest.raises(DataError, match=f"{file} has .*rows were added"):
            load_table("eyepacs", root, missing=missing)


def test_eyepacs_shorter_files_are_noted_when_asked_for(tmp_path):
    table = load_table(
        "eyepacs", altered(tmp_path, "eyepacs", "trainLabels.csv", lambda lines: lines[:11]), missing="keep"
    )
    assert len(table.frame) == 53_586
    assert table.notes[0] == "trainLabels.csv has 10 of the official 35,126 rows."


# APTOS 2019.


@pytest.mark.parametrize(
    "folder",
    ["train_images", "train_images/train_images", ".", "colored_images/No_DR", f"{COMPETITION}/train_images"],
)
def test_aptos2019(tmp_path, folder):
    root = write_aptos2019(tmp_path, APTOS, folder)
    if folder.startswith(COMPETITION):
        rename(root, "train.csv", f"{COMPETITION}/train.csv")
    table = load_table("aptos2019", root)
    assert table.frame["id"].tolist() == list(APTOS) and table.frame["label"].tolist() == [2, 4, 1]
    assert table.classes == fundus.GRADES
    assert table.notes == ("3 of 3 images carry no group; each is a group of its own.",)


def test_aptos2019_dealt_out_by_someone(tmp_path, monkeypatch):
    names = {"train_1": "train", "valid": "val", "test": "test"}
    for (file, folder), (image, grade) in zip(names.items(), APTOS.items(), strict=True):
        write_image(tmp_path / f"{folder}_images" / f"{folder}_images" / f"{image}.png")
        write_lines(tmp_path / f"{file}.csv", "id_code,diagnosis", [f"{image},{grade}"])
    monkeypatch.setitem(fundus.ROWS, "train_1.csv, valid.csv and test.csv", 3)
    table = load_table("aptos2019", tmp_path)
    assert table.frame["label"].tolist() == [2, 4, 1] and table.frame["split"].isna().all()
    assert table.notes[0].startswith("Labels are from train_1.csv, valid.csv and test.csv;")
    with pytest.raises(DataError, match="no official split"):
        split(table, method="official")
    (tmp_path / "valid.csv").unlink()
    with pytest.raises(DataError, match="aptos2019: there is no train.csv in .*aptos2019-blindness-detection/data"):
        load_table("aptos2019", tmp_path)


def test_aptos2019_labels_from_the_competition_come_first(tmp_path):
    root = write_aptos2019(tmp_path, APTOS)
    for file in ("train_1", "valid"):
        write_lines(root / f"{file}.csv", "id_code,diagnosis", ["0005cfc8afb6,1"])
    assert set(load_table("aptos2019", root).frame["id"]) == set(APTOS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "train.csv has 3,661 rows, the official file 3,662: 1 are missing"),
        (lambda lines: [*lines, *lines[1:301]], "train.csv has 3,962 rows, the official file 3,662: rows were added"),
        (augmented, "train.csv has 100,000 rows, the official file 3,662: rows were added"),
        (lambda lines: [*lines[:-1], lines[1]], "the image 000c1434d8d7 is listed more than once"),
        (with_line(0, "id,diagnosis"), "train.csv has no column id_code; its columns are id, diagnosis"),
        (separated, "train.csv is separated by ';'"),
        (lambda lines: [lines[0], *(f"{row},1" for row in range(3_662))], "row 1 names the image '0', and 3,662 of"),
        (with_line(1, "000c1434d8d7,2.0"), "row 1, image 000c1434d8d7, has the label '2.0'"),
        (with_line(1, "000c1434d8d7,Moderate"), "has the label 'Moderate', which is none of 0, 1"),
    ],
)
def test_aptos2019_altered(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        load_table("aptos2019", altered(tmp_path, "aptos2019", "train.csv", change))


def test_aptos2019_without_images_says_where_they_belong(tmp_path):
    with pytest.raises(DataError, match=r"no image of 3,662 is in .*\*.png in train_images"):
        load_table("aptos2019", altered(tmp_path, "aptos2019", "train.csv", lambda lines: lines))


# fundus4.


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
        monkeypatch.setitem(fundus.ROWS, f"the folder {folder}", len(files))
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


def test_fundus4_on_a_disk_that_macos_wrote(four):
    """Its files of attributes have the images' names behind a dot and an underscore."""
    before = load_table("fundus4", four).frame
    for image in list(four.rglob("*.jpg")):
        image.with_name(f"._{image.name}").write_bytes(b"attributes")
    assert load_table("fundus4", four).frame.equals(before)


def test_fundus4_with_an_original_gone_does_not_guess(four):
    (four / "glaucoma" / "1020_left.jpg").unlink()
    with pytest.raises(DataError, match="the folder glaucoma has 5 rows, the official file 6"):
        load_table("fundus4", four)
    groups = load_table("fundus4", four, missing="drop").frame.set_index("id")["group"]
    assert groups["glaucoma/_1_2.jpg"] == "fundus4 glaucoma 1"


def test_fundus4_folders_that_are_not_the_sets(four):
    write_image(four / "diabetic_retinopathy" / "mine.jpeg")
    with pytest.raises(DataError, match=r"diabetic_retinopathy/mine.jpeg is not named as in EyePACS, such as 10_left"):
        load_table("fundus4", four)
    (four / "diabetic_retinopathy" / "mine.jpeg").unlink()
    write_image(four / "normal" / "mine.jpg")
    with pytest.raises(DataError, match="the folder normal has 3 rows, the official file 2: rows were added"):
        load_table("fundus4", four, missing="drop")
    rename(four, "normal", "Normal eyes")
    with pytest.raises(DataError, match=r"fundus4: there is no folder normal in .*eye-diseases-classification"):
        load_table("fundus4", four)


def test_fundus4_and_eyepacs_share_groups():
    patients = set(DATASETS["eyepacs"](real("eyepacs"), None).frame["group"])
    groups = DATASETS["fundus4"](real("fundus4"), None).frame["group"].dropna()
    assert sum(group in patients for group in set(groups)) == 549
