"""A user's own images: listed in a CSV file, or in a folder for each class.

What could be meant in two ways is refused with both readings; what is read leniently is noted.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd

from medmerge.data.reading import IMAGE_SUFFIXES, Source, is_dicom, label_numbers
from medmerge.data.table import SPLITS, DataError, Listing, check_forms, first_duplicate, is_missing, plain_form

PREFIX = "label:"

_UNITS = "patient|lesion|subject|case|study|person|participant|individual|exam(?:ination)?|visit|donor|animal|specimen"
_GROUP = re.compile(
    rf"(?:anon(?:ymi[sz]ed)?|pseudo|id)?(?:(?:{_UNITS})s?(?:id|uid|ids|no|nr|num(?:ber)?|code|key|name|index|idx)?"
    r"|pid|mrn|(?:eye|scan|slide|series|session|nodule|tumou?r|wound|accession)(?:id|uid|no|nr|num(?:ber)?|code))"
)
"""Names of columns that say which images belong together, without blanks, signs and case."""

_OF = r"(?:(?:ing)?(?:data)?sets?|data|images?|imgs?|splits?|folders?|parts?|samples?|cases|inputs?)?"
_PARTS = {
    "train": re.compile(rf"\d*(?:train(?:ing)?|trn){_OF}"),
    "val": re.compile(rf"\d*(?:val(?:id(?:ation|ate)?)?|dev(?:elopment)?){_OF}"),
    "test": re.compile(rf"\d*(?:test(?:ing)?|tst|holdout){_OF}"),
    "val or test": re.compile(rf"\d*eval(?:uation)?{_OF}"),
}
"""Names of folders that are parts of a split, without blanks, signs and case."""


def labelled_csv(root: Path | None, labels: str | None) -> Listing:
    """Images of a folder with the labels of a CSV file `image,label[,group][,split]`.

    Classes are the labels in alphabetical order; labels stay strings ("10" comes before "2"). An
    image's id is its path relative to the folder, with forward slashes, as listed; where no file
    has that name, one that differs in its suffix, or only in the form of its name, is taken. Without
    a column `group`, one that is named as patients, lesions and the like are is taken for it.
    Instead of `label` the file may have `labels`, any number of classes with "|" between them, or a
    column `label:<class>` for each class: the dataset is then multi-label, in the latter case with
    the classes in the order of the columns.

    Args:
        root: Folder of the images.
        labels: Path of the CSV file; if there is no such file, it is looked for in `root`.

    Raises:
        DataError: The file is missing or lacks a column, an image is listed twice, lies outside
            the folder or could be two files, a label is missing or no number, classes, groups or
            images differ only in form, a split is none of train, val and test, several columns
            could be the group, or labels are given in two ways.
    """
    source = Source("csv", root)
    if labels is None:
        raise DataError(f"csv needs labels, the path of the CSV file. {source.expected}")
    path = next((p for p in (Path(labels).expanduser(), source.folder / labels) if p.is_file()), None)
    if path is None:
        raise DataError(f"There is no labels file {labels}, nor {source.folder / labels}. {source.expected}")
    rows = source.table(path, ("image",), ("label", "labels", "group", "split"))
    ids = [_relative(image, path, row) for row, image in enumerate(rows["image"], start=1)]
    twice = first_duplicate(ids)
    if twice is not None:
        raise DataError(f"{path} lists the image {twice} more than once; keep one row an image")
    check_forms("csv", "images", ids, _form_of_path)
    values, used = _read_labels(rows, path, source.expected)
    # A missing label is left for the check that all datasets share, which needs no class for it.
    single = used == ["label"]
    classes = sorted({label for label in values["label"] if not is_missing(label)}) if single else list(values)
    check_forms("csv", f"classes in {path}", classes)
    columns = {"id": ids, "path": _find_files(source, ids)}
    group = _group_column(rows.columns, used, path)
    if group is not None:
        check_forms("csv", f"groups in the column {group} of {path}", (v for v in rows[group] if not is_missing(v)))
        columns["group"] = rows[group]
    if group not in (None, "group"):
        source.notes.append(f"The column {group} is taken for the group, which no grouped split cuts.")
    unused = [name for name in rows if name not in ("image", "split", group, *used)]
    if unused:
        source.notes.append(f"Columns not used: {', '.join(unused)}.")
    if "split" in rows:
        columns["split"] = rows["split"].map(_part_of)
        wrong = ~columns["split"].isin(SPLITS)
        if wrong.any():
            row = f"row {wrong.argmax() + 1}: split {rows['split'][wrong].iloc[0]!r} is none of {', '.join(SPLITS)}"
            raise DataError(f"{path}, {row}; name one in every row, or leave the column out")
    frame = pd.DataFrame(columns, index=rows.index, dtype=object)
    return source.listing(pd.concat([frame, values if single else values.add_prefix(PREFIX)], axis=1), classes)


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


def _letters(name: str) -> str:
    """Returns a name without blanks, signs and case."""
    return re.sub(r"[^a-z0-9]", "", plain_form(name))


def _part_of(name: str) -> str | None:
    """Returns the part of a split that a name means, if it means one."""
    return next((part for part, pattern in _PARTS.items() if pattern.fullmatch(_letters(name))), None)


# ---------------------------------------------------------------- the CSV file


def _relative(image: str, path: Path, row: int) -> str:
    """Returns the image's path below the folder in its one spelling."""
    posix = PurePosixPath(image.replace("\\", "/"))
    if posix.is_absolute() or PureWindowsPath(image).drive or ".." in posix.parts:
        raise DataError(f"{path}, row {row}: image {image!r} leads out of the folder of images; give a path within it")
    if is_missing(str(posix)):
        raise DataError(f"{path}, row {row}: the column image is empty ({image!r})")
    return str(posix)


