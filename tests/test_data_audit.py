"""The audit finds what was hidden on purpose, and what is known of the real datasets."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from data_fixtures import made_table, real
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from medmerge.data import CATALOGUE, DATASETS, PAPER_NUMBERS, Table, entry, load_images, load_table, split
from medmerge.data.audit import audit, hashes, leakage, pairs, shared
from medmerge.data.splits import join_identical

PARTS = np.array(["train", "train", "val", "test", "train", "test"])


def severities(found) -> dict:
    return dict(zip(found.summary["finding"], found.summary["severity"], strict=True))


def scene(seed: int, size: int = 240) -> Image.Image:
    """A smooth picture of random blobs, as different from another seed's as two photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    pixels = np.zeros((size, size, 3))
    for _ in range(25):
        cy, cx, radius = *rng.random(2), 0.02 + 0.1 * rng.random()
        pixels += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / radius**2)[..., None] * rng.normal(size=3)
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    return Image.fromarray((40 + 170 * pixels).astype(np.uint8))


def small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))


def saved(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def test_everything_hidden_is_found():
    table = made_table([0, 1, 0, 1, 0, 0], ["p", "p", "q", "p", "r", "r"])
    found = audit(table, PARTS, digests=["1", "2", "3", "2", "4", "4"])
    assert found.straddling.to_dict("records") == [
        {"group": "p", "train": 2, "val": 0, "test": 1},
        {"group": "r", "train": 1, "val": 0, "test": 1},
    ]
    assert found.identical.to_dict("records") == [
        {
            **{"digest": "2", "ids": ("image00001", "image00003"), "labels": ("class1", "class1")},
            **{"parts": ("train", "test"), "straddles": True, "conflicting": False, "groups": 1},
        },
        {
            **{"digest": "4", "ids": ("image00004", "image00005"), "labels": ("class0", "class0")},
            **{"parts": ("train", "test"), "straddles": True, "conflicting": False, "groups": 1},
        },
    ]
    assert found.summary["severity"].tolist() == ["leak", "leak", "not checked"]
    assert found.summary["count"].tolist() == [2, 2, 0]
    groups, files, _ = found.summary["sentence"]
    assert groups.startswith("2 groups are in more than one part: 2 of 2 test images (100.0 %)")
    assert "2 are in more than one part, and 2 of 2 test images (100.0 %) have a copy in train" in files
    assert found.summary["examples"][1] == "image00001=image00003, image00004=image00005"


def test_copies_in_several_groups_are_told_and_can_be_joined():
    table = made_table([0, 1, 0, 1, 0, 1], ["p", "p", "q", "r", "s", "s"])
    parts, digests = np.array(["train", "train", "val", "test", "train", "train"]), ["1", "2", "3", "4", "1", "5"]
    before = audit(table, parts, digests=digests).summary.set_index("finding").loc["identical files"]
    assert before["severity"] == "look" and "1 with several groups may be cut by another" in before["sentence"]
    after = audit(join_identical(table, digests), parts, digests=digests)
    assert severities(after)["identical files"] == "ok"


def test_multilabel_copies_are_compared_by_all_findings():
    frame = made_table([0] * 4, ["p"] * 4).frame.drop(columns="label")
    values = np.array([[1, 0], [1, np.nan], [0, 0], [0, 0]], dtype=np.float32)
    frame[["label:a", "label:b"]] = values
    found = audit(Table("made", frame, ("a", "b")), np.array(["train"] * 4), digests=["1", "1", "2", "2"])
    assert found.identical["labels"].tolist() == [("a", "a, b?"), ("", "")]
    assert found.identical["conflicting"].tolist() == [True, False]
    assert found.counts.loc["a"].tolist() == [2, 0, 0]


def test_nothing_to_find_leaves_empty_tables():
    rng = np.random.default_rng(0)
    table = made_table([0, 1] * 3, ["p", "p", "q", "q", "r", "r"])
    parts = np.array(["train", "train", "val", "val", "test", "test"])
    pixels = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    found = audit(table, parts, digests=list("abcdef"), pixels=pixels)
    assert set(found.summary["severity"]) == {"ok"} and (found.summary["count"] == 0).all()
    unchecked = audit(table, parts)
    for audited in (found, unchecked):
        assert audited.straddling.empty and audited.identical.empty and audited.near.empty
        assert audited.near["same_group"].dtype == audited.identical["straddles"].dtype == bool
    assert [severities(unchecked)[name] for name in ("identical files", "near-duplicates")] == ["not checked"] * 2


@pytest.mark.parametrize(
    ("alter", "most"),
    [
        (lambda image: saved(image, 50), 16),
        (lambda image: image.resize((120, 120), Image.Resampling.BICUBIC), 8),
        (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 16),
        (lambda image: ImageEnhance.Contrast(image).enhance(1.2), 16),
        (lambda image: image.crop((2, 2, 238, 238)), 32),
    ],
)
def test_altered_copies_are_near(alter, most):
    originals = [scene(seed) for seed in range(20)]
    pixels = np.stack([small(image) for image in [*originals, *map(alter, originals)]])
    found, distances = pairs(hashes(pixels))
    assert sorted(map(tuple, found)) == [(row, row + 20) for row in range(20)]
    assert np.median(distances) <= most


def test_near_duplicates_are_listed_with_what_they_share():
    images = [scene(0), scene(1), saved(scene(0), 60), scene(2), scene(1), scene(3)]
    table = made_table([0, 1, 1, 0, 1, 0], ["p", "q", "r", "s", "q", "t"])
    found = audit(table, PARTS, digests=list("abcdbe"), pixels=np.stack([small(image) for image in images]))
    (pair,) = found.near.to_dict("records")
    distance = pair.pop("distance")
    assert 0 < distance <= 32
    assert pair == {
        **{"a": "image00000", "b": "image00002", "same_group": False, "same_label": False},
        **{"part_a": "train", "part_b": "val"},
    }
    assert found.identical["ids"].tolist() == [("image00001", "image00004")]  # not near: identical
    sentence = found.summary.set_index("finding").loc["near-duplicates", "sentence"]
    assert "1 in different parts, 1 of different groups, 1 of different labels" in sentence
    without = audit(table, PARTS, pixels=np.stack([small(image) for image in images]))
    assert without.near["distance"].tolist() == [0, distance]
    assert audit(table, PARTS, pixels=np.stack([small(image) for image in images]), distance=0).near.shape[0] == 1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 70), distance=st.integers(0, 140), rows=st.integers(1, 40))
