"""Every way in which a dataset's files can be wrong ends in an error that says what to do."""

import pandas as pd
import pytest
from data_fixtures import altered, augmented, separated, with_line, write_csv, write_ham10k, write_image, write_isic2019

from medmerge.data import DataError, load_table
from medmerge.data.reading import match_columns


@pytest.mark.parametrize(("name", "nearest"), [("ham10", "ham10k"), ("ISIC2019", "isic2019"),
                                               ("synthetic:mole", "synthetic:moles"), ("", "")])  # fmt: skip
def test_unknown_dataset(name, nearest):
    with pytest.raises(
        DataError,
        match=rf"the nearest is '{nearest}.*ham10k, isic2019, .*, medmnist:<name>.*, csv, folder, synthetic:",
    ):
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
        (b"lesion_id,image_id,dx\nHAM_1,ISIC_0000001\n", "line 2: the row 'HAM_1,ISIC_0000001' has 2 of 3 values"),
    ],
)
def test_ham10k_file_that_is_no_table(tmp_path, content, message):
    root = write_ham10k(tmp_path)
    (root / "HAM10000_metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_table("ham10k", root, missing="drop")


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


# Real labels files, altered.

HAM10K, TRUTH, METADATA = (
    "HAM10000_metadata.csv",
    "ISIC_2019_Training_GroundTruth.csv",
    "ISIC_2019_Training_Metadata.csv",
)


def joined(lines):
    return [line.replace("lesion_id,image_id", "Lesion ID,image-id") for line in lines]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "HAM10000_metadata.csv has 10,014 rows, the official file 10,015: 1 are missing"),
        (lambda lines: [*lines, lines[9]], "HAM10000_metadata.csv has 10,016 rows.*rows were added"),
        (lambda lines: [*lines[:-1], lines[1]], "the image ISIC_0027419 is listed more than once"),
        (augmented, "has 100,000 rows, the official file 10,015: rows were added, by augmentation"),
        (separated, "HAM10000_metadata.csv is separated by ';': its first line is 'lesion_id;image_id;dx"),
        (
            with_line(0, "lesion,image_id,dx,dx_type,age,sex,localization"),
            "no column lesion_id; its columns are lesion,",
        ),
        (with_line(0, "lesion_id,image_id,dx,dx,age,sex,localization"), "has two columns called dx; its columns are"),
        (with_line(3, "HAM_1,IMG_3,nv,,,,"), "HAM10000_metadata.csv: row 3 names the image 'IMG_3', and 1 of 10,015"),
        (with_line(3, "HAM_1,ISIC_0000003,NV,,,,"), "row 3, image ISIC_0000003, has the label 'NV', which is none of"),
        (with_line(3, "HAM_1,ISIC_0000003,,,,,"), "row 3, image ISIC_0000003, has no label"),
    ],
)
def test_ham10k_altered(tmp_path, change, message):
    root = altered(tmp_path, "ham10000", HAM10K, change)
    with pytest.raises(DataError, match=message):
        load_table("ham10k", root)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (TRUTH, lambda lines: lines[:-1], "GroundTruth.csv has 25,330 rows, the official file 25,331: 1 are missing"),
        (METADATA, lambda lines: lines[:-1], "Metadata.csv has 25,330 rows, the official file 25,331: 1 are missing"),
        (TRUTH, augmented, "GroundTruth.csv has 100,000 rows, the official file 25,331: rows were added"),
        (METADATA, augmented, "Metadata.csv lists the image ISIC_0000000 more than once"),
        (TRUTH, lambda lines: [*lines[:-1], lines[1]], r"not about the same images: 1 are only in the first"),
        (METADATA, lambda lines: [*lines[:-1], lines[1]], "Metadata.csv lists the image ISIC_0000000 more than once"),
        (METADATA, with_line(1, "ISIC_9999999,55,,,"), r"\(ISIC_9999999\), 1 only in the second \(ISIC_0000000\)"),
        (METADATA, with_line(1, "IMG_0,55,,,"), "Metadata.csv: row 1 names the image 'IMG_0', and 1 of 25,331 rows"),
        (TRUTH, separated, "GroundTruth.csv is separated by ';'"),
        (METADATA, separated, "Metadata.csv is separated by ';'"),
        (METADATA, with_line(0, "image,age_approx,site,lesion,sex"), "Metadata.csv has no column lesion_id"),
        (TRUTH, with_line(0, "image,MEL,NV,BCC,AK,BKL,DF,VASC,UNK,Other"), "GroundTruth.csv has no column SCC"),
        (TRUTH, with_line(1, "ISIC_0000000,0,0,0,0,0,0,0,0,0"), "image ISIC_0000000 is not in exactly one class"),
    ],
)
def test_isic2019_altered(tmp_path, file, change, message):
    root = altered(tmp_path, "isic2019", file, change)
    with pytest.raises(DataError, match=message):
        load_table("isic2019", root)


