"""``medmerge data``: what is in a dataset's folder, how a split deals it out, and what that hides."""

import argparse
import os
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data import catalogue, load_images, load_table, near, split_files, splits
from medmerge.data.audit import Audit, audit, shared
from medmerge.data.base import DataError, Table
from medmerge.data.overlap import hidden
from medmerge.data.paper_numbers import PAPER_NUMBERS
from medmerge.data.reading import read_rows

WIDTH = 100
_SIZE = 64
_LABEL = 13
_DESCRIPTION = """Show what is in a dataset's folder and what is missing, compare it with the paper's numbers, split it
and look for what the split hides. Nothing is written into ROOT. The exit status is 0, whatever is found, or 1 with
--strict where test images have been met in training; 2 where the data cannot be read. Without NAME, the datasets are
listed, with their licences and folders."""


def add(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the command's options to its parser."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a dataset; without one, or with `list`, all are listed"
    )
    parser.add_argument("root", nargs="?", metavar="ROOT", help="its folder, from here or from $MEDMERGE_DATA")
    parser.add_argument("--labels", metavar="FILE", help="the labels of the dataset csv")
    parser.add_argument(
        "--missing",
        choices=("drop", "keep", "error"),
        default="drop",
        help="images that are not there: leave them out (drop, unless none is there), keep their labels, or stop",
    )
    how = parser.add_argument_group("the split")
    how.add_argument("--split", choices=splits.METHODS, default="grouped", help="how it is drawn (grouped)")
    how.add_argument("--fractions", nargs=3, type=float, default=(0.6, 0.2, 0.2), metavar=("TRAIN", "VAL", "TEST"))
    how.add_argument("--seed", type=int, default=0, help="seed of the split (0)")
    how.add_argument("--group-identical", action="store_true", help="keep byte-identical files together")
    how.add_argument("--split-file", metavar="FILE.csv", help="read the split instead of drawing it")
    how.add_argument("--write-split", metavar="FILE.csv", help="write the split down")
    found = parser.add_argument_group("the audit")
    found.add_argument("--against", nargs="+", metavar=("NAME", "ROOT"), help="a source: does it share images?")
    found.add_argument("--no-images", action="store_true", help="only labels and groups; no image is decoded")
    found.add_argument(
        "--distance", type=int, default=near.MAX_DISTANCE, help="bits in which near-duplicates may differ (32 of 256)"
    )
    found.add_argument("--digests", metavar="FILE.csv", help="id,sha256 of files that are not here")
    found.add_argument("--out", metavar="DIR", help="write the tables of the audit as CSV files")
    found.add_argument("--strict", action="store_true", help="exit with 1 where there is a leak")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if options.name in (None, "list"):
        print("\n\n".join("\n".join(_entry(known)) for known in catalogue.CATALOGUE))
        return 0
    root = _folder(options.root)
    for written in (options.write_split, options.out):
        _check_outside(written, root)
        for other in (options.against or [])[1:]:
            _check_outside(written, _folder(other))
    table, digests, pixels = _read(options, root)
    print("\n".join(_contents(options.name, root, table)))
    if options.group_identical:
        if digests is None:
            raise DataError("--group-identical needs the images, or --digests FILE.csv with the columns id,sha256")
        table = splits.join_identical(table, digests)
    parts, title = _split(options, table)
    print("\n".join(["", *textwrap.wrap(title, WIDTH), *_counts(table, parts)]))
    found = audit(table, parts, digests=digests, pixels=pixels, distance=options.distance)
    print("\n".join(["", "What the split hides", *_findings(found.summary)]))
    met = None
    if options.against:
        met = _met(options, table, digests)
        print("\n".join(["", f"Shared with {options.against[0]}", *_sharing(options.against[0], met, table, parts)]))
    if options.out:
        _write(Path(options.out).expanduser(), found, met)
    leaks = (found.summary["severity"] == "leak").any() or (met is not None and len(met) > 0)
    return 1 if options.strict and leaks else 0


