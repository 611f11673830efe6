"""``medmerge data``: what is in a dataset's folder, how a split deals it out, and what that hides."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge import data
from medmerge.data import DataError, Table, split_files, splits
from medmerge.data.audit import audit, hidden, shared

_SIZE = 64
_DESCRIPTION = """Show what is in a dataset's folder and what is missing, compare it with the paper's numbers, split it
and look for what the split hides. Nothing is written into ROOT. Without NAME, the datasets are listed, with their
licences and folders."""


def add(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the command's options to its parser."""
    parser.description = _DESCRIPTION
    add_one = parser.add_argument
    add_one("name", nargs="?", metavar="NAME", help="a dataset; without one, or with `list`, all are listed")
    add_one("root", nargs="?", metavar="ROOT", help="its folder, from here or from $MEDMERGE_DATA")
    add_one("--labels", metavar="FILE", help="the labels of the dataset csv")
    add_one("--exclude", metavar="FILE", help="ids of images to leave out, one a line, or a table with a column id")
    add_one("--split", choices=splits.METHODS, default="grouped", help="how it is drawn (grouped)")
    add_one("--fractions", nargs=3, type=float, default=(0.6, 0.2, 0.2), metavar=("TRAIN", "VAL", "TEST"))
    add_one("--seed", type=int, default=0, help="seed of the split (0)")
    add_one("--group-identical", action="store_true", help="keep byte-identical files together")
    add_one("--write-split", metavar="FILE.csv", help="write the split down")
    add_one("--against", nargs="+", metavar=("NAME", "ROOT"), help="a source: does it share images?")
    add_one("--no-images", action="store_true", help="only labels and groups; no image is decoded")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if options.name in (None, "list"):
        for known in data.CATALOGUE:
            folder = known.tree.replace("\n", "\n           ")
            print(f"{known.name}{f' ({known.paper} in the paper)' if known.paper else ''}\n  {known.title}")
            print(f"  licence  {known.licence}\n  from     {known.url or '-'}\n  folder   {folder or '-'}\n")
        return 0
    root, (name, *rest) = _folder(options.root), options.against or [""]
    if len(rest) > 1:
        raise DataError(f"--against takes a dataset and its folder, not {' '.join(options.against)}")
    for place in filter(None, (root, *map(_folder, rest))):
        if options.write_split and Path(options.write_split).expanduser().resolve().is_relative_to(place.resolve()):
            raise DataError(f"{options.write_split} is in {place}, which is only read; name a place outside of it")
    table, digests, pixels = _read(options, root)
    if options.group_identical:
        if digests is None:
            raise DataError("--group-identical needs the images: leave out --no-images, or name their folder")
        table = splits.join_identical(table, digests)
    parts = _split(options, table)
    found = audit(table, parts, digests=digests, pixels=pixels)
    counts = found.counts.assign(all=found.counts.sum(axis=1))
    counts.loc["images"] = [*splits.sizes(parts), len(parts)]
    print(f"{counts.to_string(formatters=['{:,}'.format] * 4)}\n\nWhat the split hides")
    for finding in found.summary.itertuples():
        examples = f" Such as {finding.examples}." if finding.examples else ""
        print(f"  {finding.severity.replace('leak', 'LEAK'):13}{finding.sentence}{examples}")
    if name:
        other = data.load_table(name, *map(_folder, rest), missing="keep")
        met = shared(other, table, None if options.no_images else _decode(other)[0], digests)
        print(f"\nShared with {name}\n  {_sharing(name, met, table, parts)}")
    return 0


def _folder(given: str | None) -> Path | None:
    """The dataset's folder: as given, from here, or else from ``$MEDMERGE_DATA``."""
    if given is None:
        return None
    here, elsewhere = Path(given).expanduser(), Path(os.environ.get("MEDMERGE_DATA", ""), given)
    return elsewhere if not here.exists() and elsewhere.exists() else here


def _read(options: argparse.Namespace, root: Path | None) -> tuple[Table, list[str] | None, np.ndarray | None]:
    """The table, and digests of its files and its pixels as far as they are wanted; says what is there.

    Of images that are not here the labels count where none is, or where none is wanted.
    """
    excluded = data.read_ids(options.exclude) if options.exclude else ()
    wanted = {"labels": options.labels, "exclude": excluded}
    table = data.load_table(options.name, root, missing="keep", **wanted)
    total, present = len(table.frame), table.frame["path"].notna()
    if not options.no_images and present.any() and not present.all():
        table = data.load_table(options.name, root, missing="drop", **wanted)
    digests, pixels, notes = (None, None, ()) if options.no_images else _decode(table)
    known, here = data.entry(options.name), int(present.sum())
    print(f"{options.name}\n  {known.title}\n  folder       {root or '-'}\n  licence      {known.licence}")
    groups = f"{len(table.frame):,} in {len(table.classes)} classes, {table.frame['group'].nunique():,} groups"
    print(f"  images       {groups}" + (f"; {here:,} of {total:,} are here" if here < total else ""))
    print("".join(f"  note         {note}\n" for note in (*table.notes, *notes)), end="")
    if known.paper:
        counted = f"The paper counts {known.stated:,} images, the official files {known.files:,}; {here:,} are here."
        print(f"  paper        {counted} {known.why}")
    return table, digests, pixels


def _decode(table: Table) -> tuple[list[str] | None, np.ndarray | None, tuple[str, ...]]:
    """The digests of the files that are here, "" for others, the pixels where all are here, and notes."""
    here = table.frame["path"].notna().to_numpy()
    if not here.any():
        return None, None, ()
    images = data.load_images(replace(table, frame=table.frame[here].reset_index(drop=True)), _SIZE)
    digests = np.full(len(here), "", dtype=object)
    digests[here] = images.digests
    return digests.tolist(), images.pixels if here.all() else None, images.notes


def _split(options: argparse.Namespace, table: Table) -> np.ndarray:
    """The part of each image; prints how it was chosen."""
    chosen = {"method": options.split, "fractions": tuple(options.fractions), "seed": options.seed}
    parts, shares = splits.split(table, **chosen), "/".join(f"{100 * share:g}" for share in options.fractions)
    fingerprint = split_files.fingerprint(table.frame["id"], parts)[:12]
    print(f"\nSplit: {options.split}, {shares}, seed {options.seed} (sha256 {fingerprint})")
    if options.write_split:
        split_files.write(options.write_split, table, parts, **chosen)
    return parts


def _sharing(name: str, met: pd.DataFrame, table: Table, parts: np.ndarray) -> str:
    if met.empty and hidden(table.name, [name]):
        return f"not checked  Nothing is in both, but {name} and {table.name} hold images of one archive, named anew."
    if met.empty:
        return "ok           No image, no file and no group is in both."
    rows, tested = table.frame["id"].isin(met["id"]).to_numpy(), parts == "test"
    kinds = {"image": "the same image", "file": "the same file", "group": "another image of the group"}
    of = ", ".join(f"{(met['shares'] == kind).sum():,} {words}" for kind, words in kinds.items())
    share = f"{len(met):,} of {len(rows):,} images ({100 * rows.mean():.1f} %)"
    tests = f"{(rows & tested).sum():,} of {tested.sum():,} test images ({100 * rows[tested].mean():.1f} %)"
    return (
        f"LEAK         {share} are in both: {of}. Whoever has trained on {name} has met {tests}. Such as "
        f"{', '.join(met['id'][:3])}."
    )