def test_columns_and_names_of_plain_meaning_are_read_and_said(tmp_path):
    root = altered(tmp_path, "ham10000", HAM10K, joined)
    (root / HAM10K).write_text((root / HAM10K).read_text().replace("ISIC_0027419,", "ISIC_0027419.jpg,"))
    table = load_table("ham10k", root, missing="keep")
    assert len(table.frame) == 10_015 and table.frame["group"].nunique() == 7_470
    assert table.notes[:2] == (
        "HAM10000_metadata.csv: Columns read under other names: Lesion ID as lesion_id, image-id as image_id.",
        "HAM10000_metadata.csv: the suffix is taken off 1 names of images.",
    )


def test_isic2019_short_files_are_read_and_noted_when_asked_for(tmp_path):
    root = altered(tmp_path, "isic2019", METADATA, lambda lines: lines[:-1])
    table = load_table("isic2019", root, missing="keep")
    assert len(table.frame) == 25_331
    assert "ISIC_2019_Training_Metadata.csv has 25,330 of the official 25,331 rows." in table.notes
    assert table.frame["group"].iloc[-1] == table.frame["id"].iloc[-1]


def test_isic2019_says_gender_only_where_sex_is_called_so(tmp_path):
    root = write_isic2019(tmp_path, {"ISIC_1": "MEL", "ISIC_2": "SCC"}, {"ISIC_1": "a", "ISIC_2": "b"})
    metadata = root / METADATA
    assert any("sex is called gender" in note for note in load_table("isic2019", root).notes)
    metadata.write_text(metadata.read_text().replace("gender", "sex"))
    assert load_table("isic2019", root).notes == ()


def test_match_columns_leaves_exact_names_and_strangers():
    frame = pd.DataFrame([["1", "2", "3", "4"]], columns=["Pleural_Effusion", "pleural effusion", "No-Finding", "Age"])
    with pytest.raises(DataError, match="Pleural_Effusion and pleural effusion could both be Pleural Effusion"):
        match_columns(frame, ["Pleural Effusion"])
    matched, notes = match_columns(frame, ["pleural effusion", "No Finding", "Sex"])
    assert list(matched.columns) == ["Pleural_Effusion", "pleural effusion", "No Finding", "Age"]
    assert notes == ("Columns read under other names: No-Finding as No Finding.",)
    assert match_columns(frame, ["Age"]) == (frame, ()) and list(frame.columns)[2] == "No-Finding"


def test_a_row_that_ends_before_its_lesion_is_no_image_without_a_lesion(tmp_path):
    """Pandas would read an empty value, and the split would cut the lesion."""

    def cut(lines):
        row = next(number for number, line in enumerate(lines) if ",BCN_" in line or ",HAM_" in line)
        return with_line(row, lines[row].rpartition(",")[0].rpartition(",")[0])(lines)

    root = altered(tmp_path, "isic2019", "ISIC_2019_Training_Metadata.csv", cut)
    with pytest.raises(DataError, match=r"Metadata\.csv, line \d+: the row 'ISIC_.* has 3 of 5 values"):
        load_table("isic2019", root, missing="keep")