def _folder(given: str | None) -> Path | None:
    """The dataset's folder: as given, from here, or else from ``$MEDMERGE_DATA``."""
    if given is None:
        return None
    here = Path(given).expanduser()
    elsewhere = Path(os.environ.get("MEDMERGE_DATA", ""), given)
    return elsewhere if not here.exists() and elsewhere.exists() else here


def _check_outside(written: str | None, root: Path | None) -> None:
    if written and root and Path(written).expanduser().resolve().is_relative_to(root.resolve()):
        raise DataError(f"{written} is in {root}, which is only read; name a place outside of it")


def _read(options: argparse.Namespace, root: Path | None) -> tuple[Table, list[str] | None, np.ndarray | None]:
    """The table, with the digests of its files and its pixels as far as they are here and wanted."""
    wanted = {"root": root, "labels": options.labels}
    table = load_table(options.name, **wanted, missing="error" if options.missing == "error" else "keep")
    here = table.frame["path"].notna()
    if options.missing == "drop" and here.any() and not here.all():
        table = load_table(options.name, **wanted, missing="drop")
    digests, pixels = (None, None) if options.no_images else _decode(table)
    if options.digests:
        rows = read_rows(Path(options.digests).expanduser(), ("id", "sha256"))
        known = dict(zip(rows["id"], rows["sha256"], strict=True))
        own = digests or [""] * len(table.frame)
        digests = [digest or known.get(image, "") for image, digest in zip(table.frame["id"], own, strict=True)]
    return table, digests, pixels


def _decode(table: Table) -> tuple[list[str] | None, np.ndarray | None]:
    """The digests of the files that are here, "" for others, and the pixels where all are here."""
    here = table.frame["path"].notna().to_numpy()
    if not here.any():
        return None, None
    images = load_images(replace(table, frame=table.frame[here].reset_index(drop=True)), _SIZE)
    digests = np.full(len(here), "", dtype=object)
    digests[here] = images.digests
    return digests.tolist(), images.pixels if here.all() else None


def _split(options: argparse.Namespace, table: Table) -> tuple[np.ndarray, str]:
    """The part of each image, and a line that says how it was chosen."""
    chosen = {"method": options.split, "fractions": tuple(options.fractions), "seed": options.seed}
    if options.split_file:
        parts, how = split_files.apply(table, options.split_file), f"from {options.split_file}"
    else:
        parts = splits.split(table, **chosen)
        shares = "/".join(f"{100 * share:g}" for share in options.fractions)
        given = options.split == "official" and (table.frame["split"] == "val").any()
        how = options.split if given else f"{options.split}, {shares}, seed {options.seed}"
    mark = split_files.fingerprint(table.frame["id"], parts)
    if options.write_split:
        given = split_files.read(options.split_file) if options.split_file else None
        if given:
            chosen = {"method": given.method, "fractions": given.fractions, "seed": given.seed}
        split_files.write(options.write_split, table, parts, **chosen)
    return parts, f"Split: {how} (sha256 {mark[:12]})"


def _entry(known: catalogue.Entry) -> list[str]:
    paper = f" ({known.paper} in the paper)" if known.paper else ""
    lines = [known.name + paper, *_paragraph(known.title), *_item("licence", known.licence)]
    if known.url:
        lines += _item("from", known.url)
    for number, line in enumerate(known.tree.splitlines()):
        lines.append(f"  {'folder' if not number else '':{_LABEL}}{line}")
    return lines