def test_pairs_are_all_pairs(seed, count, distance, rows):
    """Whatever the size of the blocks; against the plain sum."""
    rng = np.random.default_rng(seed)
    hashed = rng.integers(0, 2**64, (count, 4), dtype=np.uint64, endpoint=False)
    hashed[count // 2 :, : rng.integers(1, 5)] = hashed[: count - count // 2, :1]
    bits = np.unpackbits(hashed.view(np.uint8).reshape(count, 32), axis=1) if count else np.empty((0, 256))
    expected = sorted(
        (int((bits[one] != bits[other]).sum()), one, other) for one in range(count) for other in range(one + 1, count)
    )
    expected = [row for row in expected if row[0] <= distance]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medmerge.data.audit._ROWS", rows)
        found, distances = pairs(hashed, distance)
    assert [(d, a, b) for d, (a, b) in zip(distances.tolist(), found.tolist(), strict=True)] == expected


def test_leakage_counts_images_that_train_has_met():
    keys = ["p", "q", "p", "p", None, "", "only here", "only here"]
    shares = leakage(keys, np.array(["train", "train", "val", "test", "train", "test", "test", "test"]))
    assert shares.to_dict("index") == {
        "val": {"images": 1, "shared": 1, "share": 1.0},
        "test": {"images": 4, "shared": 1, "share": 0.25},
    }


def test_shared_images_are_found_by_id_file_and_group():
    """ISIC ids lose their suffix; equal ids of users' own lists say nothing."""
    a = replace(made_table([0] * 4, ["L1", "L2", "L3", "A_4"], ids=["A_1", "A_2", "A_3", "A_4"]), name="ham10k")
    b = made_table([0] * 5, ["x", "L1", "y", "B_8", "z"], ids=["A_1_downsampled", "B_7", "A_2", "B_8", "B_9"])
    b = replace(b, name="isic2019")
    found = shared(a, b, ["1", "2", "3", "4"], ["9", "8", "7", "4", ""])
    assert found.to_dict("records") == [
        {"id": "A_1_downsampled", "group": "x", "shares": "image"},
        {"id": "B_7", "group": "L1", "shares": "group"},
        {"id": "A_2", "group": "y", "shares": "image"},
        {"id": "B_8", "group": "B_8", "shares": "file"},
    ]
    assert shared(a, b)["shares"].tolist() == ["image", "group", "image"]
    own = shared(replace(a, name="csv"), replace(b, name="csv"), ["1", "2", "3", "4"], ["9", "8", "7", "4", ""])
    assert own["shares"].tolist() == ["group", "file"]
    empty = shared(replace(a, name="csv"), Table("csv", b.frame[4:], b.classes))
    assert empty.empty and list(empty) == ["id", "group", "shares"]


def test_real_isic2019_leaks_lesions():
    table = load_table("isic2019", real("isic2019"), missing="keep")
    parts = split(table, method="random")
    assert leakage(table.frame["group"], parts).loc["test"].tolist() == [5066, 2823, 2823 / 5066]
    assert leakage(table.frame["group"], split(table)).loc["test", "shared"] == 0
    found = audit(table, parts)
    assert len(found.straddling) == 3554
    assert "2,823 of 5,066 test images (55.7 %)" in found.summary["sentence"][0]


def test_real_aptos_copies(tmp_path):
    """From the digests alone, without an image."""
    digests = pd.read_csv(real("aptos2019", "image_sha256.csv"), dtype=str)
    train = digests[digests["split"] == "train_images"].set_index("id")["sha256"]
    labels = pd.read_csv(real("aptos2019", "train.csv"))
    table = made_table(labels["diagnosis"], ids=labels["id_code"].tolist())
    known = [train[image] for image in table.frame["id"]]
    parts = split(table, method="random", fractions=(0.8, 0.1, 0.1))
    found = audit(table, parts, digests=known)
    assert len(found.identical) == 123 and found.identical["ids"].map(len).sum() == 251
    assert found.identical["conflicting"].sum() == 30
    assert leakage(known, parts).loc["test", "shared"] == 17
    assert severities(found)["identical files"] == "leak"
    joined = join_identical(table, known)
    assert joined.frame["group"].nunique() == 3662 - (251 - 123)
    test = digests[digests["split"] == "test_images"]
    other = made_table([0] * len(test), ids=[f"test/{image}" for image in test["id"]])
    met = shared(table, other, known, test["sha256"].tolist())
    assert set(met["shares"]) == {"file"}
    assert test["sha256"].isin(known).sum() == len(met)
    assert test["sha256"][test["sha256"].isin(known)].nunique() == 140


@pytest.mark.slow
def test_real_images_that_look_alike():
    """The numbers in the text of `pairs`; the byte-identical pairs are among them until digests are given."""
    ham = load_table("ham10k", real("ham10000"), missing="drop")
    images = load_images(ham, 64)
    found = audit(ham, split(ham), digests=images.digests, pixels=images.pixels)
    assert len(found.near) == 114 and found.identical["groups"].tolist() == [1, 1]
    assert found.near[~found.near["same_group"]][["a", "b"]].to_numpy().tolist() == [["ISIC_0025226", "ISIC_0030074"]]
    isic = load_table("isic2019", real("isic2019"), missing="drop")
    images = load_images(isic, 64)
    found = audit(isic, split(isic), digests=images.digests, pixels=images.pixels)
    assert len(found.identical) == 1 and len(found.near) == 14 and found.near["same_group"].sum() == 1


def test_every_dataset_is_in_the_catalogue():
    assert all(map(entry, DATASETS)) and {item.name for item in CATALOGUE if "<" not in item.name} <= set(DATASETS)
    assert {item.name for item in CATALOGUE if item.paper} == set(PAPER_NUMBERS)
    assert [entry(f"{kind}:x").name for kind in ("medmnist", "synthetic")] == ["medmnist:<name>", "synthetic:<name>"]
    assert entry("nothing") is None and entry("medmnist:") is None
