"""The drawn images: the same everywhere, photographed in groups, the target long-tailed."""

import hashlib

import pytest

from medmerge.data import synthetic

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
