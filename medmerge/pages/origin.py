"""How a page came about: its parameters, what its runs cost, and which code and data they are from."""

from collections.abc import Sequence

import pandas as pd

from medmerge.pages import typeset
from medmerge.study.params import Parameters
from medmerge.study.records import Record


def folded(p: Parameters, records: Sequence[Record] = ()) -> object:
    """All that follows as folded tables, for the end of a page; parameters alone where there are no runs."""
    from IPython.display import HTML  # comes with a notebook, not with this package

    tables = {"Parameters of this page": settings(p)}
    if records:
        tables |= {"Seconds and memory": costs(records), "Commits, versions and hashes": sources(records)}
    return HTML("\n".join(typeset.table(one, title=title, folded=True).data for title, one in tables.items()))


def settings(p: Parameters) -> pd.DataFrame:
    """What a page's parameters set, a row each; what they leave at its default is left out."""
    return pd.DataFrame(p.model_dump(exclude_defaults=True).items(), columns=["parameter", "value"])


def costs(records: Sequence[Record]) -> pd.DataFrame:
    """A row a run: seconds by phase and in all, and peak memory in MiB.

    *Ingredients* are the networks that an approach combines, at their price, recalled or not.
    """
    table = []
    for record in records:
        cost = record.run["cost"]
        seconds = {f"{phase.replace('_', ' ')}, s": values["seconds"] for phase, values in cost.items()}
        memory = max((values.get("peak_memory_mib", 0) for values in cost.values()), default=0)
        last = {"total, s": sum(seconds.values()), "peak memory, MiB": memory}
        table.append({"run": record.label, "seed": record.run["seed"], **seconds, **last})
    frame = pd.DataFrame(table)
    return frame[[*(column for column in frame if column not in last), *last]]


def sources(records: Sequence[Record]) -> pd.DataFrame:
    """A row a run: package version, commit, libraries, and the start of its definition's hash."""
    table = []
    for record in records:
        origin = record.run["provenance"]
        table.append(
            {"run": record.label, "seed": record.run["seed"], "commit": origin["commit"][:10]}
            | {name: origin["versions"][name] for name in ("medmerge", "torch", "torchvision")}
            | {"definition": record.run["hash"][:10], "images": record.run["data"]["fingerprint"][:10]}
        )
    return pd.DataFrame(table)
