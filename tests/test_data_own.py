"""A user's own images: folders by class, and CSV files with one label an image or any number."""

import numpy as np
from data_fixtures import write_csv, write_image

from medmerge.data import load_table, split

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


def test_folder_with_train_and_test_in_the_layout_of_keras_and_torchvision(tmp_path):
    files = [f"{part}/{label}/{n}.jpg" for part in ("train", "test") for label in ("NORMAL", "SICK") for n in range(20)]
    table = load_table("folder", write_tree(tmp_path, *files))
    parts = split(table, method="official")
    assert set(table.frame["split"]) == {"train", "test"} and (parts == "val").sum() == 10


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
