"""The parameters of a run: their names, types, defaults and reasons, checked before anything starts."""

import ast
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
NameOrNone = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$")]
Study = Annotated[str, Field(pattern=r"^[A-Za-z0-9*][A-Za-z0-9_.*-]*(/[A-Za-z0-9*][A-Za-z0-9_.*-]*)?$")]


def _number(value: object) -> object:
    """Takes 1e-3 for a number, which YAML takes for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


_Number = BeforeValidator(_number)

Positive = Annotated[float, _Number, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, _Number, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


SEED = "{seed}"
"""Stands for a run's seed in the name of a weights file, where every seed has a source of its own."""


def of_seed(weights: str, seed: int) -> str:
    """Weights as ``base_weights``, ``source_weights``, ``more_weights`` or ``save_weights`` name them, for one seed."""
    return weights.replace(SEED, str(seed))


Role = Literal["run", "data", "training", "approach", "place", "device", "word", "page"]
"""What a parameter is: ``run``, which run of a study it is (a definition names its approach, sources and seed);
``data``, part of the numbers and one for a whole study; ``training``, part of the numbers of every approach;
``approach``, part of the numbers of those approaches that read it; and no part of them: a ``place``, a ``device``, a
``word`` that is said or a table that is added, or what a ``page`` without runs shows."""


def _field(default: object, role: Role, description: str, **limits: object) -> Any:
    return Field(default, description=description, json_schema_extra={"role": role}, **limits)


FROM_RECORDS = ("findings", "learning", "explanations", "overlap", "external", "paper_tables", "sources")
"""Notebooks that ask for no run of their own, and show what the records of several studies say."""

_PAGES = {
    "datasets": ("data",),
    "studies": ("weights", "features", *FROM_RECORDS),
    "cost_repeats": ("cost",),
    "premise": ("premise",),
}
"""Parameters that one kind of page asks something with, and its notebooks."""


class ParameterError(ValueError):
    """Parameters that no run can start from; the message has a line for each thing that is wrong."""


