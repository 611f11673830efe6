"""Datasheets: what a dataset's labels and images say and what splits leak, measured once and read from records."""

from pathlib import Path

import numpy as np
import pytest
from data_fixtures import write_ham10k, write_isic2019
from PIL import Image
from test_study import write_weights

from medmerge import Parameters
from medmerge.pages import leaks
from medmerge.study import datasheet
from medmerge.study.names import title
from medmerge.study.params import ParameterError
from medmerge.study.records import RecordError

BASE = {
    **{"track": "open", "datasets": ["ham10k=ham", "isic2019=isic"], "seeds": [0, 1, 2], "image_size": 32},
    **{"backbone": "densenet_small", "base_data": "objects", "base_weights": "w/objects.safetensors", "device": "cpu"},
    **{"precision": "fp32", "notebook": "data"},
}


def parameters(**changes) -> Parameters:
    return Parameters.parse({**BASE, **changes})


@pytest.fixture
def project(project):
    """A HAM10000 of 140 images, two of each lesion that look alike, and an ISIC-2019 that holds it and 60 more."""
    write_weights(project)
    write_ham10k(project / "ham", count=140)
    for number in range(140):
        pixels = np.random.default_rng(number // 2).integers(0, 250, (15, 20, 3), dtype=np.uint8)
        pixels += np.random.default_rng(number).integers(0, 6, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(project / "ham/images" / f"ISIC_{number:07d}.jpg")
    names = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    labels = {f"ISIC_{number:07d}": names[number % 8] for number in range(200)}
    write_isic2019(project / "isic", labels, {image: f"HAM_{int(image[5:]) // 2:07d}" for image in list(labels)[:140]})
    return project


def test_sheets_say_what_is_in_the_files(project):
    sheets, _ = datasheet.run(parameters())
    ham, isic = sheets["ham10k"], sheets["isic2019"]
    assert (ham["listed"], ham["here"], ham["groups"], ham["images in groups of several"]) == (140, 140, 70, 140)
    assert (isic["listed"], isic["groups"], isic["images in groups of several"]) == (200, 130, 140)
    assert ham["classes"] == dict.fromkeys(("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), 20)
    assert ham["identical"] == {"checked": 140, "sets": 0, "files": 0, "sets of several groups": 0,
                                "sets of several labels": 0}  # fmt: skip
    assert "60 of 200 images carry no group; each is a group of its own." in isic["notes"]


def test_leaks_are_what_counting_by_hand_gives(project):
    sheets, overlaps = datasheet.run(parameters())
    table = leaks.leak_table(sheets).set_index(["dataset", "split", "kind"])
    assert (table["draws"] == 3).all() and (table.loc[("ham10k", "grouped", "group"), ["mean", "high"]] == 0).all()
    draws = [row for row in sheets["ham10k"]["leaks"] if row["split"] == "random"]
    for row in draws:
        order = np.random.default_rng(row["seed"]).permutation(140)
        train, test = set(order[:112]), set(order[126:])
        assert row["test"] == 14 and row["groups"] == sum(image ^ 1 in train for image in test)
    shares = [row["groups"] / 14 for row in draws]
    assert table.loc[("ham10k", "random", "group"), "mean"] == pytest.approx(np.mean(shares))
    (within, back) = overlaps
    assert (within["in"], within["of"]) == ("ham10k", "isic2019") and within["image"] + within["file"] == 140
    assert back["image"] + back["file"] == 140 and back["share of random test"] == 1
    assert 0.5 < within["share of random test"] < 0.9


def test_probes_gain_from_lesions_on_both_sides(project):
    """Two images of a lesion look alike and nothing else tells its class: only a copy in training does."""
    sheets, _ = datasheet.run(parameters(seeds=list(range(6))))
    table = leaks.probe_table(sheets).set_index(["dataset", "probe"])
    gap = table.loc[("ham10k", "nearest neighbour")]
    assert gap["difference"] == pytest.approx(gap["random"] - gap["grouped"])
    assert gap["random"] > 0.5 > 0.3 > gap["grouped"] and gap["low"] <= gap["difference"] <= gap["high"]
    assert sheets["ham10k"]["near"]["pairs"] == 70 and sheets["ham10k"]["near"]["pairs of two groups"] == 0


def test_a_second_call_reads_the_records(project):
    first = datasheet.run(parameters())
    for path in [*project.glob("ham/**/*"), *project.glob("isic/**/*")]:
        path.unlink() if path.is_file() else None
    datasheet.check(parameters())
    assert None not in datasheet.state(parameters()).values() and datasheet.run(parameters()) == first
    with pytest.raises(RecordError, match=r"ham10k.json was measured with seeds \[0, 1, 2\], not \[0\]; remove it"):
        datasheet.run(parameters(seeds=[0]))


def test_only_what_is_missing_is_measured(project, caplog):
    datasheet.run(parameters(datasets=["ham10k=ham"]))
    (project / "results/open/data/overlaps.json").unlink()
    with caplog.at_level("INFO"):
        datasheet.run(parameters())
    assert "measuring isic2019.json" in caplog.text and "measuring ham10k.json" not in caplog.text


def test_labels_alone_are_enough(project):
    for path in project.glob("*/*/*.jpg"):
        path.unlink()
    sheets, overlaps = datasheet.run(parameters())
    assert sheets["ham10k"]["here"] == 0 and sheets["ham10k"]["near"] is None and sheets["ham10k"]["probes"] == []
    assert overlaps[0]["image"] == 140 and overlaps[0]["file"] == 0
    assert set(leaks.leak_table(sheets)["kind"]) == {"group"} and leaks.probe_table(sheets).empty


def test_digests_of_files_that_are_elsewhere(project):
    for path in project.glob("*/*/*.jpg"):
        path.unlink()
    rows = [f"ISIC_{number:07d},{number // 4:064d}" for number in range(140)] + [f"other,{0:064d}"]
    Path("digests.csv").write_text("id,sha256\n" + "\n".join(rows) + "\n")
    sheets, _ = datasheet.run(parameters(datasets=["ham10k=ham"], digests=["ham10k=digests.csv"]))
    same = sheets["ham10k"]["identical"]
    assert (same["checked"], same["sets"], same["files"], same["sets of several groups"]) == (140, 35, 140, 35)
    assert sheets["ham10k"]["elsewhere"] == {"unlabelled": 1, "files shared with unlabelled images": 1}
    assert all(row["files"] >= row["groups"] for row in sheets["ham10k"]["leaks"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ["ham10k=nowhere"]}, "datasets: no ham10k in nowhere: there is no "),
        ({"datasets": ["ham1k=ham"]}, "datasets: there is no dataset 'ham1k'; known are ham10k"),
        ({"digests": ["ham10k=gone.csv"]}, "digests: no ham10k in gone.csv: there is no "),
    ],
)
def test_what_is_not_there_is_said_at_once(project, changes, message):
    with pytest.raises(ParameterError, match=message):
        datasheet.check(parameters(**changes))


def test_the_summary_says_what_was_measured(project):
    sheets, overlaps = datasheet.run(parameters())
    table = leaks.leak_table(sheets).set_index(["dataset", "split", "kind"])["mean"]
    random, met, worth = leaks.summary(sheets, overlaps).splitlines()
    ham, isic, seen = (
        f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
        for share in (*table[:, "random", "group"][["ham10k", "isic2019"]], overlaps[0]["share of random test"])
    )
    assert f"HAM10000 {ham}" in random and f"ISIC 2019 {isic}" in random and "patient or lesion" in random
    assert f"HAM10000 has met {seen} of a random test split of ISIC 2019" in met
    assert "all of ISIC 2019" not in met, "the whole is no news of its part"
    for row in leaks.probe_table(sheets).itertuples():
        told = f"{row.difference:+.3f} for a {row.probe} on {title(row.dataset)}" in worth
        assert told == (row.low > 0 or row.high < 0)
