"""Splits: no lesion on two sides, the shares asked for, and nothing but ids, labels and seed."""

import hashlib
import logging

import numpy as np
import pandas as pd
import pytest
from data_fixtures import made_table, real
from hypothesis import given, settings
from hypothesis import strategies as st

from medmerge.data import DataError, Table, load_table, split
from medmerge.data.splits import MAX_FOLDS, count, join_identical, sizes, strata


def straddling(table, parts):
    """How many groups are in more than one part."""
    return int((table.frame.assign(part=parts).groupby("group")["part"].nunique() > 1).sum())


def assert_no_order(table, parts, seed=0, **options):
    """Rows in another order get the same parts."""
    other = Table(table.name, table.frame.sample(frac=1.0, random_state=1), table.classes)
    again = dict(zip(other.frame["id"], split(other, seed=seed, **options), strict=True))
    assert again == dict(zip(table.frame["id"], parts, strict=True))


@st.composite
def tables(draw):
    """Groups of 1 to 4 images with one label each; every class has 40 groups or more."""
    classes = draw(st.integers(2, 4))
    groups = [draw(st.integers(40, 80)) for _ in range(classes)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label_of = rng.permutation(np.repeat(np.arange(classes), groups))
    sizes = rng.integers(1, 5, len(label_of))
    group_of = rng.permutation(np.repeat(np.arange(len(label_of)), sizes))
    return made_table(label_of[group_of], [f"lesion{group}" for group in group_of])


@st.composite
def shares(draw):
    """Fractions of k folds, with 3 <= k <= 10."""
    total = draw(st.integers(3, 10))
    val = draw(st.integers(1, total - 2))
    test = draw(st.integers(1, total - val - 1))
    return ((total - val - test) / total, val / total, test / total)


def assert_shares(table, parts, fractions):
    """Each class by itself keeps its shares within f (k - f) / k of its largest groups: the proven bound."""
    largest = table.frame.groupby(["label", "group"]).size().groupby("label").max().to_numpy()
    counts = count(table, parts)
    assert (counts.sum() == sizes(parts)).all()
    folds = next(k for k in range(3, MAX_FOLDS + 1) if all(abs(f * k - round(f * k)) < 1e-6 for f in fractions))
    for part, share in zip(("train", "val", "test"), fractions, strict=True):
        allowed = share * (1 - share) * folds * largest
        assert (np.abs(counts[part] - share * counts.sum(axis=1)) <= allowed + 1e-6).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(table=tables(), fractions=shares(), seed=st.integers(0, 2**32 - 1))
def test_grouped_split_holds_its_promises(table, fractions, seed):
    parts = split(table, fractions=fractions, seed=seed)
    assert parts.shape == (len(table.frame),)
    assert straddling(table, parts) == 0
    assert_shares(table, parts, fractions)
    assert_no_order(table, parts, seed, fractions=fractions)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    labels=st.lists(st.integers(0, 1), min_size=40, max_size=300),
    cuts=st.tuples(st.floats(0.3, 0.6), st.floats(0.2, 0.3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_split_has_exact_sizes(labels, cuts, seed):
    labels[:20] = [0, 1] * 10
    table = made_table(labels)
    fractions = (*cuts, 1.0 - sum(cuts))
    try:
        parts = split(table, method="random", fractions=fractions, seed=seed)
    except DataError as error:
        assert "no image to train on" in str(error)
        return
    for part, share in zip(("train", "val", "test"), fractions, strict=True):
        assert abs((parts == part).sum() - share * len(labels)) <= 1
    assert_no_order(table, parts, seed, method="random", fractions=fractions)


@pytest.mark.parametrize(("method", "digest"), [("grouped", "ef3e9091eecef1d9"), ("random", "e3fea80a14517284")])
def test_split_is_the_same_on_every_machine(method, digest):
    """If a new scikit-learn or numpy changes this, the committed records are of another split."""
    parts = split(load_table("synthetic:moles"), method=method, seed=7)
    assert hashlib.sha256("".join(part[1] for part in parts).encode()).hexdigest()[:16] == digest


def test_real_lesions_stay_together():
    table = load_table("ham10k", real("ham10000"))
    parts = split(table)
    assert straddling(table, parts) == 0
    counts = count(table, parts)
    assert counts.sum().tolist() == [6008, 2004, 2003]
    assert counts["test"].tolist() == [66, 103, 220, 23, 222, 1341, 28]
    leaky = split(table, method="random")
    assert straddling(table, leaky) == 1240


def test_official_split_without_val_takes_it_from_train():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 3)
    official = np.where(groups < 80, "train", "test")
    table = made_table(rng.permutation(100)[groups] % 2, groups, official)
    parts = split(table, method="official", fractions=(0.6, 0.2, 0.2))
    assert (parts[groups >= 80] == "test").all()
    assert straddling(table, parts) == 0
    assert abs((parts == "val").sum() - 240 * 0.25) <= 6


def test_groups_that_are_cut_and_groups_that_are_large_are_told(caplog):
    official = ["train", "train", "test", "test", "val", "val"]
    table = made_table([0, 1] * 3, ["a", "b", "a", "c", "d", "e"], official)
    split(table, method="official")
    assert "1 groups are in more than one part" in caplog.text
    table = made_table([row % 2 for row in range(200)], ["giant"] * 180 + [f"p{row}" for row in range(20)])
    assert straddling(table, split(table)) == 0
    assert "val has 92 % of the images instead of 20 %" in caplog.text


@pytest.mark.parametrize(
    ("official", "message"),
    [
        (None, "no official split"),
        (["train"] * 6, "no test"),
        (["train", "train", "test", "test", "val", None], "1 images have no official split, first image00005"),
    ],
)
def test_official_split_that_is_none(official, message):
    with pytest.raises(DataError, match=message):
        split(made_table([0, 1] * 3, official=official), method="official")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "stratified"}, "no split 'stratified'; it is one of grouped, random, official"),
        ({"fractions": (0.8, 0.2, 0.0)}, "each above 0"),
        ({"fractions": (0.6, 0.2, 0.3)}, "the sum 1.1; give train, val and test"),
        ({"fractions": (0.64, 0.16, 0.2)}, f"not multiples of 1/k for any k up to {MAX_FOLDS}"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(DataError, match=message):
        split(made_table([0, 1] * 50), **arguments)


def findings_table(labels, groups=None, official=None) -> Table:
    """A multi-label table of the classes a, b, c, ..."""
    labels = np.asarray(labels, dtype=np.float32)
    table = made_table([0] * len(labels), groups, official)
    classes = tuple("abcdefgh"[: labels.shape[1]])
    columns = pd.DataFrame(labels, columns=[f"label:{name}" for name in classes])
    return Table("made", pd.concat([table.frame.drop(columns="label"), columns], axis=1), classes)


def test_stratum_of_a_multilabel_image_is_its_rarest_class():
    nan = np.nan
    table = findings_table([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [nan, 0, nan], [1, nan, 0], [nan, 1, 0]])
    assert strata(table).tolist() == [0, 1, 2, 3, 3, 0, 1]
    assert strata(findings_table([[1, 1], [0, 0]])).tolist() == [0, 2]  # equally rare: the first


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    chances=st.lists(st.floats(0.05, 0.6), min_size=2, max_size=5),
    unknown=st.floats(0.0, 0.3),
    fractions=shares(),
    seed=st.integers(0, 2**32 - 1),
)
def test_multilabel_split_balances_strata(chances, unknown, fractions, seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(400), rng.integers(1, 4, 400))
    values = (rng.random((400, len(chances))) < chances).astype(np.float32)
    values[rng.random(values.shape) < unknown] = np.nan
    table = findings_table(values[groups], groups)
    parts = split(table, fractions=fractions, seed=seed)
    assert straddling(table, parts) == 0
    by_stratum = Table("strata", table.frame.assign(label=strata(table)), (*table.classes, "none"))
    assert_shares(by_stratum, parts, fractions)
    assert_no_order(table, parts, seed, fractions=fractions)


