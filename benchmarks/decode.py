"""Images decoded and resized per second: `load_images` against a plain loop with Pillow, in the same run.

    python benchmarks/decode.py
    python benchmarks/decode.py --count 2000 --side 1024 --size 224 --workers 4

Both read the same JPEG files: generated ones, and those of HAM10000 if MEDMERGE_DATA names a folder that has
`ham10000/images`. `load_images` also hashes each file and writes the pixels to its cache; the loop only fills an
array. Each is timed in turns, and the best of its repeats is shown; the processor's time says the same on a machine
that does other work meanwhile.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medmerge.data import Table, load_images


def main() -> None:
    arguments = parse_arguments()
    print(
        f"{arguments.count:,} images to {arguments.size} px, {arguments.workers} threads, best of {arguments.repeats}"
    )
    with tempfile.TemporaryDirectory(prefix="medmerge-decode-") as folder:
        generated = generate(Path(folder, "images"), arguments.count, arguments.side)
        report(f"generated JPEG, {arguments.side} x {arguments.side}", generated, arguments)
        real = Path(os.environ.get("MEDMERGE_DATA", ""), "ham10000", "images")
        if os.environ.get("MEDMERGE_DATA") and real.is_dir():
            report("HAM10000", sorted(real.glob("*.jpg"))[: arguments.count], arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="number of images")
    parser.add_argument("--side", type=int, default=600, help="side of the generated images, in pixels")
    parser.add_argument("--size", type=int, default=224, help="side of the decoded images, in pixels")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count()), help="threads of load_images")
    parser.add_argument("--repeats", type=int, default=3, help="times that each is run")
    return parser.parse_args()


def generate(folder: Path, count: int, side: int) -> list[Path]:
    """Saves photographs of smooth noise, about as hard to decode as real ones."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for path in paths:
        noise = Image.fromarray(rng.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3), dtype=np.uint8))
        noise.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def report(name: str, paths: list[Path], arguments: argparse.Namespace) -> None:
    """Times both ways on the same files and prints what they reach."""
    runs: dict[str, Callable[[], np.ndarray]] = {
        "plain Pillow loop": lambda: plain_loop(paths, arguments.size),
        "load_images": lambda: through_cache(paths, arguments.size, arguments.workers),
        "load_images, 1 thread": lambda: through_cache(paths, arguments.size, 1),
    }
    seconds, processor = dict.fromkeys(runs, float("inf")), dict.fromkeys(runs, float("inf"))
    results = {}
    for _ in range(arguments.repeats):
        for label, run in runs.items():
            start, used = time.perf_counter(), time.process_time()
            results[label] = run()
            seconds[label] = min(seconds[label], time.perf_counter() - start)
            processor[label] = min(processor[label], time.process_time() - used)
    first = next(iter(results.values()))
    if not all((pixels == first).all() for pixels in results.values()):
        raise SystemExit(f"{name}: the ways differ in their pixels")
    print(f"{name}: {len(paths):,} images, the same pixels in each way")
    for label, taken in seconds.items():
        print(
            f"  {label:24}{len(paths) / taken:9,.0f} images/s   {seconds['plain Pillow loop'] / taken:5.2f} x"
            f"   {1000 * processor[label] / len(paths):6.2f} ms of processor an image"
        )


def plain_loop(paths: list[Path], size: int) -> np.ndarray:
    pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            pixels[row] = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    return pixels


def through_cache(paths: list[Path], size: int, workers: int) -> np.ndarray:
    """Decodes into a cache that is empty at first and removed afterwards."""
    ids = [path.stem for path in paths]
    frame = pd.DataFrame({"id": ids, "path": [str(path) for path in paths], "label": 0, "group": ids, "split": None})
    with tempfile.TemporaryDirectory(prefix="medmerge-decode-") as cache:
        images = load_images(Table("benchmark", frame, ("image",)), size, cache=Path(cache), workers=workers)
        return np.array(images.pixels)


if __name__ == "__main__":
    main()
