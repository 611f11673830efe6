"""The whole method on one's own two checkpoints and images: ``medmerge learn``."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from medmerge import backbones
from medmerge.pages.card import card
from medmerge.study import definitions, inputs, records
from medmerge.study import run as study
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record

BASELINES = ["ft", "lp_ft", "medmerge"]


def parameters(
    sources: Sequence[str],
    images: Path,
    labels: Path | None,
    out: Path,
    *,
    compare: bool = False,
    settings: Mapping[str, object] | None = None,
) -> Parameters:
    """The parameters of a run on one's own data.

    Args:
        sources: two of ``"weights"`` or ``"name=weights"``: checkpoints, or a weights name such as ``"imagenet"``.
        images: folder of the images.
        labels: CSV of labels, or None where each class has a folder of its own.
        out: where the results go.
        compare: whether FT and LP-FT from each source are run too.
        settings: any parameter by its name; these win.

    Raises:
        ParameterError: not two different sources, ``out`` in ``images``, or parameters that no run can start from.
    """
    if len(sources) != 2:
        raise ParameterError(f"--source: {len(sources)} given; MedMerge merges two, so give it twice")
    (base, base_weights), (other, other_weights) = (_named(source) for source in sources)
    if base_weights == other_weights and base_weights != "random":
        raise ParameterError(f"--source: both are {base_weights}; MedMerge merges two different networks")
    if out.resolve().is_relative_to(images.expanduser().resolve()):
        raise ParameterError(f"--out: {out} is in {images}, which is only read; name a place outside of it")
    values = {
        **{"track": "own", "pair": _name(out.resolve().name), "results": str(out.resolve() / "records")},
        **{"base_data": base, "base_weights": base_weights, "source_weights": other_weights},
        "source_data": other if other != base else f"{other}-2",
        **{"target_data": "csv" if labels else "folder", "target_root": str(images.expanduser().absolute())},
        **({"target_labels": str(labels.expanduser().absolute())} if labels else {}),
        "approaches": BASELINES if compare else ["medmerge"],
        **_architecture(base_weights, other_weights),
    }
    return Parameters.parse({**values, **(settings or {})}, "medmerge learn")


def learn(p: Parameters, out: Path, licence: str = "") -> Record:
    """Run what the parameters ask for, and write what is worth keeping into ``out``.

    ``model.safetensors`` (torchvision's names, strict-loadable) with the list of the images that it or its sources
    were trained on, ``README.md`` (its model card), ``split.csv``, and ``records/``. With several seeds the network is
    that of the best validation score.

    Returns:
        The record of the network that was written.

    Raises:
        RecordError: ``out`` holds the results of other images, sources or settings.
    """
    finished = not study.check(p)
    found = study.run(p)
    if finished:
        _check_same(p, found, out)
    merged = [record for record in found if record.approach == "medmerge"]
    chosen = max(merged, key=lambda record: record.history[records.score_column(record.history)].max())
    out.mkdir(parents=True, exist_ok=True)
    trained = chosen.folder / definitions.MODEL
    if not (trained.is_file() and inputs.images_list(trained).is_file()):
        raise records.RecordError(
            f"the network of {chosen.folder} or its list of images is gone; move its record away to train again"
        )
    shutil.copyfile(trained, out / "model.safetensors")
    shutil.copyfile(inputs.images_list(trained), inputs.images_list(out / "model.safetensors"))
    shutil.copyfile(definitions.split_path(p), out / "split.csv")
    (out / "README.md").write_text(card(found, chosen, p.pair, licence), encoding="utf-8")
    return chosen


def _check_same(p: Parameters, found: Sequence[Record], out: Path) -> None:
    """Compare what finished runs were computed from, which their definition does not tell, with what is given now."""
    try:
        inputs.load_data(p, found)
        inputs.check_sources(p, {name for record in found for name in record.run["row"]["sources"]}, found)
    except records.RecordError as error:
        raise records.RecordError(
            f"--out: {out} holds results of other images or sources; name another. {error}"
        ) from error


def _named(source: str) -> tuple[str, str]:
    """A source's name and its weights, as an absolute path where they are a file."""
    name, given, weights = source.partition("=")
    if not given or Path(source).expanduser().is_file():
        name, weights = "", source
    if not backbones.is_path(weights):
        return name or weights, weights
    path = Path(weights).expanduser().absolute()
    return name or _name(path.stem), str(path)


def _name(text: str) -> str:
    """``text`` with whatever a name may not hold replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._") or "merged"


def _architecture(*weights: str) -> dict[str, str]:
    """The architecture that checkpoints of ours name in their header, if one does."""
    for path in weights:
        if path.endswith(".safetensors") and Path(path).is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    if name := (file.metadata() or {}).get("medmerge.backbone"):
                        return {"backbone": name}
            except SafetensorError:
                continue  # said when the weights are loaded
    return {}
