"""`medmerge data`: what it prints, what it writes, and what it refuses."""

import re

import pytest
from data_fixtures import real, write_image, write_isic2019

from medmerge.cli import main as cli
from medmerge.data import CATALOGUE, load_table, split, split_files


def run(capsys, *arguments) -> tuple[int, str, str]:
    """The exit status, and what was printed and complained about."""
    status = cli.main(["data", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def own(tmp_path):
    """Sixty images in a folder, two of a patient, with a copy across patients; the labels beside it."""
    root = tmp_path / "photos"
    rows = ["image,label,group"]
    for number in range(60):
        write_image(root / f"{number:02d}.png", number, (64, 64))
        rows.append(f"{number:02d}.png,{'ill' if number % 4 < 2 else 'well'},p{number // 2}")
    (root / "59.png").write_bytes((root / "00.png").read_bytes())
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return root


def test_datasets_are_listed_with_licence_and_folder(capsys):
    status, out, _ = run(capsys)
    assert status == 0 and run(capsys, "list")[1] == out
    for known in CATALOGUE:
        assert re.search(rf"^{re.escape(known.name)}( |$)", out, re.MULTILINE)
        assert all(text in out for text in (known.title, known.licence, known.url, *known.tree.splitlines()))


def test_own_images_are_shown_with_leaks_first(capsys, own):
    before, labels = sorted(own.rglob("*")), ("--labels", own.parent / "labels.csv")
    status, out, _ = run(capsys, "csv", own, *labels)
    assert status == 0 and sorted(own.rglob("*")) == before
    assert "60 in 2 classes, 30 groups" in out and re.search(r"images +36 +12 +12 +60\n", out)
    assert "Each of the 30 groups is in one part." in out
    assert "1 set of byte-identical files, 2 images" in out and "00.png=59.png" in out and "(ill / well)" in out
    status, out, _ = run(capsys, "csv", own, *labels, "--split", "random")
    first = out.split("What the split hides\n")[1].splitlines()[0]
    assert status == 0 and re.match(r"  LEAK +\d+ groups are in more than one part", first)
    status, out, _ = run(capsys, "csv", own, *labels, "--group-identical")
    assert status == 0 and "LEAK" not in out and "each is in one group" in out and "30 groups" in out


def test_without_images_nothing_is_decoded(capsys, own):
    (own / "00.png").write_text("broken")
    labels = ("--labels", own.parent / "labels.csv")
    status, out, _ = run(capsys, "csv", own, *labels, "--no-images")
    assert status == 0 and out.count("not checked") == 2
    status, _, err = run(capsys, "csv", own, *labels)
    assert status == 2 and "00.png" in err
    status, _, err = run(capsys, "csv", own, *labels, "--no-images", "--group-identical")
    assert status == 2 and "--group-identical needs the images" in err


def test_a_split_is_written_and_cited(capsys, own, tmp_path):
    labels = ("--labels", own.parent / "labels.csv")
    path = tmp_path / "splits" / "mine.csv"
    chosen = ("--split", "random", "--seed", 4, "--fractions", 0.5, 0.25, 0.25)
    status, out, _ = run(capsys, "csv", own, *labels, *chosen, "--write-split", path)
    given = split_files.read(path)
    assert status == 0 and f"Split: random, 50/25/25, seed 4 (sha256 {given.fingerprint[:12]})" in out
    table = load_table("csv", own, labels=str(own.parent / "labels.csv"))
    assert list(given.parts.values()) == split(table, method="random", seed=4, fractions=(0.5, 0.25, 0.25)).tolist()


def test_a_split_is_never_written_into_the_dataset(capsys, own):
    arguments = ("csv", own, "--labels", own.parent / "labels.csv", "--write-split", own / "new" / "x.csv")
    status, printed, err = run(capsys, *arguments)
    assert status == 2 and "only read" in err and not printed and not (own / "new").exists()


def write_target(root):
    """An ISIC-2019 of 80 images, ten of each class."""
    classes = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    return write_isic2019(root, {f"ISIC_{number:07d}": classes[number % 8] for number in range(80)})


def test_a_source_inside_the_target_is_told(capsys, tmp_path):
    target, source = write_target(tmp_path / "target"), tmp_path / "source"
    for number in range(30):
        copy = source / ("good", "bad")[number % 2] / f"mine{number}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((target / "ISIC_2019_Training_Input" / f"ISIC_{number:07d}.jpg").read_bytes())
    status, out, _ = run(capsys, "isic2019", target, "--against", "isic2019", target)
    assert status == 0 and "80 of 80 images (100.0 %) are in both: 80 the same image, 0 the same file" in out
    assert "Whoever has trained on isic2019 has met 16 of 16 test images (100.0 %)." in out
    out = run(capsys, "isic2019", target, "--against", "folder", source)[1]
    assert "30 of 80 images (37.5 %) are in both: 0 the same image, 30 the same file" in out
    assert (
        "No image, no file and no group is in both."
        in run(capsys, "isic2019", target, "--against", "synthetic:moles")[1]
    )


def test_partial_downloads_are_counted_under_the_folder_of_data(capsys, tmp_path, monkeypatch):
    root = write_target(tmp_path / "isic")
    for number in range(4):
        (root / "ISIC_2019_Training_Input" / f"ISIC_{number:07d}.jpg").unlink()
    monkeypatch.setenv("MEDMERGE_DATA", str(tmp_path))
    monkeypatch.chdir(root)
    status, out, _ = run(capsys, "isic2019", "isic")
    assert status == 0 and "76 of 80 images are here." in out and "76 in 8 classes" in out and f"{root}\n" in out
    assert "The paper counts 25,331 images, the official files 25,331; 76 are here." in out
    status, out, _ = run(capsys, "isic2019", root, "--no-images")
    assert status == 0 and "80 in 8 classes, 80 groups; 76 of 80 are here" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ham10",), "nearest is 'ham10k'"),
        (("ham10k", "nowhere"), "there is no folder nowhere"),
        (("synthetic:moles", "--fractions", 0.6, 0.2, 0.1), "the sum 0.9"),
        (("synthetic:moles", "--exclude", "none.csv"), "cannot be read"),
        (("synthetic:moles", "--against", "ham10k", "x", "more"), "--against takes a dataset and its folder"),
    ],
)
def test_what_cannot_be_read_is_refused(capsys, arguments, message):
    status, _, err = run(capsys, *arguments)
    assert status == 2 and message in err and "Traceback" not in err


def test_real_isic2019_against_ham10000(capsys):
    """The paper's pair, from labels alone: two fifths of the test images are in the source."""
    arguments = ("isic2019", real("isic2019"), "--no-images", "--split", "random")
    status, out, _ = run(capsys, *arguments, "--against", "ham10k", real("ham10000"))
    assert status == 0 and "10,015 of 25,331 images (39.5 %) are in both: 10,015 the same image" in out
    assert "2,823 of 5,066 test images (55.7 %)" in out
