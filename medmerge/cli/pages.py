"""``medmerge run`` and ``report``: a notebook executed with a parameter file, and made fit to publish.

A page tells no times, no places of the machine and no random names: drawn again from the same records, it is the same
file.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import logging
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import psutil
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from medmerge import files
from medmerge.cli import plan, runs
from medmerge.study import definitions, notebooks
from medmerge.study.params import ParameterError, Parameters, load_yaml
from medmerge.study.places import home, short

_KILLED = (
    "the notebook's kernel was killed. If the system did so because memory ran out, lower batch_size or image_size; "
    "what is finished is kept"
)


def add(parser: argparse.ArgumentParser, name: str) -> None:
    """Add a command's options to its parser."""
    if name == "report":
        parser.add_argument("params", type=Path, nargs="+", metavar="PARAMS.yaml")
        parser.set_defaults(command=_report)
        return
    parser.add_argument("notebook", type=Path, nargs="?", metavar="NOTEBOOK.ipynb", help="that of the file by default")
    parser.add_argument("params", type=Path, metavar="PARAMS.yaml")
    parser.add_argument("--output", type=Path, help="the executed notebook (results/TRACK/PARAMS.ipynb)")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    given = options.notebook and options.notebook.absolute()
    asked = options.output and options.output.absolute()
    with runs.project(options.params) as params:
        p = notebooks.parameters(params, given)
        if not p.notebook:
            raise ParameterError(f"{params} names no notebook: medmerge run notebooks/pair.ipynb {params}")
        notebook, output = given or notebooks.notebook(p), asked or notebooks.output(p, params)
        _check_owner(output, params, p)
        notebooks.defaults(notebook)
        runs.left(p)
        if execute(notebook, params, p, output):
            return 1
        print(f"{output}\nTo look at it: jupyter lab {output}")
    return 0


def _check_owner(output: Path, params: Path, p: Parameters) -> None:
    """Refuse to write the page of another parameter file or study.

    Raises:
        ParameterError: with what can be done.
    """
    there, own = notebooks.noted(output), notebooks.whose(params, p)
    other = [f"{name} {there[name]}, not {own[name]}" for name in own if there.get(name, own[name]) != own[name]]
    if "study" in there and other:  # pages did not always note their study
        raise ParameterError(
            f"{output} is another's page ({'; '.join(other)}): rename {params}, give --output, or move that page away"
        )


def _report(options: argparse.Namespace) -> int:
    asked, status = sorted({path.resolve() for path in options.params}), 0
    with contextlib.chdir(home(asked[0].parent)):
        pages = [page for page in plan.load(asked).drawable() if page.file.resolve() in asked]
        if not pages:
            raise ParameterError("no page's records are all here; `medmerge check` lists what is to run")
        for page in pages:
            status = max(status, execute(page.notebook, page.file, page.p, page.path))
            print(page.path)
    return status


def execute(notebook: Path, params: Path, p: Parameters, output: Path) -> int:
    """Execute a notebook with the parameters of a file and publish it; returns the exit status.

    Args:
        p: the file's parameters, checked.
        output: where the page goes. If a cell fails it stays as it is, and ``<name>.failed.ipynb`` shows where.
    """
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    logging.getLogger("papermill").setLevel("ERROR")  # it warns of each parameter that the notebook's cell leaves out
    with files.locked(output.with_name(f".{output.name}.lock"), str(output)), tempfile.TemporaryDirectory() as folder:
        executed = Path(folder, output.name)
        call = functools.partial(
            papermill.execute_notebook,
            notebook,
            executed,
            load_yaml(params),
            kernel_name="python3",
            language="python",
            cwd=str(home()),
            log_output=False,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            shutdown_kernel="immediate",  # everything is written by then; asking politely interrupts it, loudly
        )
        try:
            _interruptible(call)
        except (PapermillExecutionError, DeadKernelError) as error:
            files.write(failed, executed.read_bytes())
            reason = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else _KILLED
            print(f"medmerge: {reason}\nIt stopped in {failed}", file=sys.stderr)
            return 1
        page = nbformat.read(executed, 4)
        page.cells.append(nbformat.v4.new_markdown_cell(_again(notebook, params, p)))
        _publish(page, output, notebooks.origin(params, notebook, p), p.title)
    failed.unlink(missing_ok=True)
    return 0


def _interruptible(execute: Callable[[], object]) -> None:
    """Execute a notebook in a thread, and end its kernel when this process is interrupted or asked to end.

    In the main thread nbclient would take these signals for itself, and nobody would know of them.
    """

    def work() -> None:
        try:
            execute()
        finally:
            ensure_event_loop().close()  # which papermill opened for this thread

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        try:
            done.result()
        except (KeyboardInterrupt, SystemExit):
            for child in psutil.Process().children(recursive=True):
                child.kill()
            raise


def _again(notebook: Path, params: Path, p: Parameters) -> str:
    """The last section of a page: the commands that make it, and one run of it, again."""
    names = [short(notebook), short(params)]
    lines = ["## Run it again", "", "```bash", shlex.join(["medmerge", "run", *names]), "```"]
    if notebooks.kind(p).runs:
        row = definitions.rows(p)[-1].name
        one = shlex.join(["medmerge", "rerun", names[1], "--row", row, "--seed", str(p.seeds[0])])
        lines += ["", "One row and seed, by the name of its folder, held against its record:"]
        lines += ["", "```bash", one, "```"]
    return "\n".join(lines)


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
    likewise = []  # what hides the defaults hides a run's own values
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        tags = cell.metadata.get("tags", [])
        likewise += [tag for tag in tags if "parameters" in tags and tag != "parameters"]
        if "injected-parameters" in tags:
            tags += likewise
        if "hide-output" in tags:  # what a run prints as it trains, which a page that only reads the record has not
            cell.outputs = []
        if figure := cell.metadata.get("mystnb", {}).get("figure"):
            figure["name"] += f"-{output.parent.name}-{output.stem}"  # the book has a page a track and file
        outputs = cell.get("outputs", [])
        tables = sum("text/html" in shown.get("data", {}) for shown in outputs)
        for place, shown in enumerate(outputs):
            _settle(shown.get("data", {}), f"{number}_{place}" if tables > 1 else str(number))
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


def _settle(data: dict, number: str) -> None:
    """Take memory addresses out of an output, and give a styled table's random id its place in the notebook."""
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
    if "text/html" in data:
        data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}(?=[_ \"])", f"T_{number}", data["text/html"])