def _form_of_path(image: str) -> tuple[str, ...]:
    path = PurePosixPath(image)
    suffix = path.suffix if path.suffix.lower() in IMAGE_SUFFIXES else ""
    return (*map(plain_form, path.parts[:-1]), plain_form(path.name.removesuffix(suffix)), suffix.lower())


def _group_column(columns: Iterable[str], used: Iterable[str], path: Path) -> str | None:
    """Returns the column that says which images belong together, None if there is none."""
    if "group" in columns:
        return "group"
    named = [name for name in columns if name not in used and _GROUP.fullmatch(_letters(name))]
    if len(named) > 1:
        could = f"the columns {' and '.join(named)} could both say which images a split must keep together"
        raise DataError(f"{path}: {could}. Call the one that counts group: that of the patients, if it is among them")
    return named[0] if named else None


def _read_labels(rows: pd.DataFrame, path: Path, expected: str) -> tuple[pd.DataFrame, list[str]]:
    """Returns the labels, as the column `label` or as numbers in a column for each class; and the columns read."""
    by_class = [name for name in rows.columns if name.startswith(PREFIX)]
    given = [name for name in ("label", "labels") if name in rows.columns] + by_class[:1]
    if len(given) != 1:
        ways = f"gives labels in two ways, {' and '.join(given)}; keep one"
        none = f"has no column label; its columns are {', '.join(rows.columns)}"
        raise DataError(f"{path} {ways if given else none}. {expected}")
    if given == ["label"]:
        return rows[given], given
    if given == ["labels"]:
        return _split_labels(rows["labels"], path), given
    texts = rows[by_class].rename(columns=lambda name: name.removeprefix(PREFIX).strip())
    if "" in texts or first_duplicate(texts) is not None:
        raise DataError(f"{path} has the columns {', '.join(by_class)}; each is {PREFIX}<class>, of a class of its own")
    return label_numbers(path, texts), by_class


