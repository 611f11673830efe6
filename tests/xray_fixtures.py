"""Small chest X-ray datasets in their official layouts, and DICOM files with real headers."""

import io
from pathlib import Path

import numpy as np
from data_fixtures import official, write_image, write_lines
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from medmerge.data.loaders import xray

NORMAL, OPACITY, NEITHER = "Normal", "Lung Opacity", "No Lung Opacity / Not Normal"


def dicom(pixels, *, kind="MONOCHROME2", bits=8, syntax=ExplicitVRLittleEndian, signed=False, **header) -> FileDataset:
    """A radiograph as DICOM: stored values uint8 or uint16 (int16 if signed) [H, W], or [H, W, 3].

    The keywords that are left are further elements of the header, such as WindowCenter.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["medmerge"])
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CR"
    dataset.PatientID = "0004cfab-14fd-4e49-80ba-63a80b6bddd6"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = kind
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    for name, value in header.items():
        setattr(dataset, name, value)
    if syntax == JPEGBaseline8Bit:
        dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
        dataset.PixelData = encapsulate([jpeg(pixels)])
        dataset["PixelData"].is_undefined_length = True
    else:
        content = pixels.tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return dataset


def jpeg(pixels: np.ndarray) -> bytes:
    """Baseline JPEG, as RSNA's DICOM files hold it."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return content.getvalue()


def to_bytes(dataset: FileDataset) -> bytes:
    """The bytes of a DICOM file."""
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def write_rsna(root: Path, patients: dict[str, tuple[str, int]]) -> Path:
    """An RSNA dataset: for each patient the class and the number of boxes; counts as official."""
    boxes, info = [], []
    for number, (patient, (label, count)) in enumerate(patients.items()):
        for box in range(max(count, 1)):
            boxes.append(f"{patient},{264.0 + box},152.0,213.0,379.0,1" if count else f"{patient},,,,,0")
            info.append(f"{patient},{label}")
        pixels = np.random.default_rng(number).integers(0, 256, (12, 10), dtype=np.uint8)
        path = root / "stage_2_train_images" / f"{patient}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes(dicom(pixels, syntax=JPEGBaseline8Bit)))
    write_lines(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", boxes)
    write_lines(root / "stage_2_detailed_class_info.csv", "patientId,class", info)
    official("rsna").update(dict.fromkeys(official("rsna"), len(info)))
    return root


def edit(path: Path, old: str, new: str, count: int = -1) -> None:
    """Replaces a text in a labels file, which must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def write_chexpert(root: Path, *, name: str = "CheXpert-v1.0-small", test: bool = True) -> Path:
    """A CheXpert of three patients to train on, one to validate and two to test; counts as official.

    `test` says whether it has the images and labels of test, whose file has paths and no other column.
    """
    test_1, test_2 = "0,1,1,1,0,0,0,0,0,0,0,0,0,1", "1" + ",0" * 13
    parts = {
        "train": {
            "train/patient00001/study1/view1_frontal.jpg": ",1,,-1.0,,1.0,0.0",
            "train/patient00001/study1/view2_lateral.jpg": ",1,,-1.0,,1.0,0.0",
            "train/patient00002/study1/view1_frontal.jpg": "1.0,0,0,0.0,0,0,1.0",
            "train/patient00002/study2/view1_frontal.jpg": "1.0,0,1,1.0,0,-1,",
            "train/patient00003/study1/view1_frontal.jpg": ",0,,,0,0,0",
        },
        "valid": {
            "valid/patient64541/study1/view1_frontal.jpg": "0,1,1,0,0,0,0,0,0,0,0,0,0,0",
            "valid/patient64541/study1/view2_lateral.jpg": "0,1,1,0,0,0,0,0,0,0,0,0,0,0",
        },
        "test_labels": {
            "test/patient64741/study1/view1_frontal.jpg": test_1,
            "test/patient64741/study1/view2_frontal.jpg": test_1,
            "test/patient64741/study1/view3_lateral.jpg": test_1,
            "test/patient64742/study1/view1_frontal.jpg": test_2,
        },
    }
    for number, (part, rows) in enumerate(parts.items()):
        official("chexpert")[part] = len(rows)
        if part != "test_labels" or test:
            write_chexpert_part(root / name, part, rows, 10 * number)
    return root / name


def write_chexpert_part(folder: Path, part: str, rows: dict[str, str], seed: int) -> None:
    """A CheXpert file and its images: for each path its labels from No Finding on, blank where they end."""
    prefix, about, more = ("", "", "") if part == "test_labels" else (f"{folder.name}/", ",Sex,Age", ",Male,60")
    lines = [f"{prefix}{path}{more},{labels}{',' * (13 - labels.count(','))}" for path, labels in rows.items()]
    write_lines(folder / f"{part}.csv", f"Path{about},No Finding,{','.join(xray.CHEXPERT_CLASSES)}", lines)
    for number, path in enumerate(rows):
        write_image(folder / path, seed + number)


KERMANY_IMAGES = {
    "train/NORMAL": ("IM-0115-0001", "IM-0429-0001-0002", "NORMAL2-IM-0383-0001"),
    "train/PNEUMONIA": ("person1_bacteria_1", "person1_bacteria_2", "person1_virus_6", "person447_virus_921_1"),
    "val/NORMAL": ("NORMAL2-IM-1427-0001",),
    "val/PNEUMONIA": ("person1946_bacteria_4874",),
    "test/NORMAL": ("IM-0001-0001",),
    "test/PNEUMONIA": ("person1_virus_7", "person100_bacteria_475"),
}


def write_kermany(root: Path, images=KERMANY_IMAGES) -> Path:
    """A Kermany dataset of a few images; counts as official."""
    for place, names in images.items():
        for name in names:
            write_image(root / "chest_xray" / place / f"{name}.jpeg", len(name))
    official("kermany").update({place: len(images.get(place, ())) for place in official("kermany")})
    return root


def write_nih(root: Path, folders: tuple[str, ...] = ("images",)) -> Path:
    """An NIH list of eight images of four patients, spread over `folders`."""
    lines = ["image,patient,finding,Pneumonia"]
    for number in range(8):
        name, finding = f"{number // 2 + 61:08d}_{number:03d}.png", ("No Finding", "Pneumonia")[number % 2]
        lines.append(f"{name},{number // 2 + 61:08d},{finding},{number % 2}")
        write_image(root / folders[number % len(folders)] / name, number)
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root
