"""The datasets by name: what they are, where they come from, on which terms, and how a folder of one looks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import dedent


@dataclass(frozen=True)
class Entry:
    """A dataset.

    Attributes:
        name: As in `tables.DATASETS`; one entry may stand for several, such as "medmnist:<name>".
        title: One line that says what it holds.
        licence: The terms of use of the images and labels, as their publisher states them.
        url: Where to get it; "" where there is nothing to get.
        tree: The folder as unpacked, "" where no folder is needed.
        paper: Its part in the paper's experiments: "source", "target", or "" if it has none.
    """

    name: str
    title: str
    licence: str
    url: str
    tree: str
    paper: str = ""


_KAGGLE = "rules of the Kaggle competition, to be accepted there; not to be passed on"


def _entry(name: str, title: str, licence: str, url: str, tree: str, paper: str = "") -> Entry:
    return Entry(name, title, licence, url, dedent(tree).strip("\n"), paper)


CATALOGUE = (
    _entry(
        "ham10k",
        "HAM10000: dermoscopic images of pigmented skin lesions, 7 diagnoses; the group is the lesion",
        "CC BY-NC 4.0",
        "https://doi.org/10.7910/DVN/DBW86T or https://challenge.isic-archive.com/data/#2018",
        """
        HAM10000_metadata.csv
        HAM10000_images_part_1/ISIC_*.jpg
        HAM10000_images_part_2/ISIC_*.jpg
        ISIC2018_Task3_Validation_GroundTruth.csv, ISIC2018_Task3_Validation_Input/*.jpg
        ISIC2018_Task3_Test_GroundTruth.csv, ISIC2018_Task3_Test_Input/*.jpg
        """,
        "source",
    ),
    _entry(
        "isic2019",
        "ISIC 2019 training set: dermoscopic images, 8 diagnoses; the group is the lesion",
        "CC BY-NC 4.0",
        "https://challenge.isic-archive.com/data/#2019",
        """
        ISIC_2019_Training_GroundTruth.csv
        ISIC_2019_Training_Metadata.csv
        ISIC_2019_Training_Input/ISIC_*.jpg
        """,
        "target",
    ),
    _entry(
        "eyepacs",
        "EyePACS (Kaggle 2015): fundus photographs, 5 grades of retinopathy; the group is the patient, two eyes each",
        _KAGGLE,
        "https://www.kaggle.com/c/diabetic-retinopathy-detection",
        """
        trainLabels.csv
        retinopathy_solution.csv        (posted in the competition's forum after its end)
        train/*_left.jpeg, *_right.jpeg
        test/*_left.jpeg, *_right.jpeg
        """,
        "source",
    ),
    _entry(
        "aptos2019",
        "APTOS 2019: fundus photographs of Indian clinics, 5 grades of retinopathy; patients are not known",
        _KAGGLE,
        "https://www.kaggle.com/c/aptos2019-blindness-detection",
        """
        train.csv
        train_images/*.png
        """,
        "target",
    ),
    _entry(
        "chexpert",
        "CheXpert v1.0, full size or -small: frontal chest X-rays, 13 findings, multi-label; the group is the patient",
        "Stanford University's research use agreement: non-commercial research, not to be passed on",
        "https://stanfordaimi.azurewebsites.net/datasets/8cbd9ed4-2eb9-4565-affc-111cf4f7ebe2",
        """
        train.csv
        valid.csv
        train/patient*/study*/view*_frontal.jpg
        valid/patient*/study*/view*_frontal.jpg
        test_labels.csv, test/patient*/study*/view*_frontal.jpg
        """,
        "source",
    ),
    _entry(
        "rsna",
        "RSNA Pneumonia (Kaggle 2018, stage 2): chest X-rays (DICOM), Normal against Lung Opacity; one image a patient",
        "any purpose, with RSNA's attribution; on Kaggle also the rules of the competition",
        "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        """
        stage_2_train_labels.csv
        stage_2_detailed_class_info.csv
        stage_2_train_images/*.dcm
        """,
        "target",
    ),
    _entry(
        "kermany",
        "Kermany's chest X-rays of children, normal against pneumonia; official split",
        "CC BY 4.0",
        "https://data.mendeley.com/datasets/rscbjbr9sj/2",
        """
        chest_xray/train/NORMAL/*.jpeg, train/PNEUMONIA/*.jpeg
        chest_xray/val/...
        chest_xray/test/...
        """,
    ),
    _entry(
        "nih_pneumonia",
        "A list of NIH ChestX-ray14: frontal chest X-rays, Pneumonia against No Finding; the group is the patient",
        "no restrictions; link to the NIH and cite Wang et al. 2017",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        """
        labels.csv                      (image, patient, finding)
        images/*.png                    (or images_001/images/*.png to images_012)
        """,
    ),
    _entry(
        "fundus4",
        "Fundus photographs in four folders, gathered from several sources",
        "unclear: to try things with, not to pass on",
        "https://www.kaggle.com/datasets/gunavenkatdoddi/eye-diseases-classification",
        """
        cataract/*
        diabetic_retinopathy/*
        glaucoma/*
        normal/*
        """,
    ),
    _entry(
        "medmnist:<name>",
        "MedMNIST v2 and MedMNIST+: 2-D sets at 28, 64, 128 and 224 px; official split",
        "CC BY 4.0; DermaMNIST CC BY-NC 4.0",
        "https://medmnist.com",
        """
        retinamnist.npz, retinamnist_64.npz, ...
        """,
    ),
    _entry(
        "folder",
        "Your own images, a folder for each class",
        "yours",
        "",
        """
        <class>/*                       (or train/<class>/*, val/..., test/...)
        """,
    ),
    _entry(
        "csv",
        "Your own images, listed in a CSV file that --labels names",
        "yours",
        "",
        """
        labels.csv                      (image,label[,group][,split]; or labels for several)
        any/folders/*.jpg
        """,
    ),
    _entry("synthetic:<name>", "Images drawn by the package, to try things without data", "MIT", "", ""),
)
"""All datasets, the paper's six first."""


def entry(name: str) -> Entry | None:
    """Returns what is known about a dataset, such as "ham10k" or "medmnist:retinamnist_64", or None."""
    return next((known for known in CATALOGUE if re.fullmatch(known.name.replace("<name>", ".+"), name)), None)


def markdown(paper: bool) -> str:
    """Returns the paper's datasets, or the others, for the book: a section each with its terms and folder."""
    sections = []
    for known in CATALOGUE:
        if bool(known.paper) is not paper or known.name in ("csv", "folder", "synthetic:<name>"):
            continue
        name = known.name.replace("<", "\\<")
        places = " or ".join(f"<{place}>" for place in known.url.split(" or "))
        role = f" The paper's {known.paper}." if known.paper else ""
        sections.append(
            f"### {name}\n\n{known.title}.{role} Licence: {known.licence}. {places}\n\n```text\n{known.tree}\n```"
        )
    return "\n\n".join(sections)