def test_multilabel_class_without_a_positive_in_train_is_named(caplog):
    table = findings_table([[1, 0], [1, 0], [0, 1]], official=["train", "val", "test"])
    with pytest.raises(DataError, match=r"no image to train on in class b \(1 image, 1 group\)"):
        split(table, method="official")
    table = findings_table([[1, 1], [0, 0], [0, 1]], official=["train", "val", "test"])
    with caplog.at_level(logging.WARNING):
        assert split(table, method="official").tolist() == ["train", "val", "test"]  # a part may lack every class
    assert all(told in caplog.text for told in ("val has no image of a (1 image, 1 group); b (2 images", "test has no"))


def test_identical_files_join_their_groups():
    table = made_table([0, 1] * 4, ["d", "c", "b", "a", "e", "f", "f", "g"])
    joined = join_identical(table, ["1", "1", "2", "3", "3", "2", "4", ""])
    assert joined.frame["group"].tolist() == ["c", "c", "b", "a", "a", "b", "b", "g"]
    assert joined.notes == ("6 groups that share byte-identical files are joined into 3.",)
    assert joined.frame.drop(columns="group").equals(table.frame.drop(columns="group"))
    assert joined.frame["group"].dtype == table.frame["group"].dtype
    table = made_table([0, 1, 0, 1], ["p", "p", "q", "r"])
    for digests in (["1", "2", "3", "4"], ["", None, "", None], ["1", "1", "3", ""]):
        assert join_identical(table, digests) is table, (
            "unknown digests are not equal, copies within a group are joined"
        )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), seed=st.integers(0, 99)
)
def test_joined_groups_depend_on_no_order(pairs, seed):
    groups, digests = ([f"{value}" for value in column] for column in zip(*pairs, strict=True))
    table = made_table([0] * len(pairs), groups)
    joined = join_identical(table, digests).frame
    for digest in set(digests):
        assert joined["group"][[value == digest for value in digests]].nunique() == 1
    order = np.random.default_rng(seed).permutation(len(pairs))
    other = Table(table.name, table.frame.iloc[order], table.classes)
    again = join_identical(other, [digests[row] for row in order]).frame
    assert dict(zip(again["id"], again["group"], strict=True)) == dict(zip(joined["id"], joined["group"], strict=True))
    assert set(joined["group"]) <= set(groups)
