"""A user's own images, listed in a CSV file.

What could be meant in two ways is refused with both readings; what is read leniently is noted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd

from medmerge.data.loaders.folders import letters, part_of
from medmerge.data.reading import IMAGE_SUFFIXES, Source, label_numbers
from medmerge.data.table import (
    SPLITS,
    DataError,
    Listing,
    check_forms,
    first_duplicate,
    is_missing,
    plain_form,
)

PREFIX = "label:"

_UNITS = "patient|lesion|subject|case|study|person|participant|individual|exam(?:ination)?|visit|donor|animal|specimen"
_GROUP = re.compile(
    rf"(?:anon(?:ymi[sz]ed)?|pseudo|id)?(?:(?:{_UNITS})s?(?:id|uid|ids|no|nr|num(?:ber)?|code|key|name|index|idx)?"
    r"|pid|mrn|(?:eye|scan|slide|series|session|nodule|tumou?r|wound|accession)(?:id|uid|no|nr|num(?:ber)?|code))"
)
"""Names of columns that say which images belong together, without blanks, signs and case."""


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
    path = _labels_file(source, labels)
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
        columns["split"] = rows["split"].map(part_of)
        wrong = ~columns["split"].isin(SPLITS)
        if wrong.any():
            row = f"row {wrong.argmax() + 1}: split {rows['split'][wrong].iloc[0]!r} is none of {', '.join(SPLITS)}"
            raise DataError(f"{path}, {row}; name one in every row, or leave the column out")
    frame = pd.DataFrame(columns, index=rows.index, dtype=object)
    return source.listing(pd.concat([frame, values if single else values.add_prefix(PREFIX)], axis=1), classes)


def _labels_file(source: Source, labels: str | None) -> Path:
    if labels is None:
        raise DataError(f"csv needs labels, the path of the CSV file. {source.expected}")
    candidates = (Path(labels).expanduser(), source.folder / labels)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise DataError(f"There is no labels file {labels}, nor {candidates[1]}. {source.expected}")
    return found


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
    named = [name for name in columns if name not in used and _GROUP.fullmatch(letters(name))]
    if len(named) > 1:
        could = f"the columns {' and '.join(named)} could both say which images a split must keep together"
        raise DataError(f"{path}: {could}. Call the one that counts group: that of the patients, if it is among them")
    return named[0] if named else None


def _read_labels(rows: pd.DataFrame, path: Path, expected: str) -> tuple[pd.DataFrame, list[str]]:
    """Returns the labels, as the column `label` or as numbers in a column for each class; and the columns read."""
    by_class = [name for name in rows.columns if name.startswith(PREFIX)]
    given = [name for name in ("label", "labels") if name in rows.columns] + by_class[:1]
    if not given:
        raise DataError(f"{path} has no column label; its columns are {', '.join(rows.columns)}. {expected}")
    if len(given) > 1:
        raise DataError(f"{path} gives labels in two ways, {' and '.join(given)}; keep one. {expected}")
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
            raise DataError(
                f"csv: there is no {wanted}, and it could be {both}; write the names as the files have them"
            )
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
        source.expected = f"{_hint(folder, ids[0])}{source.expected}"
    return [str(found[image]) if image in found else None for image in ids]


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
            found[plain_form(file.stem)].append(file)
    return found


def _hint(folder: Path, image: str) -> str:
    """Says where an image is, if it is not where the labels file says."""
    name = PurePosixPath(image).name
    there = next((place / name for place in (folder, *sorted(folder.glob("*/"))) if (place / name).is_file()), None)
    below = f"There is {there}: write the path below the folder. " if there else ""
    return f"The file lists {image}, which is looked for as {folder / image}. {below}"
