"""Each dataset as a table: what the files say, and every way in which they can be wrong."""

import pytest
from data_fixtures import real, write_csv, write_ham10k, write_image, write_isic2019

from medmerge.data import DATASETS, DataError, load_table

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
    assert table.notes == ()
    assert table.frame["split"].isna().all()


def test_isic2019_lists_what_the_readme_counts():
    frame = DATASETS["isic2019"](real("isic2019"), None).frame
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
    listing = DATASETS["isic2019"](real("isic2019"), None).frame
    target = dict(zip(listing["id"], listing["group"], strict=True))
    assert all(target[image] == lesion for image, lesion in zip(source.frame["id"], source.frame["group"]))
    table = load_table("isic2019", real("isic2019"), missing="drop", exclude=set(source.frame["id"]))
    assert len(table.frame) == 2_745
    assert "10,015 of 25,331 images are left out by exclude." in table.notes
    assert "2,745 of 15,316 images are here." in table.notes


# The shape of a table.


def test_frame_is_sorted_and_typed(tmp_path):
    labels = write_csv(tmp_path, "image,label\nb.png,x\na.png,y\nB.png,x\n", ("a.png", "b.png", "B.png"))
    frame = load_table("csv", tmp_path, labels=labels).frame
    assert list(frame.columns) == COLUMNS
    assert frame["id"].tolist() == ["B.png", "a.png", "b.png"]
    assert frame.index.tolist() == [0, 1, 2]
    assert frame["label"].dtype == "int64"
    assert frame["group"].tolist() == frame["id"].tolist()
    assert frame["split"].tolist() == [None, None, None]
    assert all(type(path) is str for path in frame["path"])


def test_loading_writes_nothing_into_the_dataset(tmp_path):
    root = write_ham10k(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    load_table("ham10k", root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize(
    "folder",
    ["HAM10000_images_part_1", "images", "images/images", "ISIC2018_Task3_Training_Input", "."],
)
def test_ham10k_finds_images_where_they_get_unpacked(tmp_path, folder):
    assert len(load_table("ham10k", write_ham10k(tmp_path, folder=folder)).frame) == 14


def test_ham10k_in_two_parts(tmp_path):
    root = write_ham10k(tmp_path, folder="HAM10000_images_part_1")
    (root / "HAM10000_images_part_2").mkdir()
    moved = root / "HAM10000_images_part_2" / "ISIC_0000003.jpg"
    (root / "HAM10000_images_part_1" / "ISIC_0000003.jpg").rename(moved)
    table = load_table("ham10k", root)
    assert table.frame.set_index("id").loc["ISIC_0000003", "path"] == str(moved)


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


def test_isic2019_nested_as_kaggle_unpacks_it(tmp_path):
    root = write_isic2019(tmp_path, {"ISIC_1": "MEL", "ISIC_2": "SCC"}, {"ISIC_2": "BCN_7"})
    (root / "ISIC_2019_Training_Input").rename(root / "inner")
    (root / "ISIC_2019_Training_Input").mkdir()
    (root / "inner").rename(root / "ISIC_2019_Training_Input" / "ISIC_2019_Training_Input")
    table = load_table("isic2019", root)
    assert table.classes == ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    assert table.frame["label"].tolist() == [0, 7]
    assert table.frame["group"].tolist() == ["ISIC_1", "BCN_7"]
    assert table.notes == ("1 of 2 images carry no group; each is a group of its own.",)


def test_isic2019_unknown_is_a_class_only_if_used(tmp_path):
    table = load_table("isic2019", write_isic2019(tmp_path, {"ISIC_1": "MEL", "ISIC_2": "UNK"}))
    assert table.classes[-1] == "UNK" and table.frame["label"].tolist() == [0, 8]


def test_csv_keeps_labels_as_text(tmp_path):
    rows = (
        "image,label,group,split\na.png,10,p1,train\nb.png,2,p1,val\nsub\\c.png,NA,,test\nd.png,1.0,p2,test\n"
    )
    labels = write_csv(tmp_path, rows, ("a.png", "b.png", "sub/c.png", "d.png"))
    table = load_table("csv", tmp_path, labels=labels)
    assert table.classes == ("1.0", "10", "2", "NA")
    assert table.frame["id"].tolist() == ["a.png", "b.png", "d.png", "sub/c.png"]
    assert table.frame["group"].tolist() == ["p1", "p1", "p2", "sub/c.png"]
    assert table.frame["split"].tolist() == ["train", "val", "test", "test"]


def test_csv_labels_may_be_named_from_the_root(tmp_path):
    write_csv(tmp_path, "image,label,age\na.png,x,3\nb.png,y,4\n", ("a.png", "b.png"))
    table = load_table("csv", tmp_path, labels="labels.csv")
    assert table.notes[0] == "Columns not used: age."


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


def test_a_class_without_a_row_is_no_dropped_class(tmp_path):
    table = load_table("ham10k", write_ham10k(tmp_path, count=4))
    assert len(table.classes) == 7 and table.notes == ()


def test_nothing_left(tmp_path):
    root = write_ham10k(tmp_path, count=4)
    with pytest.raises(DataError, match=r"4 are left out by exclude.*none is left"):
        load_table("ham10k", root, exclude=[f"ISIC_{number:07d}" for number in range(4)])


def test_one_class(tmp_path):
    with pytest.raises(DataError, match="all 2 images are of one class, akiec"):
        load_table("ham10k", write_ham10k(tmp_path, count=2))


# Bad input.


@pytest.mark.parametrize(("name", "nearest"), [("ham10", "ham10k"), ("ISIC2019", "isic2019"),
                                               ("synthetic:mole", "synthetic:moles"), ("", "")])  # fmt: skip
def test_unknown_dataset(name, nearest):
    with pytest.raises(DataError, match=rf"the nearest is '{nearest}.*ham10k, isic2019, csv, synthetic:"):
        load_table(name)


@pytest.mark.parametrize(
    ("name", "where"), [("ham10k", "DVN/DBW86T"), ("isic2019", "challenge.isic-archive")]
)
def test_no_folder(tmp_path, name, where):
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=where):
            load_table(name, root)


def test_no_image(tmp_path):
    root = write_ham10k(tmp_path, folder="elsewhere")
    for missing in ("error", "drop"):
        with pytest.raises(DataError, match=r"no image of 14 is in .*HAM10000_images_part_1.*DBW86T"):
            load_table("ham10k", root, missing=missing)


def test_bad_arguments(tmp_path):
    root = write_ham10k(tmp_path)
    with pytest.raises(DataError, match="missing is 'ignore'; it is one of error, drop"):
        load_table("ham10k", root, missing="ignore")
    with pytest.raises(DataError, match="give a list of ids"):
        load_table("ham10k", root, exclude="ISIC_0000001")
    with pytest.raises(DataError, match="for the dataset csv"):
        load_table("ham10k", root, labels="labels.csv")
    with pytest.raises(DataError, match="csv needs labels"):
        load_table("csv", root)
    with pytest.raises(DataError, match="no labels file nowhere.csv"):
        load_table("csv", root, labels="nowhere.csv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dx,", "diagnosis,", "no column dx; its columns are lesion_id, image_id, diagnosis"),
        (",nv,", ",naevus,", "row 11, image ISIC_0000010, has the label 'naevus', which is none of akiec"),
        (",nv,", ",,", "row 11, image ISIC_0000010, has no label"),
        (",nv,", ", NaN ,", "row 11, image ISIC_0000010, has no label"),
        ("ISIC_0000003", "ISIC_0000002", "ISIC_0000002 is listed more than once"),
        ("male,back", "male,back,more", "cannot be read as a table"),
        (",histo", ',"histo', "cannot be read as a table"),
    ],
)
def test_ham10k_broken_metadata(tmp_path, old, new, message):
    root = write_ham10k(tmp_path)
    metadata = root / "HAM10000_metadata.csv"
    metadata.write_text(metadata.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load_table("ham10k", root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it needs the columns lesion_id, image_id, dx"),
        (b"lesion_id,image_id,dx\n", "a header and no row"),
        (b"\xff\xfe\x00b\x00r", "cannot be read as a table"),
        (b"lesion_id,image_id,dx\nHAM_1,ISIC_0000001\n", "has no label"),
    ],
)
def test_ham10k_file_that_is_no_table(tmp_path, content, message):
    root = write_ham10k(tmp_path)
    (root / "HAM10000_metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_table("ham10k", root)


@pytest.mark.parametrize(
    ("row", "given"),
    [
        ("0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0", "MEL='0.0'"),
        ("1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0", "NV='1.0'"),
        ("0.5,0.5,0.0,0.0,0.0,0.0,0.0,0.0,0.0", "MEL='0.5'"),
        ("2.0,-1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0", "NV='-1.0'"),
        ("yes,,,,,,,,", "MEL='yes'"),
        ("1.0,,0.0,0.0,0.0,0.0,0.0,0.0,0.0", "NV=''"),
    ],
)
def test_isic2019_row_that_is_not_one_hot(tmp_path, row, given):
    root = write_isic2019(tmp_path, {"ISIC_1": "MEL", "ISIC_2": "SCC"})
    truth = root / "ISIC_2019_Training_GroundTruth.csv"
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join([*lines[:2], f"ISIC_2,{row}"]) + "\n")
    with pytest.raises(DataError, match=f"image ISIC_2 is not in exactly one class.*{given}.*1 of 2 rows"):
        load_table("isic2019", root)


