# Every run and page of the parameter files as one graph, a job a run: on the cores of one machine, or over a cluster.
#
#   snakemake --cores 2 demo                               all that params/demo asks for; likewise open, paper, ...
#   snakemake --cores 2 results/demo/pair.ipynb            one page, with all that it needs
#   snakemake --cores 2 --dry-run open                     what there is to do
#   snakemake --workflow-profile profiles/slurm paper      a SLURM job a run
#
# What comes before what stands in the parameter files (medmerge/cli/plan.py). A record is
# never deleted and a finished run never repeated: `medmerge train` sees that it is finished, whatever Snakemake thinks.
import difflib
import functools
import os
import shlex
import sys
from pathlib import Path

import torch
from snakemake.exceptions import WorkflowError

from medmerge.cli import plan
from medmerge.study.places import home
from medmerge.study.params import ParameterError
from medmerge.study.records import RecordError

try:
    PLAN = plan.load()
except ParameterError as error:
    raise WorkflowError(str(error)) from None


def name(path):
    """A path as Snakemake knows it: from the project's folder, where it lies in it."""
    return os.path.relpath(path, home()) if path.is_relative_to(home()) else str(path)


RUNS = {name(folder): run for folder, run in PLAN.runs.items()}
PAGES = {name(path.with_suffix("")): page for path, page in PLAN.pages.items()}
TRACKS = sorted({path.parent.name for path in [*PLAN.files, *PLAN.unread] if path.parent.parent.name == "params"})
RESULTS = "|".join(sorted({p.results for p in PLAN.files.values()} | {"results"}))
MEDMERGE = f"{sys.executable} -m medmerge.cli.main"
GPU = int(config.get("gpu", torch.cuda.is_available()))  # GPUs a run; for a cluster its profile says so
GPUS = torch.cuda.device_count()


def find(known, wanted, what):
    """The run or page of a name, or an error that says which there are."""
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, 1)
    unread = "".join(f"\n{problem}" for problem in PLAN.unread.values())
    raise WorkflowError(f"no parameter file asks for the {what} {wanted}" + f"; is it {near[0]}?" * len(near) + unread)


@functools.cache
def startable(file):
    """Raise an error if what is left of a file needs something that is not here; a dry run says so and goes on."""
    try:
        problems = PLAN.missing(file)
    except RecordError as error:
        raise WorkflowError(str(error)) from None
    text = f"{file} cannot run here: " + "\n  ".join(problems)
    if problems and not workflow.dryrun:
        raise WorkflowError(text)
    if problems:
        print(text, file=sys.stderr)


def device(run):
    """Words before a command: which GPU of several a run takes, so that those side by side take different ones."""
    return f"CUDA_VISIBLE_DEVICES={list(RUNS).index(run) % GPUS} " if GPUS > 1 else ""


def records(job):
    """The records that a job waits for. They may be of any age: a checkout gives all files the time of the day."""
    return [ancient(name(folder / "run.json")) for folder in job.needs]


def before_run(wildcards):
    run = find(RUNS, wildcards.run, "run")
    if not run.finished:
        startable(run.file)
    return records(run)


def before_page(wildcards):
    page = find(PAGES, wildcards.page, "page")
    files = [page.file, page.notebook, *(folder / "run.json" for folder in page.needs)]
    if page.current and all(PLAN.runs[folder].finished for folder in page.needs):
        return [ancient(name(path)) for path in files]
    startable(page.file)
    return [name(path) for path in files]


def asked(track):
    """What a target such as `demo` stands for: the pages and runs of all files in params/demo."""
    if problems := [problem for path, problem in PLAN.unread.items() if path.parent.name == track]:
        raise WorkflowError("\n".join(problems))
    files = {path for path in PLAN.files if path.parent.name == track}
    pages = [f"{page}.ipynb" for page, job in PAGES.items() if job.file in files]
    return pages + [f"{run}/run.json" for run, job in RUNS.items() if job.file in files]


wildcard_constraints:
    run=rf"({RESULTS})/.+/seed\d+",
    page=rf"({RESULTS})/.+",


for track in sorted(TRACKS, key=lambda track: track != "demo"):

    rule:
        name:
            track
        localrule: True
        input:
            lambda wildcards, track=track: asked(track),


rule train:
    message:
        "train {wildcards.run}"
    input:
        before_run,
    output:
        update("{run}/run.json"),
    log:
        "logs/{run}.log",
    params:
        device=lambda wildcards: device(wildcards.run),
        words=lambda wildcards: shlex.join(plan.command(RUNS[wildcards.run])[1:]),
    resources:
        gpu=lambda wildcards: GPU * (RUNS[wildcards.run].p.device != "cpu"),
    shell:
        "{params.device}{MEDMERGE} {params.words} > {log:q} 2>&1"


rule page:
    message:
        "draw {wildcards.page}.ipynb"
    input:
        before_page,
    output:
        update("{page}.ipynb"),
    log:
        "logs/{page}.log",
    params:
        notebook=lambda wildcards: PAGES[wildcards.page].notebook,
        file=lambda wildcards: PAGES[wildcards.page].file,
    # A page that times steps has the machine to itself.
    threads: lambda wildcards: workflow.cores or 1 if PAGES[wildcards.page].p.cost_repeats else 1
    resources:
        gpu=lambda wildcards: GPU * (PAGES[wildcards.page].measures and PAGES[wildcards.page].p.device != "cpu"),
    shell:
        "OMP_NUM_THREADS=1 {MEDMERGE} run {params.notebook:q} {params.file:q} > {log:q} 2>&1"
