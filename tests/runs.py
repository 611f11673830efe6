"""Runs in forks of this process, one at a time: an order comes in, a process id and then a status go out, a line each.

It is not imported by tests but started by them; see `tests/test_interrupted.py`.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from medmerge import Parameters, checkpoints
from medmerge.study import run as study

torch.set_num_threads(1)


def count_and_kill(written: int, write: int | None, at: str | None) -> None:
    """Report every file that is moved into place on the pipe ``written``, and end this process at one of them."""
    replace, count = Path.replace, [0]

    def moved(path: Path, target: Path) -> Path:
        here = count[0] == write
        if here and at == "content":
            os.truncate(path, path.stat().st_size // 2)
        if here and at != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = replace(path, target)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        os.write(written, b".")
        return result

    Path.replace = moved


def child(order: dict, written: int) -> None:
    """Never returns."""
    try:
        os.dup2(2, 1)  # what is printed is not an answer
        os.chdir(order["folder"])
        os.environ["MEDMERGE_CACHE"] = order["cache"]
        checkpoints.SHARE = order.get("share", checkpoints.SHARE)
        count_and_kill(written, order.get("write"), order.get("at"))
        study.run(Parameters.parse(order["parameters"]))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    os.environ.pop("MEDMERGE_DATA", None)
    print("ready", flush=True)
    for line in sys.stdin:
        reader, writer = os.pipe()
        if not (process := os.fork()):
            child(json.loads(line), writer)
        os.close(writer)
        print(process, flush=True)
        written = 0
        while got := os.read(reader, 4096):
            written += len(got)
        os.close(reader)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), written, flush=True)


if __name__ == "__main__":
    main()
