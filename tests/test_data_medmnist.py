"""MedMNIST sets: names, splits and labels from the package and the file, and files that are not the official ones."""

import medmnist
import numpy as np
import pytest

from medmerge.data import DATASETS, DataError, load_table
from medmerge.data.loaders import medmnist as loader

COUNTS = {"train": 12, "val": 3, "test": 4}


def write_npz(path, flag, size, monkeypatch, counts=COUNTS, **changes):
    """A set in the official layout with a few images, which count as the official number."""
    info = medmnist.INFO[flag]
    monkeypatch.setitem(info, "n_samples", counts)
    generator = np.random.default_rng(0)
    shape = (size, size, 3) if info["n_channels"] == 3 else (size, size)
    multilabel = "multi-label" in info["task"]
    arrays = {}
    for part, count in counts.items():
        if f"{part}_images" not in changes:
            arrays[f"{part}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        classes = len(info["label"])
        labels = generator.integers(0, 2, (count, classes)) if multilabel else np.arange(count)[:, None] % classes
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    arrays |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def test_the_names_are_those_of_the_package():
    flat = [name for name in medmnist.INFO if not name.endswith("3d")]
    assert sorted({name for name, _ in loader.SETS.values()}) == sorted(flat) and len(flat) == 12
    assert sorted({size for _, size in loader.SETS.values()}) == list(medmnist.dataset.MedMNIST2D.available_sizes)
    names = [name for name in DATASETS if name.startswith("medmnist:")]
    assert len(names) == 48 and {"medmnist:octmnist", "medmnist:octmnist_64", "medmnist:organsmnist_224"} <= set(names)
    for name, size in loader.SETS.values():
        assert f"url{'' if size == 28 else f'_{size}'}" in medmnist.INFO[name]


@pytest.mark.parametrize(("flag", "size"), [("bloodmnist", 28), ("octmnist", 64)])
def test_single_label_set(tmp_path, monkeypatch, flag, size):
    file = f"{flag}_64.npz" if size == 64 else f"{flag}.npz"
    arrays = write_npz(tmp_path / file, flag, size, monkeypatch)
    table = load_table(f"medmnist:{file.removesuffix('.npz')}", tmp_path)
    assert table.classes == tuple(medmnist.INFO[flag]["label"].values())
    frame = table.frame
    assert frame["id"].tolist() == [f"{part}/{row:05d}" for part in sorted(COUNTS) for row in range(COUNTS[part])]
    train = frame[frame["split"] == "train"]
    assert train["path"].iloc[7] == f"{tmp_path / file}#train/7" and train["id"].iloc[7] == "train/00007"
    assert train["label"].tolist() == arrays["train_labels"][:, 0].tolist()
    assert table.notes == ("19 of 19 images carry no group; each is a group of its own.",)


def test_chestmnist_is_multilabel(tmp_path, monkeypatch):
    arrays = write_npz(tmp_path / "chestmnist.npz", "chestmnist", 28, monkeypatch, {"train": 40, "val": 8, "test": 9})
    table = load_table("medmnist:chestmnist", tmp_path)
    assert table.multilabel and len(table.classes) == 14 and table.classes[0] == "atelectasis"
    parts = np.concatenate([arrays[f"{part}_labels"] for part in ("test", "train", "val")])
    assert table.labels.dtype == np.float32 and np.array_equal(table.labels, parts)


def test_a_missing_file_is_named_with_address_checksum_and_command(tmp_path, monkeypatch):
    write_npz(tmp_path / "breastmnist.npz", "breastmnist", 28, monkeypatch)
    with pytest.raises(DataError) as caught:
        load_table("medmnist:breastmnist_224", tmp_path)
    info = medmnist.INFO["breastmnist"]
    said = (
        "no breastmnist_224.npz in",
        info["url_224"],
        info["MD5_224"],
        "BreastMNIST('train', download=True, size=224",
    )
    assert all(part in str(caught.value) for part in said)
    with pytest.raises(DataError, match="medmnist:breastmnist_224 needs the folder .*zenodo"):
        load_table("medmnist:breastmnist_224")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((12, 64, 64, 3), np.uint8)}, r"64, 64, 3\], officially uint8 \[12, 28, 28, 3\]"),
        ({"test_labels": np.zeros((4, 14), np.uint8)}, r"test_labels is uint8 \[4, 14\], officially uint8 \[4, 1\]"),
        ({"val_labels": np.array([[0], [9], [1]], np.uint8)}, "its labels go from 0 to 9, officially 0 to 8"),
        ({"val_labels": None}, "cannot be read: .*val_labels.*zenodo"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_the_official_one(tmp_path, monkeypatch, changes, message):
    write_npz(tmp_path / "pathmnist.npz", "pathmnist", 28, monkeypatch, **changes)
    for missing in ("error", "drop", "keep"):
        with pytest.raises(DataError, match=message):
            load_table("medmnist:pathmnist", tmp_path, missing=missing)


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_a_download_that_broke_off(tmp_path, monkeypatch, keep):
    path = tmp_path / "pathmnist.npz"
    write_npz(path, "pathmnist", 28, monkeypatch)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="pathmnist.npz cannot be read.*MD5 a8b06965200029087d5bd730944a56c1"):
        load_table("medmnist:pathmnist", tmp_path)
