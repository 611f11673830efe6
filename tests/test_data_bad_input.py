"""Every way in which a dataset's files can be wrong ends in an error that says what to do."""

import pytest
from data_fixtures import write_csv, write_ham10k, write_image, write_isic2019

from medmerge.data import DataError, load_table


@pytest.mark.parametrize(("name", "nearest"), [("ham10", "ham10k"), ("ISIC2019", "isic2019"),
                                               ("synthetic:mole", "synthetic:moles"), ("", "")])  # fmt: skip
def test_unknown_dataset(name, nearest):
    with pytest.raises(DataError, match=rf"the nearest is '{nearest}.*ham10k, isic2019, csv, synthetic:"):
        load_table(name)


@pytest.mark.parametrize(("name", "where"), [("ham10k", "DVN/DBW86T"), ("isic2019", "challenge.isic-archive")])
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