class Parameters(BaseModel):
    """Everything that a notebook can be asked for, flat as papermill wants it.

    Raises:
        ParameterError: from :meth:`parse` and :meth:`from_notebook`, with a line for each problem.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    notebook: NameOrNone = _field(
        "", "page", "the notebook of notebooks/ that draws this file's page; empty for runs without a page"
    )
    track: Literal["demo", "open", "paper", "own"] = _field(
        "demo", "place", "folder below results/: demo, open, paper or own"
    )
    title: str = _field("", "word", "heading of the executed notebook's page")
    note: str = _field("", "word", "what a reader must know first: which data, weights and size stand in for which")
    pair: Name = _field("demo", "place", "name of this study, a folder below the track")
    base_data: Name = _field("imagenet", "run", "what source b was trained on; names it in tables")
    base_weights: str = _field("imagenet", "place", "source b: torchvision's name, a file, random or zeros")
    source_data: NameOrNone = _field("", "run", "what source c was trained on; empty where there is no source c")
    source_weights: str = _field(
        "", "place", "source c: a file as the source notebook writes it, or as above; {seed} in it is the run's seed"
    )
    more_data: list[Name] = _field([], "run", "what further sources d, e, ... were trained on, to merge with b and c")
    more_weights: list[str] = _field([], "place", "sources d, e, ...: one entry each, as source_weights")
    source_root: str = _field(
        "", "place", "its dataset's folder, to look for images that the target shares, where the weights list none"
    )
    allow_overlap: bool = _field(False, "word", "true says that target images which a source has seen are meant")
    target_data: str = _field("synthetic:moles", "data", "dataset to learn and to test on")
    target_root: str = _field("", "place", "its folder as unpacked, here or under $MEDMERGE_DATA")
    target_labels: str = _field("", "place", "the labels file, for target_data csv only")
    target_missing: Literal["error", "drop"] = _field("error", "data", "images not there: error, or drop them")
    target_uncertain: Literal["ignore", "zeros", "ones"] = _field(
        "ignore", "data", "uncertain labels, of several an image: left out of the loss, absent, or present"
    )
    target_blank: Literal["ignore", "zeros", "ones"] = _field(
        "zeros", "data", "blank labels, likewise; a finding that a report does not mention is taken as absent"
    )
    datasets: list[str] = _field([], "page", "datasets to describe on a page of their own, each by name and folder")
    digests: list[str] = _field(
        [], "page", "files of id,sha256 for datasets whose images are not here, each by name and file"
    )
    studies: list[Study] = _field(
        [], "page", "studies whose merging weights a page shows: pair, or pair/backbone; * stands for any name"
    )
    cost_repeats: int = _field(
        0, "page", "rounds in which a page of their own times a step of each phase; 0 on all other pages", ge=0
    )
    premise: bool = _field(
        False, "page", "measure, on a page of its own, how far apart the sources are and what lies between them"
    )
    exclude_data: str = _field("", "data", "leave out target images that this dataset holds too")
    exclude_root: str = _field("", "place", "that dataset's folder")
    split: Literal["grouped", "random", "official", "file"] = _field(
        "grouped", "data", "grouped keeps a patient's or lesion's images together; random is the paper's"
    )
    split_file: str = _field("", "place", "for split file: a CSV of id,split as `medmerge data --write-split` makes")
    group_identical: bool = _field(
        False, "data", "grouped keeps byte-identical files together too, where a dataset names no patients"
    )
    fractions: list[Positive] = _field(
        [0.6, 0.2, 0.2], "data", "shares of training, validation and test images", min_length=3, max_length=3
    )
    split_seed: Seed = _field(0, "data", "draws the split; one split for all seeds pairs their tests")
    backbone: str = _field(
        "densenet121", "data", "a torchvision CNN, ViT or Swin by its name; the paper's first choice"
    )
    image_size: int = _field(224, "data", "side in pixels; the paper's", ge=16, le=1024)
    resize: Literal["stretch", "pad"] = _field(
        "stretch", "data", "stretch to a square (the paper), or pad: keep proportions, never enlarge"
    )
    batch_size: int = _field(32, "training", "images a step; the paper is silent", ge=2)
    seeds: list[Seed] = _field([0], "run", "one run each: head's initial values, order of images", min_length=1)
    approaches: list[str] = _field(
        ["ft", "lp_ft", "medmerge"], "run", "rows of the table; the first two once for each source", min_length=1
    )
    lp_epochs: Count = _field(50, "approach", "epochs of the linear probe; the paper's")
    lp_lr: Positive = _field(1.0e-4, "approach", "its learning rate; the paper's")
    ft_epochs: int = _field(50, "training", "epochs of fine-tuning; the paper's; 0 ends after the linear probe", ge=0)
    ft_lr: Positive = _field(1.0e-5, "training", "its learning rate; the paper's")
    weight_decay: NotNegative = _field(0.01, "training", "AdamW's own default, on kernels only; the paper is silent")
    select: Literal["best", "last"] = _field(
        "best", "training", "epoch kept: best validation macro F1, or the last; the paper is silent"
    )
    lp_batchnorm: Literal["eval", "train"] = _field(
        "eval", "approach", "batch norm of a frozen backbone in LP; eval as Kumar et al., the paper is silent"
    )
    granularity: Literal["kernel", "parameter", "layer", "model"] = _field(
        "kernel", "approach", "what shares one merging weight; the paper's"
    )
    batchnorm: Literal["mean", "reestimated", "repair"] | Annotated[int, Field(ge=0)] = _field(
        "mean", "approach", "where merged batch norms start: mean (the paper), source 0 or 1, reestimated, repair"
    )
    batchnorm_free: Literal["both", "affine", "statistics", "none"] = _field(
        "both", "approach", "what of them changes in the linear probe: the paper's unfrozen is both"
    )
    normalisation: Literal["auto", "affine", "softmax"] = _field(
        "auto", "approach", "affine: w and 1 - w (the paper); softmax: 0 to 1; auto: affine of two, softmax of more"
    )
    w_lr: NotNegative | None = _field(
        None, "approach", "learning rate of the merging weights; empty for the linear probe's (the paper)"
    )
    w_decay: NotNegative = _field(0.0, "approach", "AdamW's decay of the merging weights, towards the last source")
    align: Literal["none", "weights"] = _field(
        "none", "approach", "permute each further source's channels to match the first's before they are merged"
    )
    score_controls: bool = _field(True, "word", "score a merge on validation images with its weights replaced, too")
    vary: dict[str, list[Annotated[Any, _Number]]] = _field({}, "run", "settings to compare, values by parameter")
    fisher_images: Count = _field(256, "approach", "training images that the approach fisher estimates its weights on")
    device: Literal["auto", "cpu", "cuda"] = _field("auto", "device", "auto takes a GPU where there is one")
    precision: Literal["auto", "fp32", "bf16"] = _field(
        "auto", "training", "auto takes bf16 where the hardware computes in it; the paper is silent"
    )
    results: str = _field("results", "place", "folder of the records")
    save_weights: str = _field(
        "", "place", "file for the trained backbone, to be another run's source; {seed} in it is the run's seed"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Parameters":
        sources = [self.base_data, *filter(None, [self.source_data]), *self.more_data]
        twice = [name for i, name in enumerate(sources) if name in sources[:i]]
        last, csv, saves = max(1, len(sources) - 1), self.target_data == "csv", bool(self.save_weights)
        rules = (
            (
                bool(self.source_data) != bool(self.source_weights),
                "source_data and source_weights: give both, or neither",
            ),
            (len(self.more_data) != len(self.more_weights), "more_data and more_weights: give one entry each"),
            (self.more_data and not self.source_data, "more_data: these come after source c; give source_data first"),
            (twice, f"source_data, more_data: {twice} named twice; every source needs a name of its own"),
            (type(self.batchnorm) is int and self.batchnorm > last, f"batchnorm: sources count from 0 to {last}"),
            (abs(sum(self.fractions) - 1) > 1e-6, f"fractions: {self.fractions} do not sum to 1"),
            (len(set(self.seeds)) < len(self.seeds), f"seeds: {self.seeds} names one twice"),
            (len(set(self.approaches)) < len(self.approaches), f"approaches: {self.approaches} names one twice"),
            (csv != bool(self.target_labels), "target_labels: give it for target_data csv, and only then"),
            ((self.split == "file") != bool(self.split_file), "split_file: give it with split: file, and only then"),
            (self.group_identical and self.split != "grouped", "group_identical: is for split: grouped"),
            (
                saves and (self.approaches, self.source_data) != (["ft"], ""),
                "save_weights: saves one network a seed; give approaches: [ft] and no source c",
            ),
            (
                saves and len(self.seeds) > 1 and SEED not in self.save_weights,
                f"save_weights: of several seeds needs {SEED}",
            ),
            (saves and not self.save_weights.endswith(".safetensors"), "save_weights: must end in .safetensors"),
            *(
                (getattr(self, name) and self.notebook not in of, f"{name}: is for a page of its own: {', '.join(of)}")
                for name, of in _PAGES.items()
            ),
        )
        if problems := [line for wrong, line in rules if wrong] + self._varied():
            raise ValueError("\n".join(problems))
        return self

    def _varied(self) -> list[str]:
        """A line for each thing that is wrong with ``vary``."""
        problems = []
        for name, values in self.vary.items():
            if name == "vary" or name not in Parameters.model_fields:
                known = [field for field in Parameters.model_fields if field != "vary"]
                problems.append(f"vary: {name}: unknown parameter; {meant(name, known)}")
                continue
            if not values or any(value in values[:i] for i, value in enumerate(values)):
                problems.append(f"vary: {name}: {values} must hold one value at least, and none twice")
            for value in values:
                try:
                    Parameters(**{**self.model_dump(), "vary": {}, name: value})
                except ValidationError as error:
                    problems += [f"vary: {line}" for item in error.errors() for line in _explain(item)]
        return problems

    @classmethod
    def parse(cls, values: Mapping, origin: str = "parameters", allowed: Iterable[str] | None = None) -> "Parameters":
        """Parameters from a mapping, or one error that lists every problem.

        Args:
            origin: where the values come from, for the message.
            allowed: the names that this notebook takes, where it takes not all.
        """
        known = list(cls.model_fields if allowed is None else allowed)
        problems = [f"{name}: unknown parameter; {meant(str(name), known)}" for name in values if name not in known]
        try:
            parameters = cls(**{str(name): value for name, value in values.items() if name in cls.model_fields})
        except ValidationError as error:
            problems += [line for item in error.errors() for line in _explain(item)]
        if problems:
            count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
            raise ParameterError("\n  ".join([f"{origin}: {count}", *problems])) from None
        return parameters

    @classmethod
    def from_notebook(cls, namespace: Mapping) -> "Parameters":
        """Parameters from a running notebook's variables.

        Papermill sets whatever it is given, known or not; here a name that is no parameter is refused.

        Args:
            namespace: ``globals()`` of the notebook. Its executed cells (``In``) tell which names were injected; in a
                live kernel, where the cell may have been mended and run again, the last one counts.
        """
        injected = [cell for cell in namespace.get("In", []) if cell.lstrip().startswith("# Parameters")]
        names = {name for cell in injected[-1:] for name in _assigned(cell)}
        names |= {name for name in cls.model_fields if name in namespace}
        return cls.parse({name: namespace[name] for name in sorted(names)}, "the notebook's parameters")


def assigned_values(source: str) -> dict[str, object]:
    """The names that a parameters cell sets, with their values.

    Raises:
        ValueError: a value is not written out, but computed.
    """
    return {name: ast.literal_eval(value) for name, value in _assigned(source).items()}


def _assigned(source: str) -> dict[str, ast.expr]:
    lines = [line for line in ast.parse(source).body if isinstance(line, ast.Assign)]
    return {name.id: line.value for line in lines for name in line.targets if isinstance(name, ast.Name)}


def load_yaml(path: Path) -> dict:
    """The mapping in a parameter file, which may not name a key twice.

    Raises:
        ParameterError: no such file, not YAML, not a mapping, or a key that comes twice.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = "is not valid YAML" if isinstance(error, yaml.YAMLError) else "cannot be read"
        raise ParameterError(f"{path} {what}: {error}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path} holds {type(values).__name__}, not parameters as `name: value` lines")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key that comes twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} comes twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def meant(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none: the nearest that is, also to one that is spelt out in full; or all."""
    short = sorted((one for one in known if _shortens(one, name)), key=len, reverse=True)
    near = difflib.get_close_matches(name, known, 1) or short or difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _explain(item: Mapping) -> list[str]:
    """Lines for one of pydantic's errors: the parameter, the value, what is allowed."""
    if not item["loc"]:
        return item["msg"].removeprefix("Value error, ").split("\n")
    name = str(item["loc"][0]) + "".join(f"[{part}]" for part in item["loc"][1:] if isinstance(part, int))
    return [f"{name}: {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"]


def of_role(*roles: Role) -> tuple[str, ...]:
    """Names of the parameters that are one of these."""
    return tuple(n for n, field in Parameters.model_fields.items() if field.json_schema_extra["role"] in roles)


def markdown() -> str:
    """The parameters as a Markdown table, for the book."""
    rows = [f"| `{n}` | `{f.default!r}` | {f.description} |" for n, f in Parameters.model_fields.items()]
    return "\n".join(["| parameter | default | meaning and reason |", "| --- | --- | --- |", *rows])


def _shortens(short: str, name: str) -> bool:
    """Whether ``short`` begins as ``name`` and its letters come in it in order: ``lp_lr`` in ``lp_learning_rate``."""
    letters = iter(name)
    return len(short) > 3 and short[0] == name[:1] and all(letter in letters for letter in short)
