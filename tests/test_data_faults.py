"""What people's files are like: read rightly, said, or refused with a way out; never wrong without a word."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import write_csv, write_image
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from xray_fixtures import dicom, to_bytes

from medmerge import data
from medmerge.cli import main as cli
from medmerge.data import DataError, load_images, load_table, read_ids, split

FOUR = ("a.png", "b.png", "c.png", "d.png")


def own(root, text: str, images=FOUR):
    """Reads a labels file of own images; a text, or bytes."""
    labels = Path(write_csv(root, "", images))
    labels.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_table("csv", root, labels=str(labels))


def refused(root, text, *parts: str, images=FOUR):
    with pytest.raises(DataError) as error:
        own(root, text, images)
    assert all(part in str(error.value) for part in parts), str(error.value)


def tree(root, *files: str):
    for number, file in enumerate(files):
        write_image(root / file, number)
    return root


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize("name", ["patient", "patient_id", "PatientID", "Patient ID", "lesion_id", "subject", "case",
                                  "study", "StudyNo", "id_patient", "Participant-ID", "eye_id", "MRN"])  # fmt: skip
def test_a_column_of_patients_or_lesions_is_the_group_and_said(tmp_path, name):
    table = own(tmp_path, f"image,label,{name}\na.png,x,p1\nb.png,y,p1\nc.png,x,p2\nd.png,y,p2\n")
    assert table.frame["group"].tolist() == ["p1", "p1", "p2", "p2"]
    assert f"The column {name} is taken for the group, which no grouped split cuts." in table.notes


@pytest.mark.parametrize("names", ["patient_id,lesion_id", "study,subject", "Patient,patient_no"])
def test_two_such_columns_are_a_question(tmp_path, names):
    first, second = names.split(",")
    refused(tmp_path, f"image,label,{names}\na.png,x,1,1\nb.png,y,1,2\n", first, second, "group")


def test_a_group_that_is_given_and_columns_of_another_meaning(tmp_path):
    table = own(tmp_path, "image,label,group,patient_age,patient\na.png,x,g,7,1\nb.png,y,g,8,2\n")
    assert set(table.frame["group"]) == {"g"} and "Columns not used: patient_age, patient." in table.notes
    assert own(tmp_path, "image,label,eye,age\na.png,x,left,7\nb.png,y,left,8\n").frame["group"].nunique() == 2


MISSING = ["", "nan", "NA", "N/A", "None", "null", "-", "--", "?", "unknown", "<NA>", "not available", " "]


@pytest.mark.parametrize("text", MISSING)
def test_missing_is_missing_in_groups_and_labels(tmp_path, text):
    table = own(tmp_path, f"image,label,group\na.png,x,{text}\nb.png,y,{text}\nc.png,x,p\nd.png,y,p\n")
    assert table.frame["group"].tolist() == ["a.png", "b.png", "p", "p"]
    assert "2 of 4 images carry no group; each is a group of its own." in table.notes
    refused(tmp_path, f"image,label\na.png,x\nb.png,{text}\nc.png,y\n", "row 2, image b.png, has no label")
    if text.strip():
        refused(tmp_path, f"image,labels\na.png,x\nb.png,{text}\n", "row 2", "is no class")
    blank = own(tmp_path, f"image,label:x\na.png,1\nb.png,{text}\nc.png,0\n")
    assert blank.labels.ravel().tolist() == [1, 0, 0] and any("1 blank" in note for note in blank.notes)


def test_plus_is_a_class():
    assert not data.table.is_missing("+") and not data.table.is_missing("0") and not data.table.is_missing("nap")


NFC, NFD = unicodedata.normalize("NFC", "naïve"), unicodedata.normalize("NFD", "naïve")
ALIKE = [("7", "7.0"), ("7", "007"), ("1", "01"), ("p7", "P07"), ("x y", "x  y"), ("x_y", "x y"), ("Mole", "mole"),
         (NFC, NFD), ("x\u00a0y", "x y"), ("x\u200b", "x"), ("７", "7")]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_values_that_differ_in_form_alone_are_named(tmp_path, one, other):
    rows = "image,label,group\na.png,{},{}\nb.png,{},{}\nc.png,z,r\nd.png,z,r\n"
    for text in (rows.format(one, "p", other, "q"), rows.format("s", one, "t", other)):
        refused(tmp_path, text, repr(one), repr(other), "differ only in form")
    refused(tmp_path, f"image,label\n{one}.png,x\n{other}.png,y\n", repr(f"{one}.png"), repr(f"{other}.png"), images=())
    refused(tmp_path, f"image,labels\na.png,{one}\nb.png,{other}|z\n", repr(one), repr(other))
    root = tree(tmp_path / "folders", f"train/{one}/1.png", "train/else/2.png", f"test/{other}/3.png")
    with pytest.raises(DataError, match="differ only in form"):
        load_table("folder", root)


def test_values_that_are_two_stay_two(tmp_path):
    table = own(tmp_path, "image,label,group\na.png,1,1.1\nb.png,10,1.2\nc.png,-1,x-y\nd.png,1,xy\n")
    assert table.classes == ("-1", "1", "10") and table.frame["group"].nunique() == 4


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Testing"),
        ("train_set", "Validation", "TEST"),
        ("01 Train", "02-test"),
        ("TrainData", "dev", "testing_images"),
        ("Training Set", "Test Set"),
    ],
)
def test_parts_in_any_spelling_are_parts(tmp_path, names):
    table = load_table("folder", tree(tmp_path, *(f"{n}/{k}/{i}.png" for n in names for k in "xy" for i in range(3))))
    assert table.classes == ("x", "y") and set(table.frame["split"]) <= {"train", "val", "test"}
    assert table.frame["split"].nunique() == len(names)
    assert any(names[0] in note and "parts of a split, not classes" in note for note in table.notes)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("train/a/1.png", "evaluation/a/2.png", "train/b/1.png"), "evaluation as val or test"),
        (("Test/a/1.png", "Testing/b/2.png", "train/a/1.png"), "Test as test, Testing as test"),
        (("Training/1.png", "Testing/2.png"), "Testing as test, Training as train"),
        (("fold1/a/1.png", "fold1/b/2.png", "fold2/a/3.png", "fold2/b/4.png"), "fold1 and fold2"),
        (("site A/x/1.png", "site A/y/2.png", "site B/X/3.png", "site B/y/4.png"), "hold the same folders (x, y)"),
        (("cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"), "<root>/test/..."),
        (("train/p/x/1.png", "train/p/y/1.png", "train/q/x/2.png", "train/q/y/2.png"), "p and q"),
        (("train/a/1.png", "control/2.png"), "If train is a class, rename it"),
    ],
)
def test_a_guess_about_folders_that_could_be_another_is_not_made(tmp_path, files, said):
    with pytest.raises(DataError) as error:
        load_table("folder", tree(tmp_path, *files))
    assert said in str(error.value)


def test_folders_of_patients_within_classes_are_read(tmp_path):
    table = load_table("folder", tree(tmp_path, "x/p1/1.png", "x/p2/2.png", "y/p3/3.png", "y/p1/4.png"))
    assert len(table.frame) == 4


def test_every_file_in_a_class_folder_is_read_or_reported(tmp_path):
    root = tree(tmp_path / "set", *(f"x/{n}" for n in ("1.jfif", "2.jpe", "3.ppm", "4.jp2", "5.TIF", "6.webp")))
    tree(tmp_path, "elsewhere/deep/7.png", "set/y/8.png", "set/y/.hidden.png", "set/y/.old/9.png")
    (root / "x" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "x" / "again").symlink_to(tmp_path / "elsewhere")
    (root / "y" / "back").symlink_to(root / "x")
    (root / "y" / "up").symlink_to(tmp_path)
    (root / "y" / "scan").write_bytes(to_bytes(dicom(np.zeros((4, 4), np.uint8))))
    (root / "y" / "notes.doc").write_bytes(b"x")
    table = load_table("folder", root)
    assert table.frame["id"].tolist() == [
        *("x/1.jfif", "x/2.jpe", "x/3.ppm", "x/4.jp2", "x/5.TIF", "x/6.webp", "x/again/deep/7.png"),
        *("y/8.png", "y/scan"),
    ]
    assert table.notes[0] == (
        "Files in the folders of classes that are not read: 1 .doc, 1 hidden, 1 hidden folder, "
        "3 link to a folder that is read elsewhere."
    )


def test_a_class_that_vanishes_is_said_where_runs_start(tmp_path, caplog):
    root = tree(tmp_path, *(f"{kind}/{n}.png" for kind in "xy" for n in range(6)))
    (root / "z").mkdir()
    (root / "z" / "1.mp4").write_bytes(b"x")
    with caplog.at_level("INFO"):
        dataset = data.load("folder", root, image_size=8, split="random")
    assert "Folders without an image, left out: z." in caplog.text and "1 .mp4" in caplog.text
    assert any("left out: z" in note for note in dataset.notes)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_files_of_several_pages_are_refused(tmp_path, name):
    pages = [Image.fromarray(np.full((20, 20), value, np.uint8)) for value in (0, 90, 200)]
    table = own(tmp_path, f"image,label\n{name},x\nb.png,y\n", (name, "b.png"))
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=rf"{name} \(it has 3 pages or frames"):
        load_images(table, 8, cache=tmp_path / "cache")


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize(("bits", "said"), [(12, "4,095, as of 12"), (10, "1,023, as of 10"), (14, "16,383, as of 14"),
                                            (8, "255, as of 8")])  # fmt: skip
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_fewer_bits_in_sixteen_are_refused_with_what_to_do(tmp_path, bits, said, suffix):
    names = [f"{name}.{suffix}" for name in "ab"]
    table = own(tmp_path, "image,label\n" + "".join(f"{n},{n[0]}\n" for n in names), tuple(names))
    for name in names:
        Image.fromarray(np.linspace(0, 2**bits - 1, 900).astype(np.uint16).reshape(30, 30)).save(tmp_path / name)
    for look in (lambda: load_images(table, 8, cache=tmp_path / "cache"), lambda: data.glance(table)):
        with pytest.raises(DataError) as error:
            look()
        assert said in str(error.value) and f"255 / {2**bits - 1}" in str(error.value)
    Image.fromarray(np.full((30, 30), 60_000, np.uint16)).save(tmp_path / names[0])
    assert "32 grey levels" in " ".join(load_images(table, 8, cache=tmp_path / "cache").notes) or bits == 14


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((30, 30)), "are of one colour all over: odd.png."),
        (np.arange(900).reshape(30, 30) % 17 * 15, "have 2 to 32 grey levels"),
        (np.arange(900).reshape(30, 30) % 2 * 255, "have 2 to 32 grey levels"),
        (np.where(np.arange(40_000) < 40, np.arange(40_000) * 6, 3).reshape(200, 200), "are nearly black"),
    ],
)
def test_odd_images_are_said_by_data_check_and_runs(tmp_path, pixels, said, capsys):
    names = ("odd.png", *(f"{number}.png" for number in range(11)))
    rows = "".join(f"{name},{'xy'[row % 2]}\n" for row, name in enumerate(names))
    table = own(tmp_path / "in", "image,label\n" + rows, names)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / "in" / "odd.png")
    for notes in (load_images(table, 8, cache=tmp_path).notes, load_images(table, 8, cache=tmp_path).notes):
        assert len(notes) == 1 and notes[0].startswith("1 of 12 images ") and said in notes[0]
    assert len(data.glance(table)) == 1
    assert cli.main(["data", "csv", str(tmp_path / "in"), "--labels", "labels.csv"]) == 0
    assert said[:20] in " ".join(capsys.readouterr().out.split())
    dataset = data.load("csv", tmp_path / "in", labels="labels.csv", image_size=8, resize="pad", split="random")
    assert any(said in note for note in dataset.notes)


def test_windows_of_functional_groups_are_honoured():
    values = np.array([[0, 1000, 2000, 3000, 4000]], dtype=np.uint16)
    plain = {"WindowCenter": "2000", "WindowWidth": "2000", "RescaleSlope": "1", "RescaleIntercept": "-500"}
    expected = data.decode.read_dicom(to_bytes(dicom(values, bits=12, **plain)))
    assert len(np.unique(expected)) > 2

    def group(**names):
        inner = Dataset()
        for name, value in names.items():
            setattr(inner, name, value)
        return Sequence([inner])

    for place in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        item = Dataset()
        item.FrameVOILUTSequence = group(WindowCenter="2000", WindowWidth="2000")
        item.PixelValueTransformationSequence = group(RescaleSlope="1", RescaleIntercept="-500")
        enhanced = dicom(values, bits=12, NumberOfFrames=1, **{place: Sequence([item])})
        assert (data.decode.read_dicom(to_bytes(enhanced)) == expected).all()
    shared, frame = Dataset(), Dataset()
    shared.FrameVOILUTSequence = group(WindowCenter="100", WindowWidth="10")
    shared.PixelValueTransformationSequence = group(RescaleSlope="1", RescaleIntercept="-500")
    frame.FrameVOILUTSequence = group(WindowCenter="2000", WindowWidth="2000", VOILUTFunction="LINEAR")
    both = {"SharedFunctionalGroupsSequence": Sequence([shared]), "PerFrameFunctionalGroupsSequence": Sequence([frame])}
    assert (data.decode.read_dicom(to_bytes(dicom(values, bits=12, **both))) == expected).all()


# ---------------------------------------------------------------- tables

TEXT = "image,label\na.png,x\nb.png,naïve\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode("utf-16"),
        TEXT.encode("utf-8-sig"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        ("sep=,\r\n" + TEXT).encode(),
        ('"sep=;"\r\n' + TEXT.replace(",", ";")).encode(),
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode(),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
    ],
)
def test_tables_as_spreadsheets_save_them_are_read(tmp_path, content):
    assert own(tmp_path, content).classes == ("naïve", "x")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (TEXT.encode("latin-1"), "line 3 is not UTF-8. As Latin-1 (Windows-1252) it reads 'b.png,naïve'"),
        (b"PK\x03\x04" + bytes(99), "an Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (TEXT.encode("utf-16-le"), "UTF-16 without a mark"),
        (b"image,label\na.png,x,\nb.png,y\n", "line 2, 'a.png,x,', has 3 of 2 values"),
        (b"image,label\na.png\n", "line 2, 'a.png', has 1 of 2 values"),
    ],
)
def test_files_that_are_no_tables_are_named_for_what_they_are(tmp_path, content, cause):
    refused(tmp_path, content, cause)


@pytest.mark.parametrize("listed", ["a,b", "a.jpg,b.jpg", "A.PNG,B.png", "a.png,b.tiff"])
def test_images_of_another_suffix_are_found_and_said(tmp_path, listed):
    first, second = listed.split(",")
    table = own(tmp_path, f"image,label\n{first},x\n{second},y\n")
    assert [Path(path).name for path in table.frame["path"]] == ["a.png", "b.png"]
    assert any("have another suffix or spelling on the disk" in note for note in table.notes)


def test_images_that_could_be_two_files_or_are_elsewhere_are_named(tmp_path):
    refused(tmp_path / "1", "image,label\na,x\nb.png,y\n", "a.jpg or a.png", images=("a.jpg", "a.png", "b.png"))
    refused(tmp_path / "2", "image,label\na,x\na.png,y\n", "'a' and 'a.png' are both")
    refused(tmp_path / "3", "image,label\nimgs/a.png,x\nimgs/b.png,y\n", "looked for as", "There is", "3/a.png")
    refused(tmp_path / "4", "image,label\na.png,x\nb.png,y\n", "There is", "imgs/a.png", images=("imgs/a.png",))


def test_all_broken_images_are_named_and_can_be_left_out(tmp_path, capsys):
    names = [f"{number}.png" for number in range(24)]
    rows = "image,label\n" + "".join(f"{name},{'xy'[row % 2]}\n" for row, name in enumerate(names))
    table = own(tmp_path / "in", rows, tuple(names))
    for name, content in (("3.png", b"broken"), ("8.png", b""), ("9.png", (tmp_path / "in/9.png").read_bytes()[:99])):
        (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        load_images(table, 8, cache=tmp_path / "cache")
    assert all(f"\n{n}.png: {tmp_path}/in/{n}.png (" in str(error.value) for n in (3, 8, 9))
    assert "BytesIO" not in str(error.value) and "--exclude FILE" in str(error.value)
    for text in (
        "3.png\n\n# a comment\n8.png\r\n9.png",
        "id,why\n3.png,\n8.png,x\n9.png,\n",
        "\ufeffimage\n3.png\n8.png\n9.png\n",
    ):
        (tmp_path / "out.txt").write_text(text)
        assert read_ids(tmp_path / "out.txt") == {"3.png", "8.png", "9.png"}
        words = ["data", "csv", str(tmp_path / "in"), "--labels", "labels.csv", "--exclude", str(tmp_path / "out.txt")]
        assert cli.main(words) == 0
        assert "3 of 24 images are left out by exclude." in capsys.readouterr().out
    (tmp_path / "out.txt").write_text("# nothing\n")
    for path, said in ((tmp_path / "out.txt", "lists no id"), (tmp_path / "none.txt", "cannot be read")):
        with pytest.raises(DataError, match=said):
            read_ids(path)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("xxxxyyyy", ["x (4 images, 4 groups)", "y (4 images, 4 groups)", "5 images of a class or more"]),
        ("xxxxxxxxxxy", ["y (1 image, 1 group)", "3 groups or more"]),
        ("xy", ["5 groups", "there are 2 groups"]),
    ],
)
def test_too_few_images_of_a_class_are_counted(tmp_path, labels, said, caplog):
    names = [f"{number}.png" for number in range(len(labels))]
    rows = "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True))
    table = own(tmp_path, "image,label\n" + rows, tuple(names))
    heard = []
    for seed in range(5):
        try:
            split(table, seed=seed)
        except DataError as error:
            heard.append(str(error))
    heard = " ".join([*heard, caplog.text])
    assert all(part in heard for part in said), heard
