"""What a step, an epoch and a study cost, measured here and now: ratios within one run.

    python -m benchmarks                     all parts, an hour (`make bench`)
    python -m benchmarks step pipeline       some of them
    python -m benchmarks --small             a small case of everything, in two minutes, to see that it works

Prints a table a part and writes it, with a description of the machine, to benchmarks/PART.json (PART-cuda.json on a
GPU). The book's chapter on speed (`notebooks/speed.ipynb`) is drawn from these files.
"""

import argparse
import importlib
import json
import time
from pathlib import Path

import pandas as pd

from benchmarks import turns
from medmerge import devices, files
from medmerge.study.measured import provenance

PARTS = ("step", "pipeline", "row")
HERE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--device", choices=devices.DEVICES, default="auto")
    parser.add_argument("--small", action="store_true", help="small cases; nothing is written unless --out is given")
    parser.add_argument("--out", type=Path, help="folder to write to, instead of benchmarks/")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    try:
        device = devices.choose_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    out = options.out or (None if options.small else HERE)
    for part in options.parts or PARTS:
        described, started = turns.machine(device), time.perf_counter()
        rows = list(importlib.import_module(f"benchmarks.{part}").measure(device, options.small))
        print(f"\n{part}: {described['device']}\n{pd.DataFrame(rows).to_string(index=False, na_rep='–')}\n", flush=True)
        seconds = round(time.perf_counter() - started)
        if out:
            name = f"{part}.json" if device.type == "cpu" else f"{part}-{device.type}.json"
            content = {"machine": described, "seconds": seconds, "rows": rows, "provenance": provenance()}
            files.write(out / name, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
