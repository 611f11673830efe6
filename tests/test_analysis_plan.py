"""The analysis plan says what the parameter files and the code do."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from medmerge.data import load_table, splits
from medmerge.pages import contrast
from medmerge.stats import significance
from medmerge.study.params import Parameters, load_yaml

ROOT = Path(__file__).parents[1]
PLAN = (ROOT / "book" / "plan.md").read_text(encoding="utf-8")
FILES = re.findall(r"^\| [a-z, ]+ \| `([\w-]+)` \|", PLAN, re.M)
FURTHER = [f"{name}-mobilenet" for name in FILES if name != "skin-leaky"]


def parameters(name):
    path = ROOT / "params" / "open" / f"{name}.yaml"
    return Parameters.parse(load_yaml(path), str(path))


@pytest.mark.parametrize("name", [*FILES, *FURTHER])
def test_a_planned_pair_has_the_plans_seeds_rows_and_epochs(name):
    assert f"`{name}`" in PLAN
    p, default = parameters(name), Parameters.parse({})
    text = (ROOT / "params/open" / f"{name}.yaml").read_text()
    planned = [int(seed) for seed in re.search(r"\*\*Seeds: ([\d, ]+)\*\*", PLAN)[1].split(", ")]
    assert p.seeds == planned[: len(p.seeds)] and 0 not in planned and len(planned) >= 3
    assert len(p.seeds) >= 2 or "decides nothing" in text, "a pair counts with two seeds at least"
    assert (p.seeds == planned) != ("computing time ended" in text), "fewer seeds than planned are said and why"
    same = ("approaches", "lp_epochs", "lp_lr", "ft_epochs", "ft_lr", "weight_decay", "select")
    same += () if name == "skin-leaky" else ("fractions",)
    assert all(getattr(p, key) == getattr(default, key) for key in same)
    assert p.image_size == 64
    assert p.backbone == ("mobilenet_v2" if name in FURTHER else "densenet121")
    sources = [parameters(path.stem) for path in (ROOT / "params/open").glob("source-*.yaml")]
    (source,) = [one for one in sources if one.save_weights == p.source_weights]
    assert (source.target_data, source.base_weights, source.backbone) == (p.source_data, p.base_weights, p.backbone)


def test_the_table_holds_the_pairs_and_their_splits():
    assert FILES == ["skin-seeds", "chest", "retina", "skin-leaky"]
    for name in FILES:
        (row,) = re.findall(rf"^\|[^|]*\| `{name}` \|.*\| ([^|]+) \|$", PLAN, re.M)
        assert row.split()[0] == parameters(name).split
    clean, leaky = parameters("skin-seeds"), parameters("skin-leaky")
    assert clean.exclude_data == "ham10k" and not leaky.exclude_data and leaky.allow_overlap
    assert clean.target_data == leaky.target_data
    sources = [parameters(name) for name in ("source-ham10k-seeds", "source-ham10k-leaky")]
    assert [one.save_weights for one in sources] == [clean.source_weights, leaky.source_weights]
    names = ("pair", "title", "save_weights")
    assert sources[0] == sources[1].model_copy(update={name: getattr(sources[0], name) for name in names})


def test_the_arms_of_the_skin_pair_learn_from_as_many_images(real_data, tmp_path):
    """The contaminated arm's folder is ISIC 2019's with HAM10000's images, as its file says."""
    together = tmp_path / "isic2019-all"
    (together / "ISIC_2019_Training_Input").mkdir(parents=True)
    for path in (real_data / "isic2019").glob("*.csv"):
        (together / path.name).symlink_to(path)
    for folder in ("isic2019/ISIC_2019_Training_Input", "ham10000/images"):
        for path in (real_data / folder).glob("*.jpg"):
            (together / "ISIC_2019_Training_Input" / path.name).symlink_to(path)
    source = set(load_table("ham10k", real_data / "ham10000").frame["id"])
    numbers, shares = [], []
    for name, root in (("skin-seeds", real_data / "isic2019"), ("skin-leaky", together)):
        p = parameters(name)
        table = load_table("isic2019", root, missing="drop", exclude=source if p.exclude_data else ())
        parts = splits.split(table, method=p.split, fractions=tuple(p.fractions), seed=p.split_seed)
        numbers.append([int((parts == part).sum()) for part in ("train", "val", "test")])
        shares.append(table.frame["id"][parts == "test"].isin(source).mean())
    assert numbers == [[1647, 549, 549], [1646, 549, 10565]]
    assert shares[0] == 0 and shares[1] > 0.75, "what the arms differ in"
    assert all(f"{number:,}" in PLAN for number in (sum(numbers[1]), numbers[1][2]))


def test_the_rate_and_the_family_are_the_codes():
    rate = int(re.search(r"Holm-adjusted at \*\*(\d+) %\*\*", PLAN)[1]) / 100
    assert rate == contrast.ALPHA == significance.ALPHA
    approaches = parameters("skin-seeds").approaches
    assert int(re.search(r"MedMerge's \*\*(\d+)\*\* baselines", PLAN)[1]) == 2 * (len(approaches) - 1)


