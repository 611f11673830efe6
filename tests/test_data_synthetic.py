"""The drawn images: the same everywhere, photographed in groups, the target long-tailed."""

import hashlib

import numpy as np
import pytest

from medmerge.data import load_table, synthetic

# Of the first three images of each class, and of the listing. A change of a pixel changes these:
# then raise synthetic.VERSION, or caches of the old drawings will be taken for the new.
DIGESTS = {
    "synthetic:objects": ("3f7bd9f292f6ed10", 900, 900),
    "synthetic:lesions": ("916af2d3ef78eb21", 802, 400),
    "synthetic:moles": ("fe93f45279ecece6", 600, 310),
}


@pytest.mark.parametrize("name", synthetic.SETS)
def test_drawings_are_the_same_on_every_machine(name):
    frame = synthetic.listing(name).frame
    hasher = hashlib.sha256("\n".join(frame["path"]).encode())
    for kind in synthetic.SETS[name]:
        for path in frame["path"][frame["label"] == kind][:3]:
            hasher.update(synthetic.draw(path).tobytes())
    assert synthetic.VERSION == 2
    assert (hasher.hexdigest()[:16], len(frame), frame["group"].nunique()) == DIGESTS[name]


def test_moles_are_long_tailed():
    table = load_table("synthetic:moles")
    sizes = table.frame["label"].value_counts().sort_index().tolist()
    assert sizes == [314, 170, 76, 40]
    assert table.classes == ("common", "atypical", "globular", "melanoma")


@pytest.mark.parametrize("name", ["synthetic:lesions", "synthetic:moles"])
def test_photographs_of_a_lesion_are_alike_and_not_equal(name):
    frame = load_table(name).frame
    assert set(frame["group"].value_counts()) == {1, 2, 3}
    assert (frame.groupby("group")["label"].nunique() == 1).all()
    # The lesion's own colour comes back in its next photograph, and not in another lesion's.
    centre = np.stack([synthetic.draw(path)[22:42, 22:42].mean((0, 1)) for path in frame["path"][:200]])
    groups = frame["group"][:200].to_numpy()
    distance = np.linalg.norm(centre[:, None] - centre[None], axis=-1)
    same = (groups[:, None] == groups[None]) & ~np.eye(200, dtype=bool)
    assert distance[same].min() > 0
    assert distance[same].mean() < 0.5 * distance[groups[:, None] != groups[None]].mean()