def _split_labels(column: pd.Series, path: Path) -> pd.DataFrame:
    """Returns float32 [N, K] of 1 and 0 from texts such as "Edema|Effusion", a column for each class."""
    sets = [{name.strip() for name in text.split("|")} - {""} for text in column]
    for row, names in enumerate(sets, start=1):
        unknown = [name for name in names if is_missing(name)]
        if unknown:
            empty = "leave the cell empty where an image has none, or the row out where that is not known"
            raise DataError(f"{path}, row {row}: {unknown[0]!r} in labels is no class; {empty}")
    classes = sorted(set().union(*sets))
    if not classes:
        raise DataError(f"{path} has no class in labels: the column is empty in all {len(column):,} rows")
    for name in classes:  # may have a comma, but not another class beside it
        mark = ";" if ";" in name else "," if {part.strip() for part in name.split(",")} - {name} & set(classes) else ""
        if mark:
            raise DataError(f"{path} has the class {name!r} in labels; put '|' between classes, not {mark!r}")
    return pd.DataFrame({name: [name in given for given in sets] for name in classes}, dtype=np.float32)


def _find_files(source: Source, ids: list[str]) -> list[str | None]:
    """Returns the file of each image, None where there is none; notes those that are named otherwise."""
    folder, found, alike = source.folder, {}, {}
    for image in ids:
        wanted = folder / image
        if wanted.is_file():
            found[image] = wanted
            continue
        if wanted.parent not in alike:
            alike[wanted.parent] = _by_stem(wanted.parent)
        stems = {wanted.name, wanted.stem} if wanted.suffix.lower() in IMAGE_SUFFIXES else {wanted.name}
        files = sorted({file for stem in stems for file in alike[wanted.parent].get(plain_form(stem), ())})
        if len(files) > 1:
            both = " or ".join(file.name for file in files)
            raise DataError(f"csv: there is no {wanted}, and it could be {both}; write the names as files have them")
        if files:
            found[image] = files[0]
    twice = first_duplicate(found.values())
    if twice is not None:
        both = " and ".join(repr(image) for image, file in found.items() if file == twice)
        raise DataError(f"csv: the images {both} are both the file {twice}; keep one row an image")
    other = [f"{image} as {file.name}" for image, file in found.items() if file != folder / image]
    if other:
        how = f"have another suffix or spelling on the disk: {other[0]}."
        source.notes.append(f"{len(other):,} of {len(ids):,} images {how}")
    if not found:
        name = PurePosixPath(ids[0]).name
        there = [place / name for place in (folder, *sorted(folder.glob("*/"))) if (place / name).is_file()]
        below = f"There is {there[0]}: write the path below the folder. " if there else ""
        wanted = f"The file lists {ids[0]}, which is looked for as {folder / ids[0]}. {below}"
        source.expected = f"{wanted}{source.expected}"
    return [str(found[image]) if image in found else None for image in ids]


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
            found[plain_form(file.stem)].append(file)
    return found


# ---------------------------------------------------------------- folders


def _class_folders(source: Source) -> list[tuple[Path, str | None]]:
    """Returns the folders of classes, each with its part of the split, and notes."""
    folder = source.folder
    inside, loose = _visible(folder)
    parts = {place: part for place in inside if (part := _part_of(place.name))}
    named = ", ".join(f"{place.name} as {part}" for place, part in parts.items())
    if parts and len(parts) < len(inside):
        other, part = next(place.name for place in inside if place not in parts), next(iter(parts)).name
        raise DataError(
            f"folder: {folder} has the folder {part} of a split beside {other}, which is none. If {part} is a class, "
            f"rename it; else move what is no part of the split out. {source.expected}"
        )
    if "val or test" in parts.values() or len(set(parts.values())) < len(parts):
        unclear = f"it is not clear which part in {folder} is which ({named})"
        raise DataError(f"folder: {unclear}. Call them train, val, test")
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
        parts = [image.relative_to(place).parts for image in images]
        below[place.name] |= {plain_form(names[0]) for names in parts if len(names) > 1}
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
