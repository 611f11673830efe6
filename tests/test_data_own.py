"""A user's own images: folders by class, and CSV files with one label an image or any number."""

import numpy as np
import pytest
from data_fixtures import write_csv, write_image
from xray_fixtures import dicom, to_bytes

from medmerge.data import DataError, load_images, load_table, split

FILES = ("a.png", "b.png", "c.png")


def write_tree(root, *files):
    for number, file in enumerate(files):
        write_image(root / file, number)
    return root


# Folders.


def test_folder_by_class(tmp_path):
    write_tree(tmp_path, "cat/b.jpg", "cat/a.PNG", "dog/x/c.jpeg", "dog/d.tif", "Eel/e.bmp")
    table = load_table("folder", tmp_path)
    assert table.classes == ("Eel", "cat", "dog")
    assert table.frame["id"].tolist() == ["Eel/e.bmp", "cat/a.PNG", "cat/b.jpg", "dog/d.tif", "dog/x/c.jpeg"]
    assert table.frame["label"].tolist() == [0, 1, 1, 2, 2]
    assert table.frame["path"].tolist() == [str(tmp_path / image) for image in table.frame["id"]]
    assert table.frame["split"].isna().all()
    assert table.notes == ("5 of 5 images carry no group; each is a group of its own.",)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_folder_with_a_split(tmp_path, val):
    files = [f"{part}/{label}/{n}.png" for part in ("train", val, "test") for label in "ab" for n in range(2)]
    table = load_table("folder", write_tree(tmp_path, *files))
    assert table.frame["id"].tolist() == sorted(files)
    assert table.frame["split"].value_counts().to_dict() == {"train": 4, "val": 4, "test": 4}
    parts = split(table, method="official")
    assert parts.tolist() == table.frame["split"].tolist()


def test_folder_with_train_and_test_in_the_layout_of_keras_and_torchvision(tmp_path):
    files = [f"{part}/{label}/{n}.jpg" for part in ("train", "test") for label in ("NORMAL", "SICK") for n in range(20)]
    table = load_table("folder", write_tree(tmp_path, *files))
    parts = split(table, method="official")
    assert set(table.frame["split"]) == {"train", "test"} and (parts == "val").sum() == 10


def test_folder_leaves_out_what_is_no_image_and_says_so(tmp_path):
    write_tree(tmp_path, "cat/a.png", "dog/b.png", "loose.png", ".cache/x.png", "cat/._a.png", "cat/.hidden/y.png")
    write_tree(tmp_path, "__MACOSX/cat/z.png")
    for file in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "cat/notes.TXT", "dog/list", "README.md"):
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    table = load_table("folder", tmp_path)
    assert table.frame["id"].tolist() == ["cat/a.png", "dog/b.png"] and table.classes == ("cat", "dog")
    assert table.notes[:3] == (
        "2 files beside the folders of classes are left out.",
        "2 files that are no images are left out: .txt, no suffix.",
        "Folders without an image, left out: empty.",
    )


def test_folder_reads_each_suffix_of_dicom(tmp_path):
    write_tree(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "dog/c.dicom").write_bytes(to_bytes(dicom(np.zeros((4, 4), dtype=np.uint8))))
    (tmp_path / "cat/d.dcm").write_bytes(to_bytes(dicom(np.full((4, 4), 255, dtype=np.uint8))))
    table = load_table("folder", tmp_path)
    assert table.frame["id"].tolist() == ["cat/a.png", "cat/d.dcm", "dog/b.png", "dog/c.dicom"]
    assert load_images(table, 4, cache=tmp_path.parent / "cache").pixels[[1, 3], 0, 0, 0].tolist() == [255, 0]


def test_folder_class_that_one_part_lacks(tmp_path):
    write_tree(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    (tmp_path / "test" / "b").mkdir()
    table = load_table("folder", tmp_path)
    assert table.classes == ("a", "b")
    assert "Folders without an image, left out: test/b." in table.notes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "no folder in .* has an image.*<root>/<class>"),
        (("a.png",), "no folder in .* has an image"),
        (("train/a.png", "test/b.png"), "no folder in .* has an image"),
        (("train/a/1.png", "cats/2.png"), "has the folder train of a split beside cats"),
        (("train/a/1.png", "Train_old/a/2.png"), "has the folder train of a split beside Train_old"),
        (("train/NORMAL/1.png", "test/Normal/2.png"), "the classes NORMAL and Normal in .* differ by case alone"),
        (("set/a/1.png", "set/b/1.png"), "the only folder in .* is set; give .*/set as the root"),
        (("a/1.png", "a/2.png"), "all 2 images are of one class, a"),
    ],
)
def test_folder_that_is_not_laid_out_so(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        load_table("folder", write_tree(tmp_path, *files))


def test_folder_takes_no_labels_file(tmp_path):
    with pytest.raises(DataError, match="for the dataset csv"):
        load_table("folder", write_tree(tmp_path, "a/1.png", "b/2.png"), labels="labels.csv")
    with pytest.raises(DataError, match="folder needs the folder"):
        load_table("folder")


# Multi-label CSV.


def test_csv_with_several_classes_in_a_cell(tmp_path):
    text = "image,labels,group\na.png,Edema|Effusion,p1\nb.png,,p1\nc.png, Effusion | Nodule |,p2\n"
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, text, FILES))
    assert table.multilabel and table.classes == ("Edema", "Effusion", "Nodule")
    assert table.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert table.frame["group"].tolist() == ["p1", "p1", "p2"] and table.notes == ()


