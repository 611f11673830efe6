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
