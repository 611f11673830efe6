"""A notebook executed with a parameter file, and made fit to publish: no times, no places, no random names."""

import functools
import os
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import psutil
from jupyter_client import AsyncKernelManager, KernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from medmerge import files
from medmerge.cli import gpus, plan
from medmerge.cli.jobs import Companion
from medmerge.study import definitions
from medmerge.study import notebooks as pages
from medmerge.study import run as study
from medmerge.study.params import Parameters, load_yaml


def run(notebook: Path, params: Path, p: Parameters, output: Path, companion: Companion | None = None) -> int:
    """Execute a notebook with the parameters of a file and publish it; returns the exit status.

    Args:
        p: the file's parameters, checked.
        output: where the page goes. If a cell fails it stays as it is, and ``<name>.failed.ipynb`` shows where.
        companion: the process for the notebook's kernel, which runs :func:`medmerge.cli.notebook_kernels.serve`.
    """
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    with (
        files.locked(output.with_name(f".{output.name}.lock"), str(output)),
        gpus.claimed(p.device),
        tempfile.TemporaryDirectory() as folder,
    ):
        executed = Path(folder, output.name)
        execute = functools.partial(
            papermill.execute_notebook,
            notebook,
            executed,
            load_yaml(params),
            kernel_name="python3",
            language="python",
            cwd=str(study.home()),
            kernel_manager_class=_manager(companion),
            log_output=False,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            shutdown_kernel="immediate",  # everything is written by then; asking politely interrupts it, loudly
        )
        try:
            _interruptible(execute)
        except (PapermillExecutionError, DeadKernelError) as error:
            files.write(failed, executed.read_bytes())
            print(f"medmerge: {_reason(error)}\nIt stopped in {failed}", file=sys.stderr)
            return 1
        page = nbformat.read(executed, 4)
        page.cells.append(nbformat.v4.new_markdown_cell(_again(notebook, params, p)))
        _publish(page, output, pages.origin(params, notebook, p), p.title)
    failed.unlink(missing_ok=True)
    print(output)
    return 0


def _manager(companion: Companion | None) -> type[KernelManager]:
    if companion is None:
        return AsyncKernelManager
    from medmerge.cli import notebook_kernels  # it loads ipykernel, which has no use in this process else

    return notebook_kernels.managed(companion)


def _interruptible(execute: Callable[[], object]) -> None:
    """Execute a notebook in a thread, and end its kernel when this process is interrupted or asked to end.

    In the main thread nbclient would take these signals for itself, and nobody would know of them.
    """
    errors = []

    def work() -> None:
        try:
            execute()
        except BaseException as error:
            errors.append(error)
        finally:
            ensure_event_loop().close()  # which papermill opened for this thread

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(1)
    except BaseException:
        for child in psutil.Process(os.getpid()).children(recursive=True):
            child.kill()
        thread.join(30)
        raise
    if errors:
        raise errors[0]


def _reason(error: PapermillExecutionError | DeadKernelError) -> str:
    """Why a notebook failed, in a line or two."""
    if isinstance(error, DeadKernelError):
        return (
            "the notebook's kernel was killed. If the system did so because memory ran out, lower batch_size or "
            "image_size; what is finished is kept"
        )
    return f"{error.ename}: {error.evalue}"


def _again(notebook: Path, params: Path, p: Parameters) -> str:
    """The last section of a page: the commands that make it, and one run of it, again."""
    names = [_short(notebook), _short(params)]
    lines = ["## Run it again", "", "```bash", shlex.join(["medmerge", "run", *names]), "```"]
    if plan.has_runs(p):
        row = definitions.rows(p)[-1].name
        one = shlex.join(["medmerge", "rerun", names[1], "--row", row, "--seed", str(p.seeds[0])])
        lines += [
            "",
            "One row and seed, by the name of its folder, held against its record:",
            "",
            "```bash",
            one,
            "```",
        ]
    return "\n".join(lines)


def _short(path: Path) -> str:
    """A path from the project's folder, else its name: a page names no place of the machine that drew it."""
    home, whole = study.home().resolve(), path.resolve()
    return str(whole.relative_to(home)) if whole.is_relative_to(home) else path.name


def _publish(notebook: nbformat.NotebookNode, output: Path, origin: dict[str, str], title: str) -> None:
    """Write an executed notebook under its title, without times and durations; note what it came from."""
    del notebook.metadata["papermill"]
    _without_widgets(notebook)
    if title:
        first = notebook.cells[0]
        if first.cell_type == "markdown" and first.source.startswith("# "):
            first.source = "\n".join([f"# {title}", *first.source.split("\n")[1:]])
        else:
            notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {title}"))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            tags.append("hide-input")
        if "hide-output" in tags:  # what a run prints as it trains, which a page that only reads the record has not
            cell.outputs = []
        if figure := cell.metadata.get("mystnb", {}).get("figure"):
            figure["name"] += f"-{output.parent.name}-{output.stem}"  # the book has a page a track and file
        for shown in cell.get("outputs", []):
            _settle(shown.get("data", {}), number)
    notebook.metadata["medmerge"] = origin
    files.write(output, nbformat.writes(notebook).rstrip("\n") + "\n")


def _without_widgets(notebook: nbformat.NotebookNode) -> None:
    """Keep the HTML of what is shown live as a widget: a page has no kernel, and a widget's ids are random."""
    view = "application/vnd.jupyter.widget-view+json"
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    for data in shown:
        if "text/html" in data:
            data.pop(view, None)
    if not any(view in data for data in shown):
        notebook.metadata.pop("widgets", None)


def _settle(data: dict, number: int) -> None:
    """Take memory addresses out of an output, and give a styled table's random id the cell's number."""
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
    if "text/html" in data:
        data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}(?=[_ \"])", f"T_{number}", data["text/html"])
