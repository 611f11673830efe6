"""What can be done with a finished run whose networks are still here: rebuild its merge, try other merging weights."""

import functools
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from medmerge import backbones
from medmerge.approaches import APPROACHES
from medmerge.approaches.paper import MergeOptions
from medmerge.merge import zeros_like
from medmerge.study import inputs, trials
from medmerge.study.definitions import MERGE
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError
from medmerge.study.run import protocol


def trial(record: Record) -> trials.Trial:
    """What other merging weights do to a merged run's validation score: its network as the linear probe left it.

    Raises:
        RecordError, ParameterError, CheckpointError: as :func:`merged_classifier`.
        RecordError, DataError: the images here are others, or not here.
    """
    merging, _ = merged_classifier(record)
    p = parameters(record)
    return trials.Trial(merging, inputs.load_data(p, [record]).val, protocol(p))


def merged_classifier(record: Record) -> tuple[backbones.Classifier, list[nn.Module]]:
    """A merged run's classifier as its linear probe left it, rebuilt, and the sources that it merges.

    Returns:
        The classifier, whose backbone is a :class:`~medmerge.merge.KernelMerge`, and the sources as they were merged:
        aligned where the run did so, and zeros as second where one source was merged with zeros.

    Raises:
        RecordError: the run merged nothing, what its probe learnt is not kept here, or the sources here are others.
        ParameterError, CheckpointError: its sources are not here, or the folder of its images is not.
    """
    path, run = record.folder / MERGE, record.run
    if not path.is_file():
        raise RecordError(f"no {path}: what the linear probe learnt lies only where the run was computed")
    p = parameters(record)
    approach, names = APPROACHES[record.approach], run["row"]["sources"]
    if problems := inputs.missing(p, names):
        raise ParameterError("\n".join(problems))
    inputs.check_sources(p, names, [record])
    options = MergeOptions(**{name: getattr(p, name) for name in approach.settings if name != "score_controls"})
    sources = [inputs.load_source(p, name, run["seed"]) for name in names]
    if not approach.merges:
        sources.append(zeros_like(sources[0]))
    merge, sources = options.start(sources, p.image_size)
    merging = backbones.Classifier(merge, len(run["data"]["classes"]))
    trials.load(merging, path)
    return merging, sources


def parameters(record: Record) -> Parameters:
    """The parameters that a run was made with, its row's settings included; those that are no longer known left out."""
    known = {name: value for name, value in record.run["parameters"].items() if name in Parameters.model_fields}
    return Parameters.parse(known | {"seeds": [record.run["seed"]]})


def later_trials(runs: Iterable[Record]) -> dict[Path, trials.Later]:
    """:func:`trial` by folder, for the runs of which what the linear probe learnt is here; loaded when first asked."""
    return {
        r.folder: trials.Later(
            functools.partial(trial, r), "macro AUROC" if r.multilabel else "macro F1", r.images["val"]
        )
        for r in runs
        if (r.folder / MERGE).is_file()
    }