def test_functions_and_outcomes_that_the_plan_names_are_there():
    named = re.findall(r"medmerge\.stats\.significance\.(\w+)", PLAN)
    assert {"over_seeds", "seed_spread", "equivalence"} <= set(named) <= set(vars(significance))
    outcomes = {significance.equivalence(d, e, 2) for d, e in ((0, 0.1), (9, 0.1), (1, 0.1), (1, 5))}
    text = " ".join(PLAN.split())
    assert outcomes == {"equivalent", "different", "different but within the margin", "undecided"}
    assert all(outcome in text for outcome in outcomes)


def test_the_coverage_is_the_simulations():
    found = json.loads((ROOT / "benchmarks" / "coverage.json").read_text(encoding="utf-8"))
    three, one = (found[f"coverage, over_seeds t, {seeds} seeds"] for seeds in (3, 1))
    assert three["runs"] == one["runs"] == 400
    text = " ".join(PLAN.split())
    expected = f"held 0 in {100 * three['share']:.1f} % of 400 runs, and with one seed in {100 * one['share']:.1f} %"
    assert expected in text


SECOND = (ROOT / "book" / "second-plan.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", re.findall(r"^\| [\w-]+ \| `([\w-]+)` \|", SECOND, re.M))
def test_a_pair_of_the_second_round_is_as_planned(name, real_data):
    p, default = parameters(name), Parameters.parse({})
    row = re.search(rf"^\| {name} \|.*$", SECOND, re.M)[0]
    assert p.seeds == list(range(1, 1 + int(re.search(r"1 to (\d)", row)[1])))
    for key in ("approaches", "lp_epochs", "lp_lr", "ft_epochs", "ft_lr", "weight_decay", "select"):
        assert getattr(p, key) == getattr(default, key)
    assert p.vary["w_lr"][0] is None and f"{p.vary['w_lr'][1]:g}".replace("0.001", "1e-3") in SECOND.replace(
        "2.7e-4", "0.00027"
    )
    (source,) = [
        one
        for one in map(parameters, (path.stem for path in (ROOT / "params/open").glob("source-*-2.yaml")))
        if one.save_weights == p.source_weights
    ]
    assert (source.target_data, source.base_weights, source.seeds) == (p.source_data, p.base_weights, p.seeds)
    table = load_table(p.target_data, real_data / p.target_root, missing=p.target_missing)
    parts = splits.split(table, method=p.split, fractions=tuple(p.fractions), seed=p.split_seed)
    assert " / ".join(f"{n:,}" for n in splits.sizes(parts)) in row
    longer = parameters(f"{name}-long")
    assert longer.vary == {"ft_epochs": [p.lp_epochs + p.ft_epochs]} and longer.pair == p.pair
    steps = -(-int(splits.sizes(parts)["train"]) // p.batch_size) * p.lp_epochs
    budget = {"skin-2": 2.4, "chest-2": 1.9, "retina-2": 0.46}[name]
    assert p.vary["w_lr"][1] * steps == pytest.approx(budget, rel=0.03) and str(budget) in SECOND


@pytest.mark.parametrize("network", ["resnet50", "mobilenet"])
def test_other_networks_of_the_second_round_see_the_same_images_and_rows(network):
    one, first = parameters(f"skin-2-{network}"), parameters("skin-2")
    own = ("title", "note", "base_data", "base_weights", "source_weights", "backbone", "precision", "seeds")
    assert {**one.model_dump(), **dict.fromkeys(own)} == {**first.model_dump(), **dict.fromkeys(own)}
    source = parameters(f"source-isic2017-2-{network}")
    assert (source.save_weights, source.base_weights) == (one.source_weights, one.base_weights)
    assert one.seeds == source.seeds == first.seeds[: len(one.seeds)] and source.fractions == [0.8, 0.1, 0.1]


def test_the_files_and_the_power_that_the_second_plan_names_are_there():
    named = set(re.findall(r"`((?:skin|chest|retina)-2[\w-]*)`", SECOND))
    assert named == {path.stem for path in (ROOT / "params/open").glob("[!s]*-2*.yaml")} | {
        path.stem for path in (ROOT / "params/open").glob("skin-2*.yaml")
    }
    found = (
        pd.read_csv(ROOT / "benchmarks/power.csv").query("gain == 0.03").set_index(["pair", "seeds", "spread"])["one"]
    )
    for pair, seeds, *shares in re.findall(r"^\| ([\w, :-]+) \| (\d) \| (\d+) % \| (\d+) % \|$", SECOND, re.M):
        name = {"pooled, all with": "pooled", "first round, skin": "first round: skin"}.get(pair, pair)
        for case, share in zip(("expected", "cautious"), shares, strict=True):
            assert found[name, int(seeds), case] == pytest.approx(int(share) / 100, abs=0.006)