def test_isic2019_without_metadata_would_leak_lesions(tmp_path):
    root = write_isic2019(tmp_path, {"ISIC_1": "MEL", "ISIC_2": "SCC"})
    (root / "ISIC_2019_Training_Metadata.csv").unlink()
    with pytest.raises(DataError, match="no ISIC_2019_Training_Metadata.csv"):
        load_table("isic2019", root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,diagnosis\na.png,x\n", "no column label; its columns are image, diagnosis"),
        ("image,label\na.png,x\n./a.png,y\n", "lists the image a.png more than once"),
        ("image,label\n../a.png,x\n", "line 2: image '../a.png' leads out"),
        ("image,label\na.png,x\nsub/../../a.png,x\n", "line 3: image"),
        ("image,label\n/etc/a.png,x\n", "leads out of the folder"),
        ("image,label\nC:\\a.png,x\n", "leads out of the folder"),
        ("image,label\n..\\a.png,x\n", "leads out of the folder"),
        ("image,label\n,x\n", "line 2: the column image is empty"),
        ("image,label\na.png,x\nb.png,\n", "row 2, image b.png, has no label"),
        (
            "image,label,split\na.png,x,train\nb.png,y,dev\n",
            "line 3: split 'dev' is none of train, val, test",
        ),
        ("image,label,split\na.png,x,train\nb.png,y,\n", "line 3: split '' is none of"),
        ("image,label\na.png,x\nc.png,y\n", "1 of 2 images are missing.*first c.png"),
        ("image,label\na.png,x\nb.png,x\n", "of one class, x"),
    ],
)
def test_csv_bad_rows(tmp_path, text, message):
    labels = write_csv(tmp_path / "root", text, ("a.png", "b.png"))
    write_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        load_table("csv", tmp_path / "root", labels=labels)