def test_csv_with_a_column_for_each_class(tmp_path):
    text = "image,label:Nodule,label: Edema,age\na.png,1,0.0,50\nb.png,0,-1,51\nc.png,,1,52\n"
    labels = write_csv(tmp_path, text, FILES)
    table = load_table("csv", tmp_path, labels=labels)
    assert table.classes == ("Nodule", "Edema")
    assert np.array_equal(table.labels, np.float32([[1, 0], [0, np.nan], [0, 1]]), equal_nan=True)
    assert table.notes[0] == "Columns not used: age."
    table = load_table("csv", tmp_path, labels=labels, uncertain="ones", blank="ignore")
    assert np.array_equal(table.labels, np.float32([[1, 0], [0, 1], [np.nan, 1]]), equal_nan=True)


def test_csv_class_with_a_comma(tmp_path):
    text = 'image,labels\na.png,"x, mild"|y\nb.png,y\nc.png,"x, mild"\n'
    assert load_table("csv", tmp_path, labels=write_csv(tmp_path, text, FILES)).classes == ("x, mild", "y")


def test_csv_columns_that_differ_by_case_are_read_and_said(tmp_path):
    text = "Image,LABEL,Group\na.png,x,p1\nb.png,y,p1\n"
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, text, FILES))
    assert table.frame["group"].tolist() == ["p1", "p1"]
    assert table.notes == (
        "labels.csv: Columns read under other names: Image as image, LABEL as label, Group as group.",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label,labels\na.png,x,x\n", "gives labels in two ways, label and labels; keep one"),
        ("image,label,label:x\na.png,x,1\n", "gives labels in two ways, label and label:x"),
        ("image,labels,label:x\na.png,x,1\n", "gives labels in two ways, labels and label:x"),
        ("image,group\na.png,x\n", "has no column label; its columns are image, group.*label:<class>"),
        ("image,labels\na.png,x;y\nb.png,x\n", "the class 'x;y' in labels; put '|' between classes"),
        ('image,labels\na.png,"x, y"\nb.png,y\n', "the class 'x, y' in labels; put '|' between classes, not ','"),
        ("image,label\na.png,Cat\nb.png,cat\n", "csv: the classes Cat and cat in .*labels.csv differ by case alone"),
        ("image,labels\na.png,Cat|dog\nb.png,cat\n", "the classes Cat and cat in .* differ by case alone"),
        ("image,label,group\na.png,x,p\nb.png,y\n", "line 3: the row 'b.png,y' has 2 of 3 values"),
        ("image,labels\na.png,\nb.png,|\n", "no class in labels: the column is empty in all 2 rows"),
        ("image,labels\na.png,x\nb.png,x\n", "no class is both present and absent"),
        ("image,label:x\na.png,1\nb.png,yes\n", "line 3: label:x is 'yes'; a label is 1"),
        ("image,label:x\na.png,1\nb.png,0.5\n", "row 2, image b.png, has x = 0.5; a label is 1"),
        ("image,label:x\na.png,1\nb.png,2\n", "row 2, image b.png, has x = 2"),
        ("image,label:x,label:x\na.png,1,0\n", "two columns called label:x"),
        ("image,label:x,label: x\na.png,1,0\n", "two columns label:x"),
        ("image,label:\na.png,1\n", "a column label: of no class"),
        ("image;label\na.png;x\n", "labels.csv is separated by ';': its first line is 'image;label'"),
        (
            "image,label,image\na.png,x,b.png\n",
            "labels.csv has two columns called image; its columns are image, label, image",
        ),
        ("Image,IMAGE,label\na.png,a.png,x\n", "The columns Image and IMAGE could both be image; keep one"),
    ],
)
def test_csv_bad_labels(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_table("csv", tmp_path, labels=write_csv(tmp_path, text, FILES))


def test_csv_cells_may_have_semicolons(tmp_path):
    text = 'image,label,group\na.png,"x; severe",p;1\nb.png,y,p2\n'
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, text, FILES))
    assert table.classes == ("x; severe", "y") and table.frame["group"].tolist() == ["p;1", "p2"]
