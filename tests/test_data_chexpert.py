"""CheXpert: official layouts, the real label files, and copies that were altered."""

import numpy as np
import pytest
from data_fixtures import real
from xray_fixtures import edit, write_chexpert

from medmerge.data import DataError, listed_ids, load_table, split
from medmerge.data.loaders import xray
from medmerge.data.loaders.xray import CHEXPERT_CLASSES

TRAIN = [
    "train/patient00001/study1/view1_frontal",
    "train/patient00002/study1/view1_frontal",
    "train/patient00002/study2/view1_frontal",
    "train/patient00003/study1/view1_frontal",
]
VALID = ["valid/patient64541/study1/view1_frontal"]
TEST = [
    "test/patient64741/study1/view1_frontal",
    "test/patient64741/study1/view2_frontal",
    "test/patient64742/study1/view1_frontal",
]


@pytest.fixture
def folder(tmp_path):
    return write_chexpert(tmp_path)


@pytest.mark.parametrize("name", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
@pytest.mark.parametrize("above", [True, False])
def test_both_versions_are_one_table(tmp_path, name, above):
    folder = write_chexpert(tmp_path, name=name)
    table = load_table("chexpert", tmp_path if above else folder)
    assert table.multilabel
    frame = table.frame
    assert frame["id"].tolist() == sorted([*TRAIN, *VALID, *TEST])
    assert frame["path"].tolist() == [f"{folder}/{id}.jpg" for id in frame["id"]]
    assert frame["group"].tolist() == [f"CheXpert {id.split('/')[1]}" for id in frame["id"]]
    assert frame["split"].tolist() == ["test"] * 3 + ["train"] * 4 + ["val"]
    assert "3 of 11 images are lateral and left out." in table.notes
    assert not any("passed over" in note for note in table.notes)
    write_chexpert(tmp_path, name={"CheXpert-v1.0": "CheXpert-v1.0-small"}.get(name, "CheXpert-v1.0"))
    with pytest.raises(DataError, match="holds CheXpert-v1.0 and CheXpert-v1.0-small; give one as root"):
        load_table("chexpert", tmp_path)


def test_labels_follow_the_policies(folder):
    def row(id, name, **policies):
        frame = load_table("chexpert", folder, **policies).frame.set_index("id")
        return frame.loc[id, f"label:{name}"]

    assert row(TRAIN[0], "Enlarged Cardiomediastinum") == 1
    assert np.isnan(row(TRAIN[0], "Lung Opacity")) and row(TRAIN[0], "Cardiomegaly") == 0
    assert row(TRAIN[0], "Lung Opacity", uncertain="ones") == 1
    assert row(TRAIN[0], "Lung Opacity", uncertain="zeros") == 0
    assert row(TRAIN[2], "Lung Opacity") == 1 and row(TRAIN[3], "Cardiomegaly") == 0
    labels = xray.chexpert(folder).frame.set_index("id")
    assert labels.loc[TRAIN[0], "label:Lung Opacity"] == -1 and np.isnan(labels.loc[TRAIN[0], "label:Cardiomegaly"])


def test_without_test_labels_there_is_no_test(tmp_path):
    folder = write_chexpert(tmp_path, test=False)
    table = load_table("chexpert", folder)
    assert table.frame["split"].tolist() == ["train"] * 4 + ["val"]
    assert any("no official test split" in note for note in table.notes)
    with pytest.raises(DataError, match="official split has no test"):
        split(table, method="official")


def test_real_label_files(tmp_path):
    """The real files under their official names, an excerpt in the case of train.csv."""
    for file, name in {"train_excerpt.csv": "train.csv", "valid_underscored.csv": "valid.csv"}.items():
        (tmp_path / name).symlink_to(real("chexpert", file))
    table = load_table("chexpert", tmp_path, missing="keep")
    assert (
        table.frame["split"].value_counts().to_dict() == {"train": 1_557, "val": 202}
        and table.classes == CHEXPERT_CLASSES
    )
    assert "445 of 2,204 images are lateral and left out." in table.notes
    assert "train.csv has 1,970 of the official 223,414 rows." in table.notes
    read = [note for note in table.notes if "Pleural_Effusion as Pleural Effusion" in note]
    assert [note.split(":")[0] for note in read] == ["train.csv", "valid.csv"]
    assert "valid.csv: paths begin with /nas/public/CheXpert/CheXpert-v1.0, which is passed over." in table.notes
    assert "valid/patient64541/study1/view1_frontal" in listed_ids("chexpert", tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train.csv", "patient00003/", "pat00003/", r"Path 'CheXpert-v1\.0-small/train/pat00003/.* none of this"),
        ("train.csv", "-1.0,,1.0", "yes,,1.0", "row 1: Lung Opacity is 'yes'; a label is 1"),
        ("train.csv", "patient00003/study1", "patient00002/study1", r"patient00002/study1/view1_frontal is listed"),
        ("test_labels.csv", "test/patient64742", "train/patient64742", r"test_labels\.csv: Path 'train/patient64742"),
    ],
)
def test_altered_files(folder, file, old, new, message):
    edit(folder / file, old, new)
    with pytest.raises(DataError, match=message):
        load_table("chexpert", folder)


def test_missing_files_and_images(folder, tmp_path):
    (folder / "train" / "patient00003" / "study1" / "view1_frontal.jpg").unlink()
    with pytest.raises(DataError, match="1 of 8 images are missing in .*, first train/patient00003/study1/view1_fron"):
        load_table("chexpert", folder)
    assert "7 of 8 images are here." in load_table("chexpert", folder, missing="drop").notes
    (folder / "valid.csv").unlink()
    with pytest.raises(DataError, match=r"there is no valid\.csv in .*CheXpert-v1\.0-small\. The folder, or"):
        load_table("chexpert", tmp_path)
    with pytest.raises(DataError, match=r"there is no train\.csv in .*stanfordaimi"):
        load_table("chexpert", tmp_path / "CheXpert-v1.0-small" / "train")
