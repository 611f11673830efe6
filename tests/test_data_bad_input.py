"""Every way in which a dataset's files can be wrong ends in an error that says what to do."""

import pytest
from data_fixtures import altered, augmented, with_line, write_csv, write_ham10k, write_image

from medmerge.data import DataError, load_table


@pytest.mark.parametrize(("name", "nearest"), [("ham10", "ham10k"), ("ISIC2019", "isic2019"), ("", "")])
def test_unknown_dataset(name, nearest):
    with pytest.raises(DataError, match=rf"the nearest is '{nearest}.*ham10k, .*, medmnist:<name>.*, synthetic:"):
        load_table(name)


@pytest.mark.parametrize(("name", "where"), [("ham10k", "DVN/DBW86T"), ("isic2019", "challenge.isic-archive")])
def test_no_folder_and_no_image(tmp_path, name, where):
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=where):
            load_table(name, root)
    root = write_ham10k(tmp_path / "ham", folder="elsewhere")
    for missing in ("error", "drop"):
        with pytest.raises(DataError, match=r"no image of 14 is in .*HAM10000_images_part_1.*DBW86T"):
            load_table("ham10k", root, missing=missing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"missing": "ignore"}, "missing is 'ignore'; it is one of error, drop"),
        ({"exclude": "ISIC_0000001"}, "give a list of ids"),
        ({"name": "csv"}, "csv needs labels"),
        ({"name": "csv", "labels": "nowhere.csv"}, "no labels file nowhere.csv"),
        ({"exclude": {f"ISIC_{number:07d}" for number in range(14)}}, "none is left. 14 of 14 images are left out by"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message):
        load_table(**{"name": "ham10k", "root": write_ham10k(tmp_path), **arguments})


HAM10K = ("ham10k", "ham10000", "HAM10000_metadata.csv")
TRUTH = ("isic2019", "isic2019", "ISIC_2019_Training_GroundTruth.csv")
METADATA = ("isic2019", "isic2019", "ISIC_2019_Training_Metadata.csv")
EYES = ("eyepacs", "eyepacs", "trainLabels.csv")
ALTERED = [
    (HAM10K, lambda lines: lines[:-1], "has 10,014 rows, the official file 10,015: 1 are missing"),
    (HAM10K, lambda lines: [*lines[:-1], lines[1]], "the image ISIC_0027419 is listed more than once"),
    (HAM10K, with_line(0, "lesion,image_id,dx,a,b,c,d"), "no column lesion_id; its columns are lesion,"),
    (HAM10K, with_line(3, "HAM_1,IMG_3,nv,,,,"), "row 3 names the image 'IMG_3', and 1 of 10,015"),
    (HAM10K, with_line(3, "HAM_1,ISIC_0000003, NaN ,,,,"), "row 3, image ISIC_0000003, has no label"),
    (HAM10K, with_line(3, 'HAM_1,ISIC_0000003,nv,"a,,,'), "cannot be read as a table"),
    (
        HAM10K,
        lambda lines: lines[:1],
        "has no rows; it needs a header with lesion_id, image_id, dx, and a row an image",
    ),
    (TRUTH, lambda lines: [*lines[:-1], lines[1]], r"not about the same images: 1 are only in the first"),
    (
        TRUTH,
        with_line(2, "ISIC_0000001,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0"),
        r"one class \(MEL='1.0', NV='1.0'.*1 of 25",
    ),
    (METADATA, with_line(1, "ISIC_9999999,55,,,"), r"1 only in the second, such as ISIC_9999999 and ISIC_"),
    (EYES, augmented, "has 100,000 rows, the official file 35,126: rows were added"),
    (EYES, with_line(2, "10_right,5"), "has the label '5', which is none of 0, 1, 2, 3, 4"),
    (("aptos2019", "aptos2019", "train.csv"), lambda lines: lines, r"no image of 3,662 is in .*\*.png in train_images"),
]


@pytest.mark.parametrize(("file", "change", "message"), ALTERED)
def test_official_files_altered(tmp_path, file, change, message):
    name, folder, file = file
    with pytest.raises(DataError, match=message):
        load_table(name, altered(tmp_path, folder, file, change))


def test_columns_and_names_of_plain_meaning_are_read_and_said(tmp_path):
    def joined(lines):
        lines = [line.replace("lesion_id,image_id", "Lesion ID,image-id") for line in lines]
        return [line.replace("ISIC_0027419,", "ISIC_0027419.jpg,") for line in lines]

    table = load_table("ham10k", altered(tmp_path, *HAM10K[1:], joined), missing="keep")
    assert len(table.frame) == 10_015 and table.frame["group"].nunique() == 7_470
    assert table.notes[:2] == (
        "HAM10000_metadata.csv: Columns read under other names: Lesion ID as lesion_id, image-id as image_id.",
        "HAM10000_metadata.csv: the suffix is taken off 1 names of images.",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,diagnosis\na.png,x\n", "no column label; its columns are image, diagnosis.*label:<class>"),
        ("image,label\na.png,x\n./a.png,y\n", "lists the image a.png more than once"),
        ("image,label\n/etc/a.png,x\n", "leads out of the folder"),
        ("image,label,split\na.png,x,train\nb.png,y,dave\n", "row 2: split 'dave' is none of train, val, test"),
        ("image,label\na.png,x\nc.png,y\n", "1 of 2 images are missing.*first c.png"),
        ("image,labels,label:x\na.png,x,1\n", "gives labels in two ways, labels and label:x; keep one"),
        ('image,labels\na.png,"x, y"\nb.png,y\n', "the class 'x, y' in labels; put '|' between classes, not ','"),
        ("image,label:x\na.png,1\nb.png,0.5\n", "row 2: x is '0.5'; a label is 1"),
        (
            "image,label:x,label: x\na.png,1,0\n",
            "columns label:x, label: x; each is label:<class>, of a class of its own",
        ),
        ("Image,IMAGE,label\na.png,a.png,x\n", "the columns Image and IMAGE could both be image; keep one"),
    ],
)
def test_own_labels_that_are_wrong(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_table("csv", tmp_path, labels=write_csv(tmp_path, text, ("a.png", "b.png")))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.png",), "no folder of a class in .* has an image.*<root>/<class>"),
        (("train/a/1.png", "Train_old/a/2.png"), "has the folder train of a split beside Train_old"),
        (("set/a/1.png", "set/b/1.png"), "the only folder in .* is set; give .*/set as the root"),
    ],
)
def test_own_folders_that_are_not_laid_out_so(tmp_path, files, message):
    for file in files:
        write_image(tmp_path / file)
    with pytest.raises(DataError, match=message):
        load_table("folder", tmp_path)
