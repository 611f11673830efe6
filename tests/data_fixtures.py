"""What the tests of `medmerge.data` share: the real data's place, and small made-up datasets."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medmerge.data import Table, entry

REPOSITORY = Path(__file__).resolve().parents[1]


def official(name: str) -> dict[str, int]:
    """The rows of a dataset's official files; what a test changes holds in that test alone."""
    return entry(name).rows


def real(*parts: str) -> Path:
    """The path below the folder of real data. Skips the test without it, or fails it on CI."""
    root = Path(os.environ.get("MEDMERGE_DATA") or REPOSITORY.parent / "shared" / "data")
    path = root.joinpath(*parts)
    if not path.exists():
        reason = f"no real data at {path}; set MEDMERGE_DATA to the folder that has {'/'.join(parts) or 'it'}"
        pytest.fail(reason) if os.environ.get("MEDMERGE_CI") == "1" else pytest.skip(reason)
    return path


def altered(target: Path, name: str, file: str, change: Callable[[list[str]], list[str]]) -> Path:
    """Copies a real dataset's labels files, without images, and changes the lines of one of them."""
    for path in sorted(real(name).glob("*.csv")):
        shutil.copyfile(path, target / path.name)
    lines = (target / file).read_text(encoding="utf-8").splitlines()
    (target / file).write_text("\n".join(change(lines)) + "\n", encoding="utf-8")
    return target


def with_line(number: int, text: str) -> Callable[[list[str]], list[str]]:
    """For `altered`: replaces a line; the header is number 0."""
    return lambda lines: [*lines[:number], text, *lines[number + 1 :]]


def augmented(lines: list[str]) -> list[str]:
    """For `altered`: lists images over and over, in 100,000 rows."""
    return [lines[0], *(lines[1:] * 100)[:100_000]]


def write_lines(path: Path, header: str, lines: list[str]) -> Path:
    """Saves a small labels file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (20, 15)) -> Path:
    """Saves an image of random pixels, of a width and a height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_ham10k(root: Path, *, folder: str = "images", count: int = 14) -> Path:
    """A HAM10000 of a few images, two of each lesion, its classes in turn; counts as official."""
    official("ham10k")["HAM10000_metadata"] = count
    classes, lines = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), []
    for number in range(count):
        image = f"ISIC_{number:07d}"
        write_image(root / folder / f"{image}.jpg", number)
        lines.append(f"HAM_{number // 2:07d},{image},{classes[number // 2 % 7]},histo,50.0,male,back")
    write_lines(root / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", lines)
    return root


def write_isic2018(root: Path, counts: dict[str, int], *, own_folders: bool = True) -> Path:
    """ISIC-2018 task 3 as the archive has it: the parts ("Training", ...) with some images each, classes in turn."""
    start = 0
    for part, count in counts.items():
        name = f"ISIC2018_Task3_{part}_GroundTruth"
        images = [f"ISIC_{number:07d}" for number in range(start, start + count)]
        start += count
        lines = []
        for number, image in enumerate(images):
            write_image(root / f"ISIC2018_Task3_{part}_Input" / f"{image}.jpg", number)
            lines.append(f"{image}," + ",".join("1.0" if number % 7 == column else "0.0" for column in range(7)))
        write_lines(root / (name if own_folders else ".") / f"{name}.csv", "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC", lines)
        official("ham10k")[name] = count
        if part == "Training":
            groups = [f"{image},HAM_{number // 2:07d},histopathology" for number, image in enumerate(images)]
            grouping = "ISIC2018_Task3_Training_LesionGroupings"
            write_lines(root / f"{grouping}.csv", "image,lesion_id,diagnosis_confirm_type", groups)
            official("ham10k")[grouping] = count
    return root


def write_eyepacs(root: Path, train: dict[str, int], test: dict[str, int]) -> Path:
    """An EyePACS with the grade of each image ("10_left")."""
    for part, grades in (("train", train), ("test", test)):
        for number, image in enumerate(grades):
            write_image(root / part / f"{image}.jpeg", number)
    write_lines(root / "trainLabels.csv", "image,level", [f"{image},{grade}" for image, grade in train.items()])
    solution = [f"{image},{grade},Private" for image, grade in test.items()]
    write_lines(root / "retinopathy_solution.csv", "image,level,Usage", solution)
    official("eyepacs").update(trainLabels=len(train), retinopathy_solution=len(test))
    return root


def write_aptos2019(root: Path, grades: dict[str, int], folder: str = "train_images") -> Path:
    """An APTOS 2019 with the grade of each image, and a test image without one."""
    for number, image in enumerate(grades):
        write_image(root / folder / f"{image}.png", number)
    write_lines(root / "train.csv", "id_code,diagnosis", [f"{image},{grade}" for image, grade in grades.items()])
    write_image(root / "test_images" / "0005cfc8afb6.png")
    write_lines(root / "test.csv", "id_code", ["0005cfc8afb6"])
    official("aptos2019")["train"] = len(grades)
    return root


def write_isic2019(root: Path, labels: dict[str, str], lesions: dict[str, str] | None = None) -> Path:
    """An ISIC-2019 with the class of each image, and its lesion where it has one; counts as the official one."""
    official("isic2019").update(dict.fromkeys(official("isic2019"), len(labels)))
    columns = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
    truth, metadata = [], []
    for number, (image, label) in enumerate(labels.items()):
        write_image(root / "ISIC_2019_Training_Input" / f"{image}.jpg", number)
        truth.append(image + "," + ",".join("1.0" if column == label else "0.0" for column in columns))
        metadata.append(f"{image},50,back,{(lesions or {}).get(image, '')},female")
    write_lines(root / "ISIC_2019_Training_GroundTruth.csv", f"image,{','.join(columns)}", truth)
    header = "image,age_approx,anatom_site_general,lesion_id,gender"
    write_lines(root / "ISIC_2019_Training_Metadata.csv", header, metadata)
    return root


def write_csv(root: Path, text: str, images: tuple[str, ...] = ()) -> str:
    """A folder of images with a labels file; returns the labels file's path."""
    for number, image in enumerate(images):
        write_image(root / image, number)
    path = root / "labels.csv"
    path.write_text(text)
    return str(path)


def made_table(labels, groups=None, official=None, ids=None) -> Table:
    """A table without images, for splitting."""
    count = len(labels)
    ids = [f"image{row:05d}" for row in range(count)] if ids is None else ids
    frame = pd.DataFrame(
        {
            "id": ids,
            "path": ids,
            "label": np.asarray(labels, dtype=np.int64),
            "group": [str(group) for group in groups] if groups is not None else ids,
            "split": pd.Series([None] * count if official is None else official, dtype=object),
        }
    )
    return Table("made", frame, tuple(f"class{label}" for label in range(int(max(labels)) + 1)))
