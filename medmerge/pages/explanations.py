"""What the plan does not ask: MedMerge against rivals and controls, and what an overlap is worth."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from medmerge.data import split_files
from medmerge.pages.claims import Pair, parameters
from medmerge.pages.contrast import ALPHA, Rows, by_row, contrast, over_seeds
from medmerge.pages.typeset import fill
from medmerge.study import definitions, names
from medmerge.study.records import Record
from medmerge.study.run import finished

FURTHER = tuple(f"skin-{kind}-mobilenet" for kind in ("rivals", "reestimated", "controls", "granularity"))
"""Parameter files whose rows are held against MedMerge. They are of one pair, and share its split and its MedMerge."""

LEAKY_SOURCE = "source-ham10k-leaky"
"""Parameter file of the contaminated arm's medical source."""

LEARNT, HELD_OUT = "train", "test"
"""Parts of that source's split. Images that it was validated on chose its epoch and are in neither comparison."""


def further_rows() -> Rows:
    """Finished runs of rivals and controls by their row's label, in the files' order; none for a row not run."""
    found: Rows = {}
    for p in map(parameters, FURTHER):
        for row in definitions.rows(p):
            found[row.label] = [run for seed in p.seeds if (run := finished(p, row, seed))]
    return found


def as_planned(found: Mapping[str, list[Record]]) -> list[Record]:
    """MedMerge as the pair's own parameters have it."""
    return [run for runs in found.values() for run in runs if run.approach == "medmerge" and not run.settings]


def held_against(found: Mapping[str, list[Record]], labels: Iterable[str], spread: float | None) -> pd.DataFrame:
    """MedMerge minus each of some rows, over the seeds that both have; rows that were not run are left out.

    Args:
        found: :func:`further_rows`.
        labels: of the rows; they are the family of Holm's correction.
        spread: the margin of equivalence, of the pair's five rows.

    Returns:
        ``against``, ``seeds`` that the row shares with MedMerge, ``mean`` macro F1 of the row over these, and the
        columns of :func:`~medmerge.pages.contrast.contrast`.

    Raises:
        RecordError: rows with other test images than MedMerge's.
    """
    merged = {run.run["seed"]: run for run in as_planned(found)}
    lines = []
    for label in labels:
        if runs := [run for run in found[label] if run.run["seed"] in merged]:
            ours = [merged[run.run["seed"]] for run in runs]
            by_row([*ours, *runs])  # refuses other test images
            mean = np.mean([run.run["metrics"]["macro_f1"] for run in runs])
            lines.append(({"against": label, "seeds": len(runs), "mean": mean}, ours, runs))
    return contrast(lines, "seeds", spread)


def unchanged(found: Mapping[str, list[Record]]) -> list[str]:
    """Labels of rows with another start of batch norm whose predictions are MedMerge's own, to the last digit."""
    merged = {run.run["seed"]: run for run in as_planned(found)}
    same = []
    for label, runs in found.items():
        shared = [run for run in runs if run.run["seed"] in merged and set(run.settings) == {"batchnorm"}]
        if shared and all(run.predictions.equals(merged[run.run["seed"]].predictions) for run in shared):
            same.append(label)
    return same


def copies(found: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Rivals that chose to be one of the networks that they could have combined, with what each seed chose."""
    chosen = {label: [_alone(run.run.get("choices", {})) for run in runs] for label, runs in found.items()}
    return {label: ", ".join(names) for label, names in chosen.items() if names and all(names)}


def _alone(choices: Mapping[str, object]) -> str:
    soup, coefficient = choices.get("soup", ()), choices.get("coefficient")
    if len(soup) == 1:
        return names.phrase(soup[0])
    return f"coefficient {coefficient:g}" if coefficient in (0.0, 1.0) else ""


def source_split() -> dict[str, str]:
    """The part of the contaminated source's own split, ``train``, ``val`` or ``test``, by the id of its images; empty
    without it.
    """
    path = definitions.split_path(parameters(LEAKY_SOURCE))
    return split_files.read(path).parts if path.is_file() else {}


def seen(leaky: Pair) -> str:
    """How many of the contaminated arm's test images its medical source has met, in Markdown."""
    run, source = leaky.row("medmerge")[0], leaky.p.source_data
    found = run.run["data"].get("overlap", {}).get(source, {})
    images, groups = (found.get(kind, {}).get("test", 0) for kind in ("images", "groups"))
    return fill("seen", source=names.title(source), tested=len(run.predictions), images=images, groups=groups)


def worth(leaky: Pair, split: Mapping[str, str]) -> pd.DataFrame:
    """What each row gains over fine-tuning from the base weights, on images that its source has learnt from or not.

    Both are test images of one population; what a row gains should differ between them by chance alone, unless it
    profits from having seen them. As the images are others, variances add; the seeds' share is counted in both, which
    errs on the wide side. Degrees of freedom are the smaller of the two.

    Args:
        split: :func:`source_split`.

    Returns:
        A line a row: ``row``, then ``difference``, ``low`` and ``high`` of macro F1 three times: those starting with
        ``learnt_``, with ``held_out_``, and of the first minus the second.
    """
    plain = leaky.row("ft", leaky.sources[0])
    parts = plain[0].predictions["id"].map(split)
    lines = []
    for label, runs in by_row(leaky.records).items():
        if label == plain[0].label:
            continue
        learnt, held_out = (over_seeds(runs, plain, (parts == part).to_numpy()) for part in (LEARNT, HELD_OUT))
        difference, error = learnt.difference - held_out.difference, math.hypot(learnt.error, held_out.error)
        reach = float(stats.t.ppf(1 - ALPHA / 2, min(learnt.freedom, held_out.freedom))) * error
        line = {"row": label}
        for name, one in (("learnt_", learnt), ("held_out_", held_out)):
            line |= {f"{name}{value}": getattr(one, value) for value in ("difference", "low", "high")}
        lines.append(line | {"difference": difference, "low": difference - reach, "high": difference + reach})
    return pd.DataFrame(lines)
