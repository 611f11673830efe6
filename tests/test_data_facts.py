"""What the real files say, fact by fact: the folder's README, reproduced by the code."""

import hashlib

import medmnist
import numpy as np
import pandas as pd
import pytest
from data_fixtures import real
from PIL import Image

from medmerge.data import DATASETS, load_table, split


def test_eyepacs_has_two_eyes_of_each_patient():
    table = load_table("eyepacs", real("eyepacs"), missing="keep")
    frame = table.frame
    assert len(frame) == 88_702 and frame["split"].value_counts().to_dict() == {"train": 35_126, "test": 53_576}
    assert table.classes == ("0", "1", "2", "3", "4")
    assert np.bincount(table.labels).tolist() == [65_343, 6_205, 13_153, 2_087, 1_914]
    eyes = frame["id"].str.partition("_")
    assert (eyes[2].groupby(frame["group"]).agg(lambda sides: sorted(sides) == ["left", "right"])).all()
    patients = frame.groupby("split")["group"].nunique().to_dict()
    assert patients == {"train": 17_563, "test": 26_788}
    assert frame["group"].nunique() == 17_563 + 26_788
    assert table.notes == ()


def test_a_random_split_of_eyepacs_puts_fellow_eyes_into_train():
    table = load_table("eyepacs", real("eyepacs"), missing="keep")
    parts = split(table, method="random", fractions=(0.8, 0.1, 0.1))
    train = set(table.frame["group"][parts == "train"])
    assert table.frame["group"][parts == "test"].isin(train).mean() == pytest.approx(0.8, abs=0.01)


def test_aptos2019_has_300_images_fewer_than_the_paper_says():
    table = load_table("aptos2019", real("aptos2019"), missing="keep")
    assert len(table.frame) == 3_662 == 3_962 - 300
    assert np.bincount(table.labels).tolist() == [1_805, 370, 999, 193, 295]
    unlabelled = pd.read_csv(real("aptos2019", "test.csv"))["id_code"]
    assert len(unlabelled) == 1_928 and not unlabelled.isin(table.frame["id"]).any()
    assert table.frame["split"].isna().all() and (table.frame["group"] == table.frame["id"]).all()


def test_fundus4_has_eyepacs_patients_under_eyepacs_names():
    frame = load_table("fundus4", real("fundus4")).frame.set_index("id")
    grades = pd.read_csv(real("fundus4", "eyepacs_grades.csv"), dtype=str).set_index("file")
    assert len(grades) == 1_098
    assert (frame["group"][grades.index] == "EyePACS " + grades["patient"]).all()
    eyepacs = DATASETS["eyepacs"](real("eyepacs")).frame.set_index("id")
    images = eyepacs.loc[grades["eyepacs_image"]]
    assert (images["label"].to_numpy() == grades["level"].to_numpy()).all()
    assert (images["group"].to_numpy() == frame["group"][grades.index].to_numpy()).all()
    assert (images["split"] == "train").all()
    assert round(100 * (grades["level"] == "0").mean()) == 74


def test_fundus4_has_patients_in_two_folders_and_copies():
    table = load_table("fundus4", real("fundus4"))
    frame = table.frame.assign(folder=table.frame["id"].str.partition("/")[0])
    folders = frame[frame["group"].str.startswith("ODIR ")].groupby("group")["folder"].nunique()
    assert len(folders) == 1_009 and (folders > 1).sum() == 3
    copies = frame["id"].str.partition("/")[2].str.startswith("_")
    assert frame[copies]["folder"].value_counts().to_dict() == {"cataract": 640, "glaucoma": 600}
    assert table.notes[0].startswith("1,240 of 4,217 images are flipped or shifted copies of others; 640 of them")


def small(path) -> np.ndarray:
    """float32 [40, 40, 3]."""
    return np.asarray(Image.open(path).convert("RGB").resize((40, 40)), dtype=np.float32)


def test_fundus4_copies_of_glaucoma_are_of_the_original_that_their_group_names():
    frame = load_table("fundus4", real("fundus4")).frame
    frame = frame[frame["id"].str.startswith("glaucoma/")]
    copy = frame["id"].str.startswith("glaucoma/_")
    originals = frame[~copy].reset_index(drop=True)
    pixels = np.stack([small(path) for path in originals["path"]])
    judged = right = 0
    for _, image in frame[copy].iloc[::5].iterrows():
        view = small(image["path"])
        flips = (view, view[::-1], view[:, ::-1], view[::-1, ::-1])
        distances = np.min([np.sqrt(((pixels - flip) ** 2).mean((1, 2, 3))) for flip in flips], axis=0)
        if distances.min() < 8:  # a flip; the others are shifted or turned as well
            judged += 1
            right += originals["group"][int(distances.argmin())] == image["group"]
    assert judged > 60 and right >= 0.98 * judged


def test_retinamnist_is_the_official_file():
    path = real("medmnist", "retinamnist.npz")
    info = medmnist.INFO["retinamnist"]
    assert hashlib.md5(path.read_bytes()).hexdigest() == info["MD5"] == "bd4c0672f1bba3e3a89f0e4e876791e4"
    table = load_table("medmnist:retinamnist", path.parent)
    assert table.frame["split"].value_counts().to_dict() == {"train": 1_080, "test": 400, "val": 120}
    assert table.classes == ("0", "1", "2", "3", "4")
    arrays = np.load(path)
    for part in ("train", "val", "test"):
        rows = table.frame[table.frame["split"] == part]
        assert rows["label"].tolist() == arrays[f"{part}_labels"][:, 0].tolist()
        assert rows["path"].tolist() == [f"{path}#{part}/{row}" for row in range(len(rows))]
