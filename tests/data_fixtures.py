"""What the tests of `medmerge.data` share: the real data's place, and small made-up datasets."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medmerge.data import Table, load_images, load_table

REPOSITORY = Path(__file__).resolve().parents[1]


def real(*parts: str) -> Path:
    """The path below the folder of real data. Skips the test without it, or fails it on CI."""
    root = Path(os.environ.get("MEDMERGE_DATA") or REPOSITORY.parent / "shared" / "data")
    path = root.joinpath(*parts)
    if not path.exists():
        reason = f"no real data at {path}; set MEDMERGE_DATA to the folder that has {'/'.join(parts) or 'it'}"
        pytest.fail(reason) if os.environ.get("MEDMERGE_CI") == "1" else pytest.skip(reason)
    return path


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (20, 15)) -> Path:
    """Saves an image of random pixels, of a width and a height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_ham10k(root: Path, *, folder: str = "images", count: int = 14) -> Path:
    """A HAM10000 of a few images, two of each lesion, its classes in turn."""
    classes = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for number in range(count):
        image = f"ISIC_{number:07d}"
        write_image(root / folder / f"{image}.jpg", number)
        lines.append(f"HAM_{number // 2:07d},{image},{classes[number // 2 % 7]},histo,50.0,male,back")
    (root / "HAM10000_metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def write_isic2019(root: Path, labels: dict[str, str], lesions: dict[str, str] | None = None) -> Path:
    """An ISIC-2019 with the class of each image, and its lesion where it has one."""
    columns = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
    truth, metadata = (
        ["image," + ",".join(columns)],
        ["image,age_approx,anatom_site_general,lesion_id,gender"],
    )
    for number, (image, label) in enumerate(labels.items()):
        write_image(root / "ISIC_2019_Training_Input" / f"{image}.jpg", number)
        truth.append(image + "," + ",".join("1.0" if column == label else "0.0" for column in columns))
        metadata.append(f"{image},50,back,{(lesions or {}).get(image, '')},female")
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join(truth) + "\n")
    (root / "ISIC_2019_Training_Metadata.csv").write_text("\n".join(metadata) + "\n")
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


def load_at_once(barrier, results, root: str, cache: str) -> None:
    """In a process of its own: waits for the others, then loads the same images as they do."""
    table = load_table("ham10k", root)
    barrier.wait(timeout=120)
    pixels, fingerprint = load_images(table, 32, cache=Path(cache), workers=1)
    results.put((fingerprint, int(pixels.astype(np.int64).sum())))
