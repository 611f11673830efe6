"""The explorer of learnt merging weights: one object, live in JupyterLab and Voilà, and as a page without a kernel."""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path

import anywidget
import numpy as np
import pandas as pd
import traitlets

from medmerge.explorer import payload as explorer_data
from medmerge.explorer.payload import Run
from medmerge.merge import KernelMerge
from medmerge.pages.typeset import number
from medmerge.study import names
from medmerge.study.records import Record
from medmerge.study.revisits import Trial

log = logging.getLogger(__name__)

_HERE = resources.files(__package__)
SCRIPT = "\n".join(
    (_HERE / name).read_text("utf-8") for name in ("explorer_draw.js", "explorer.js", "explorer_views.js")
)
STYLE = (_HERE / "explorer.css").read_text("utf-8")
NULLS = ("shuffled", "start")
VIEWS, ORDERS = ("w", "own", "difference"), ("number", "w")


def explore(
    what: str | Path | Record | Sequence[Record] | KernelMerge | Mapping,
    *,
    sources: Sequence[str] | None = None,
    backbone: str = "",
    trials: Mapping[object, Trial] | None = None,
    **selection: object,
) -> "Explorer":
    """Show the merging weight of every kernel; choose run, layer and kernel, compare runs, step through epochs.

    Args:
        what: a folder with finished runs at any depth, such as ``results``, a study's or what ``medmerge learn``
            wrote; records of runs, one or many (those that merged nothing are left out); a
            :class:`~medmerge.merge.KernelMerge` of two sources; ``{layer: w}`` with vectors ``[kernels]`` in forward
            order; or several of the last two, ``{name: ...}``.
        sources: names of what w = 1 and w = 0 take, where ``what`` is no record, which knows them.
        backbone: architecture, likewise, for the layers' shapes and kinds.
        trials: what answers "what if", by run name or record folder, as
            :func:`medmerge.study.revisits.later_trials` gives it. Without it the panel is not there.
        selection: what is shown first: ``run``, ``layer``, ``kernel``, ``epoch``, ``compare``, ``view``, ``order``.

    Returns:
        What a notebook shows as a cell's last value. ``selection`` and :meth:`Explorer.data` say what is
        on the screen.

    Raises:
        TypeError: ``what`` is nothing that can be shown.
        FileNotFoundError: a folder that is not there, or holds no finished run.
        ValueError: no weights in it, weights that are not finite vectors, or a selection that is not there.
    """
    runs = explorer_data.collect(what, sources, backbone)
    named = {"/".join(k.parts[-4:]) if isinstance(k, Path) else str(k): v for k, v in (trials or {}).items()}
    if strange := sorted(set(named) - {run.name for run in runs}):
        raise ValueError(f"trials: no run {strange[0]!r} among {', '.join(run.name for run in runs)}")
    return Explorer(runs, named, selection)


