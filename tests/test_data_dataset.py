"""From a name to three parts that can be trained on."""

import pytest
import torch
from data_fixtures import real

from medmerge import data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """That of the other tests, some of which take the same drawings."""
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def moles(cache):
    return data.load("synthetic:moles", image_size=16, cache=cache)


def test_parts_share_storage_and_nothing_else(moles):
    parts = (moles.train, moles.val, moles.test)
    assert len({part.inputs.data_ptr() for part in parts}) == 1
    assert moles.train.inputs.shape == (600, 3, 16, 16)
    assert moles.train.inputs.dtype == torch.uint8
    assert moles.train.inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([part.rows for part in parts]).sort().values.tolist() == list(range(600))
    assert sum(len(set(part.ids)) for part in parts) == 600
    for part in parts:
        assert len(part) == len(part.ids) == len(part.labels)
        assert part.rows.dtype == part.labels.dtype == torch.int64


def test_ids_labels_and_images_belong_together(moles):
    table = data.load_table("synthetic:moles").frame.set_index("id")
    for position in (0, 17, len(moles.test) - 1):
        image, label = moles.test.batch(torch.tensor([position]))
        row = table.loc[moles.test.ids[position]]
        assert label.item() == row["label"]
        drawn = torch.from_numpy(data.synthetic.draw(row["path"])).permute(2, 0, 1).float()
        small = torch.nn.functional.interpolate(drawn[None], size=(16, 16), mode="bilinear", antialias=True)
        assert (small[0] - image[0].float()).abs().max() <= 1.0


def test_fingerprint_follows_the_split(moles, cache):
    again = data.load("synthetic:moles", image_size=16, cache=cache)
    assert again.fingerprint == moles.fingerprint
    assert data.load("synthetic:moles", image_size=32, cache=cache).fingerprint == moles.fingerprint
    for change in ({"split_seed": 1}, {"split": "random"}, {"fractions": (0.8, 0.1, 0.1)}):
        assert data.load("synthetic:moles", image_size=16, cache=cache, **change).fingerprint != moles.fingerprint


def test_part_of_isic2019(cache):
    root = real("isic2019")
    listed = data.load_table("isic2019", root, missing="drop")
    kept = listed.frame.groupby("label").head(40)["id"]
    exclude = set(listed.frame["id"]) - set(kept)
    dataset = data.load("isic2019", root, image_size=16, missing="drop", exclude=exclude, cache=cache)
    assert dataset.classes == ("MEL", "NV", "BKL")
    assert dataset.counts.sum(axis=1).tolist() == [40, 40, 40]
    assert dataset.train.batch(torch.arange(4))[0].float().std() > 10