def _contents(name: str, root: Path | None, table: Table) -> list[str]:
    """What is there, what is missing, and what the paper says."""
    known, paper = catalogue.entry(name), PAPER_NUMBERS.get(name)
    here, total = int(table.frame["path"].notna().sum()), len(table.frame)
    lines = [name, *(_paragraph(known.title) if known else [])]
    lines += [*_item("folder", str(root))] if root else []
    lines += _item("licence", known.licence) if known else []
    lines += _item("images", f"{total:,} in {len(table.classes)} classes, {table.frame['group'].nunique():,} groups")
    if here < total:
        what = "none of them is here: labels only" if not here else f"{here:,} of them are here"
        lines += _item("", what)
    for number, note in enumerate(table.notes):
        lines += _item("" if number else "notes", note)
    if paper:
        files = f"the official files {paper.files:,}; {here:,} are here"
        lines += _item("paper", f"The paper counts {paper.stated:,} images, {files}. {paper.why}")
    return lines


def _counts(table: Table, parts: np.ndarray) -> list[str]:
    counts = splits.count(table, parts)
    total = splits.sizes(parts)
    rows = [*zip(counts.index, counts.to_numpy().tolist(), strict=True), ("images", total.tolist())]
    lines = [(name, *(f"{number:,}" for number in (*numbers, sum(numbers)))) for name, numbers in rows]
    shares = [f"{100 * share:.1f} %" for share in total / len(parts)]
    width = max(len(name) for name, *_ in lines)
    return [
        f"  {name:{width}}" + "".join(f"{cell:>10}" for cell in cells)
        for name, *cells in [("", *splits.SPLITS, "all"), *lines, ("", *shares)]
    ]


def _findings(summary: pd.DataFrame) -> list[str]:
    lines = []
    for finding in summary.itertuples():
        lines += _item(finding.severity.replace("leak", "LEAK"), finding.sentence)
        if finding.examples:
            lines += _item("", f"such as {finding.examples}")
    return lines


def _met(options: argparse.Namespace, table: Table, digests: Sequence[str] | None) -> pd.DataFrame:
    """The images of the table that the dataset of --against has too."""
    name, *rest = options.against
    if len(rest) > 1:
        raise DataError(f"--against takes a dataset and its folder, not {' '.join(options.against)}")
    other = load_table(name, _folder(rest[0]) if rest else None, missing="keep")
    theirs = None if options.no_images else _decode(other)[0]
    return shared(other, table, theirs, digests)


def _sharing(name: str, met: pd.DataFrame, table: Table, parts: np.ndarray) -> list[str]:
    if met.empty and hidden(table.name, [name]):
        anew = f"Nothing is found in both, but {name} and {table.name} hold images of one archive, named anew."
        return _item("not checked", anew)
    if met.empty:
        return _item("ok", "No image, no file and no group is in both.")
    rows = table.frame["id"].isin(met["id"]).to_numpy()
    kinds = {"image": "the same image", "file": "the same file", "group": "another image of the group"}
    of = ", ".join(f"{(met['shares'] == kind).sum():,} {words}" for kind, words in kinds.items())
    tested = parts == "test"
    sentence = (
        f"{len(met):,} of {len(rows):,} images ({100 * rows.mean():.1f} %) are in both: {of}. Whoever has trained on "
        f"{name} has met {(rows & tested).sum():,} of {tested.sum():,} test images ({100 * rows[tested].mean():.1f} %)."
    )
    return [*_item("LEAK", sentence), *_item("", f"such as {', '.join(met['id'][:3])}")]


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _item(label: str, text: str) -> list[str]:
    """A labelled paragraph."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {label:{_LABEL}}",
        subsequent_indent=" " * (2 + _LABEL),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _write(folder: Path, found: Audit, met: pd.DataFrame | None) -> None:
    identical = found.identical.assign(
        **{name: found.identical[name].map("; ".join) for name in ("ids", "labels", "parts")}
    )
    tables = {
        "summary": found.summary,
        "counts": found.counts.rename_axis("class").reset_index(),
        "straddling": found.straddling,
        "identical": identical,
        "near": found.near,
        **({} if met is None else {"shared": met}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
    except OSError as error:
        raise DataError(f"The tables cannot be written to {folder}: {error}") from error