class Explorer(anywidget.AnyWidget):
    """See :func:`explore`.

    Attributes:
        selection: what is on the screen, set by the reader's choices and settable in part: ``run`` (its name),
            ``layer`` (first that of the strongest kernel), ``kernel`` (number or None), ``epoch`` (None: as learnt),
            ``compare`` (``"shuffled"`` within layers, ``"start"``, another run's name, or empty), ``view`` (``"w"``,
            ``"own"`` with a scale of this run's, or ``"difference"``), ``order`` of a layer's kernels on the map
            (``"number"``, or by ``"w"``).
        runs: everything that can be chosen, by name.
        trials: what answers "what if", by run name.
    """

    _esm, _css = SCRIPT + "\nexport default { render };\n", STYLE
    selection = traitlets.Dict().tag(sync=True)
    _content = traitlets.Unicode().tag(sync=True)
    _asked = traitlets.Dict().tag(sync=True)
    _tried = traitlets.List().tag(sync=True)

    def __init__(self, runs: Sequence[Run], trials: Mapping[str, Trial], selection: Mapping[str, object]):
        self.runs: dict[str, Run] = {run.name: run for run in runs}
        self.trials = dict(trials)
        self._packed = explorer_data.payload(runs)
        self._packed["trials"] = {name: {"metric": t.metric, "images": t.images} for name, t in trials.items()}
        super().__init__(_content=explorer_data.dumps(self._packed), selection=dict(selection))
        self.observe(self._answer, names="_asked")

    @traitlets.validate("selection")
    def _whole(self, proposal: Mapping) -> dict:
        """The selection with what was left out: as it was, or the first of each kind."""
        given, before = dict(proposal["value"]), self.selection
        defaults = {"run": next(iter(self.runs)), "layer": None, "kernel": None, "epoch": None}
        defaults |= {"compare": NULLS[0], "view": VIEWS[0], "order": ORDERS[0]}
        if unknown := sorted(set(given) - set(defaults)):
            raise ValueError(f"selection: there is no {unknown[0]!r}; there are {', '.join(defaults)}")
        chosen = defaults | before | given
        _check(chosen, "run", self.runs)
        run, weights = chosen["run"], self.runs[chosen["run"]].weights
        if "layer" not in given and chosen["layer"] not in weights:
            chosen["layer"] = max(weights, key=lambda name: np.abs(weights[name] - 0.5).max())
        _check(chosen, "layer", weights)
        if "kernel" not in given and (run, chosen["layer"]) != (before.get("run"), before.get("layer")):
            chosen["kernel"] = None
        packed = {entry["name"]: entry for entry in self._packed["runs"]}
        others = [n for n, e in packed.items() if n != run and e["network"] == packed[run]["network"]]
        for what, allowed, neutral in (
            ("kernel", range(len(weights[chosen["layer"]])), None),
            ("epoch", packed[run].get("epochs", []), None),
            ("compare", [*NULLS, *others, ""], NULLS[0]),
        ):
            if what not in given and chosen[what] not in allowed:
                chosen[what] = neutral
            _check(chosen, what, allowed, neutral)
        views = VIEWS if chosen["compare"] else VIEWS[:2]
        if "view" not in given and chosen["view"] not in views:
            chosen["view"] = VIEWS[0]
        _check(chosen, "view", views)
        _check(chosen, "order", ORDERS)
        return chosen

    def data(self, *, all_layers: bool = False) -> pd.DataFrame:
        """What is on the screen: a row a kernel of the selected layer, with the columns layer, kernel and w.

        With something to compare, ``other`` is its w, of a run as learnt, and ``difference`` what this run has more.

        Args:
            all_layers: every layer's kernels, in forward order: the map.
        """
        shown = self.runs[self.selection["run"]].at(self.selection["epoch"])
        compare, other = self.selection["compare"], None
        if compare in NULLS:
            other = explorer_data.shuffled(shown) if compare == NULLS[0] else {n: w * 0 + 0.5 for n, w in shown.items()}
        elif compare:
            other = self.runs[compare].weights
        frames = []
        for layer in shown if all_layers else [self.selection["layer"]]:
            frame = pd.DataFrame({"layer": layer, "kernel": np.arange(len(shown[layer])), "w": shown[layer]})
            if other is not None:
                frame = frame.assign(other=other[layer], difference=shown[layer] - other[layer])
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def try_weights(self, w: float | None, layer: str | None = None) -> float:
        """The validation score of the selected run with ``w`` in all kernels of a layer; it joins the page's table.

        Args:
            w: the first source's weight, or None: as learnt.
            layer: by default the selected one.

        Raises:
            ValueError: nothing was given that can answer for this run.
        """
        run, layer = self.selection["run"], layer or self.selection["layer"]
        if run not in self.trials:
            raise ValueError(f"nothing can try weights of {run}: give explore(..., trials=...)")
        _check({"layer": layer}, "layer", self.runs[run].weights)
        score = self.trials[run](layer, w)
        self._note({"run": run, "layer": layer, "w": w, "score": score})
        return score

    def _answer(self, change: Mapping) -> None:
        """Compute what the panel asks for. An error is shown in it: nobody sees a traceback behind a button."""
        asked = {key: change["new"][key] for key in ("run", "layer", "w", "number")}
        try:
            self._note(asked | {"score": self.trials[asked["run"]](asked["layer"], asked["w"])})
        except Exception as error:
            log.warning("what if: %s", error)
            self._note(asked | {"error": str(error)})

    def _note(self, answer: Mapping) -> None:
        def what(one: Mapping) -> tuple:
            return one["run"], one["w"] is not None and one["layer"], one["w"]

        self._tried = [*(one for one in self._tried if what(one) != what(answer)), dict(answer)]

    def __repr__(self) -> str:
        return f"Explorer of {len(self.runs)} run{'s' * (len(self.runs) > 1)}: {', '.join(self.runs)}"

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self.html()}, metadata

    def html(self) -> str:
        """The explorer for a page without a kernel: one element with everything inline, the present selection first.

        Where scripts are off it is a table.
        """
        content = explorer_data.dumps({**self._packed, "selection": self.selection, "tried": self._tried})
        name = f"explorer-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        return (
            f'<div class="mm-page"><style>{STYLE}</style><script type="application/json">{content}</script>'
            f'<div class="mm-explorer" id="{name}">{still(list(self.runs.values()))}</div>'
            f'<script type="module">{SCRIPT}\nmount(document.getElementById("{name}"));</script></div>'
        )


def still(runs: Sequence[Run]) -> str:
    """The runs as a table, for readers without scripts."""
    rows = []
    for run in runs:
        w = np.concatenate(list(run.weights.values()))
        chosen = (run.study, names.title(run.backbone), run.label, run.seed)
        row = dict(zip(("study", "network", "run", "seed", "kernels"), (*chosen, f"{len(w):,}"), strict=True))
        spread = zip(("5 %", "median", "95 %"), np.quantile(w, [0.05, 0.5, 0.95]), strict=True)
        rows.append({**row, "mean w": w.mean(), **dict(spread), "above 0.5": number((w > 0.5).mean(), ".0%")})
    table = pd.DataFrame(rows).to_html(index=False, border=0, float_format="{:.3f}".format)
    return f'<div class="mm-scroll">{table}</div>'


def _check(chosen: Mapping, what: str, allowed: Collection, neutral: object = ...) -> None:
    value = chosen[what]
    if value not in allowed and not (neutral is not ... and value == neutral):
        listed = ", ".join(filter(None, map(str, allowed))) or "none"
        listed = f"0 to {allowed[-1]}" if isinstance(allowed, range) else listed
        raise ValueError(f"selection: there is no {what} {value!r}; there are: {listed}")
