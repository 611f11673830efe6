"""A user's own images in a folder for each class, and the parts of a split that folders are named after.

What could be meant in two ways is refused with both readings; what is read leniently is noted.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd

from medmerge.data.reading import IMAGE_SUFFIXES, Source, is_dicom
from medmerge.data.table import DataError, Listing, check_forms, plain_form

_OF = r"(?:(?:ing)?(?:data)?sets?|data|images?|imgs?|splits?|folders?|parts?|samples?|cases|inputs?)?"

_PARTS = {
    "train": re.compile(rf"\d*(?:train(?:ing)?|trn){_OF}"),
    "val": re.compile(rf"\d*(?:val(?:id(?:ation|ate)?)?|dev(?:elopment)?){_OF}"),
    "test": re.compile(rf"\d*(?:test(?:ing)?|tst|holdout){_OF}"),
    "val or test": re.compile(rf"\d*eval(?:uation)?{_OF}"),
}
"""Names of folders that are parts of a split, without blanks, signs and case."""


def labelled_folder(root: Path | None) -> Listing:
    """Images in a folder for each class, or in such folders within those of train, val and test.

    Classes are the names of the folders in alphabetical order. An image's id is its path below
    `root`, with forward slashes; images in folders within a class's, and in folders that links lead
    to, belong to the class. Images are files with a suffix that Pillow knows, and DICOM files.
    Parts may be called `Training`, `test_set`, `valid` and the like, which a note says.

    Args:
        root: Folder of the folders.

    Raises:
        DataError: There is no folder with an image, folders of a split and others lie side by
            side, folders could be classes or something else, or two classes differ only in form.
    """
    source = Source("folder", root)
    folder, others = source.folder, Counter()
    places = _class_folders(source)
    check_forms("folder", f"classes in {folder}", (place.name for place, _ in places))
    found = {place: _images_below(place, folder, others) for place, _ in places}
    rows = [
        (image.relative_to(folder).as_posix(), str(image), place.name, split)
        for place, split in places
        for image in found[place]
    ]
    if not rows:
        read = "".join(f" {note}" for note in source.notes)
        raise DataError(f"folder: no folder of a class in {folder} has an image.{read} {source.expected}")
    _check_depth(folder, found)
    if others:
        listed = ", ".join(f"{count:,} {what}" for what, count in sorted(others.items()))
        source.notes.append(f"Files in the folders of classes that are not read: {listed}.")
    if empty := [place.relative_to(folder).as_posix() for place, images in found.items() if not images]:
        source.notes.append(f"Folders without an image, left out: {', '.join(empty)}.")
    frame = pd.DataFrame(rows, columns=["id", "path", "label", "split"], dtype=object)
    return source.listing(frame, sorted(set(frame["label"])))


def letters(name: str) -> str:
    """Returns a name without blanks, signs and case."""
    return re.sub(r"[^a-z0-9]", "", plain_form(name))


def part_of(name: str) -> str | None:
    """Returns the part of a split that a name means, if it means one."""
    return next((part for part, pattern in _PARTS.items() if pattern.fullmatch(letters(name))), None)


def _class_folders(source: Source) -> list[tuple[Path, str | None]]:
    """Returns the folders of classes, each with its part of the split, and notes."""
    folder = source.folder
    inside, loose = _visible(folder)
    parts = {place: part for place in inside if (part := part_of(place.name))}
    named = ", ".join(f"{place.name} as {part}" for place, part in parts.items())
    if parts and len(parts) < len(inside):
        other, part = next(place.name for place in inside if place not in parts), next(iter(parts)).name
        raise DataError(
            f"folder: {folder} has the folder {part} of a split beside {other}, which is none. If {part} is a class, "
            f"rename it; else move what is no part of the split out. {source.expected}"
        )
    if "val or test" in parts.values() or len(set(parts.values())) < len(parts):
        raise DataError(
            f"folder: it is not clear which part in {folder} is which ({named}). Call them train, val, test"
        )
    if len(inside) == 1 and not parts and len(_visible(inside[0])[0]) > 1:
        raise DataError(f"folder: the only folder in {folder} is {inside[0].name}; give {inside[0]} as the root")
    places = [] if parts else [(place, None) for place in inside]
    for part, meaning in parts.items():
        below, files = _visible(part)
        places += [(place, meaning) for place in below]
        loose += files
    if any(place.name != part for place, part in parts.items()):
        source.notes.append(f"The folders are parts of a split, not classes: {named}.")
    if loose:
        source.notes.append(f"{loose:,} files beside the folders of classes are left out.")
    return places


def _check_depth(folder: Path, found: dict[Path, list[Path]]) -> None:
    """Raises where folders that would be classes hold the same folders, which could be the classes."""
    below: dict[str, set[str]] = defaultdict(set)
    for place, images in found.items():
        below[place.name] |= {
            plain_form(image.relative_to(place).parts[0]) for image in images if image.parent != place
        }
    counts = Counter(name for names in below.values() for name in names)
    shared = sorted(name for name, count in counts.items() if count > 1)
    if len(shared) > 1:
        classes = " and ".join(name for name, names in below.items() if shared[0] in names)
        raise DataError(
            f"folder: {classes} in {folder} hold the same folders ({', '.join(shared[:4])}). If these are the classes, "
            f"put them above: <root>/{shared[0]}/...; if {classes} are, put the images right into them. Or list the "
            "images in a CSV file, for the dataset csv"
        )


def _visible(folder: Path) -> tuple[list[Path], int]:
    """Returns the folders in a folder, sorted, and the number of its files; what systems leave there is not counted."""
    entries = [entry for entry in sorted(folder.iterdir()) if not _of_system(entry.name) and entry.name[0] != "."]
    folders = [entry for entry in entries if entry.is_dir()]
    return folders, len(entries) - len(folders)


def _images_below(place: Path, root: Path, others: Counter) -> list[Path]:
    """Returns the images in a folder and in those within it, sorted; counts in `others` what else there is.

    Links to folders are followed, but for those that lead back into the dataset.
    """
    images, seen = [], {root.resolve(), *root.resolve().parents}
    for parent, folders, files in os.walk(place, followlinks=True):
        kept = []
        for path in (Path(parent, name) for name in sorted(folders) if not _of_system(name)):
            target = path.resolve()
            if path.name.startswith("."):
                others["hidden folder"] += 1
            elif path.is_symlink() and (target in seen or root.resolve() in target.parents):
                others["link to a folder that is read elsewhere"] += 1
            else:
                seen.add(target)
                kept.append(path.name)
        folders[:] = kept
        for path in (Path(parent, name) for name in sorted(files) if not _of_system(name)):
            suffix = path.suffix.lower()
            if path.name.startswith("."):
                others["hidden"] += 1
            elif suffix in IMAGE_SUFFIXES or (not suffix and _begins_as_dicom(path)):
                images.append(path)
            else:
                others[suffix or "without suffix"] += 1
    return images


def _begins_as_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_dicom(file.read(132))


def _of_system(name: str) -> bool:
    """Whether an operating system leaves a file or folder of this name by itself."""
    return name.startswith("._") or name in (".DS_Store", "__MACOSX", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints")
