"""The datasets by name: `load_table` is the only way in, whatever the files look like."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection
from functools import partial

from medmerge.data import synthetic
from medmerge.data.loaders import fundus, medmnist, own, skin, xray
from medmerge.data.table import POLICIES, DataError, Listing, Table, settle

Loader = Callable[..., Listing]

DATASETS: dict[str, Loader] = {
    "ham10k": skin.ham10k,
    "isic2019": skin.isic2019,
    "eyepacs": fundus.eyepacs,
    "aptos2019": fundus.aptos2019,
    "chexpert": xray.chexpert,
    "rsna": xray.rsna,
    "kermany": xray.kermany,
    "nih_pneumonia": xray.nih_pneumonia,
    "fundus4": fundus.fundus4,
    **{name: partial(medmnist.listing, name) for name in medmnist.SETS},
    "csv": own.labelled_csv,
    "folder": own.labelled_folder,
    **{name: partial(synthetic.listing, name) for name in synthetic.SETS},
}
"""The datasets that are known, each with the function that lists it from `root`, of csv also from `labels`."""

MISSING = ("error", "drop", "keep")


def load_table(
    name: str,
    root: str | os.PathLike | None = None,
    *,
    labels: str | None = None,
    missing: str = "error",
    exclude: Collection[str] = (),
    uncertain: str = "ignore",
    blank: str = "zeros",
) -> Table:
    """Reads a dataset's labels, groups and official split, and finds its images.

    Args:
        name: A key of `DATASETS`.
        root: Folder of the dataset as unpacked; it is only read. Drawn images ("synthetic:...")
            need none.
        labels: Path of the labels file, for "csv" only.
        missing: What to do with images that are listed and not on the disk: "error"; "drop", to
            go on with a partial download; or "keep", to study the labels without the images.
            Labels files that are shorter than the official ones are an error in the first case,
            and noted in the others; longer ones are always an error.
        exclude: Ids to leave out, such as those of the images that a source model was trained
            on, or those of a file that `read_ids` reads. Ids that the dataset does not have are
            passed over; a note says how many images are left out.
        uncertain: What a multi-label dataset's uncertain labels (-1) are taken for: "ignore"
            (not known: left out of losses and scores), "zeros" (absent), "ones" (present).
        blank: The same for empty labels, findings that a report does not mention.

    Returns:
        The table. A class left without images by `exclude` or by `missing="drop"` is taken out
        of `classes`, with a note.

    Raises:
        DataError: The name is unknown, files are missing or broken, a label is missing or none of
            the classes, an id comes twice, no image is left, or only one class is.
    """
    loader = _find_loader(name)
    given = (("missing", missing, MISSING), ("uncertain", uncertain, POLICIES), ("blank", blank, POLICIES))
    for parameter, value, allowed in given:
        if value not in allowed:
            raise DataError(f"{parameter} is {value!r}; it is one of {', '.join(allowed)}")
    if isinstance(exclude, str):
        raise DataError(f"exclude is the text {exclude!r}; give a list of ids")
    if labels is not None and name != "csv":
        raise DataError(f"{name} has its own labels; labels={labels!r} is for the dataset csv")
    listing = loader(root, labels) if name == "csv" else loader(root)
    return settle(name, listing, root, missing, set(exclude), {"uncertain": uncertain, "blank": blank})


def listed_ids(name: str, root: str | os.PathLike | None = None) -> frozenset[str]:
    """Ids of all images that a dataset's own files list, whether they are on the disk or not.

    Args:
        name: A key of `DATASETS`, but not "csv".
        root: Folder of the dataset as unpacked.

    Raises:
        DataError: The name is unknown, or the dataset's own files are missing or broken.
    """
    return frozenset(_find_loader(name)(root).frame["id"])


def known_names() -> str:
    """Lists the names of all datasets, those of MedMNIST as one."""
    names = ["medmnist:<name>[_64|_128|_224]" if name in medmnist.SETS else name for name in DATASETS]
    return ", ".join(dict.fromkeys(names))


def _find_loader(name: str) -> Loader:
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(str(name).lower(), DATASETS, n=1, cutoff=0.0)
    raise DataError(f"There is no dataset {name!r}; the nearest is {near[0]!r}, of {known_names()}")
