"""The numbers of images that the paper states (section 3), beside those of the files, and why they differ.

Where a number was found, for the book: the counts of files are those of the loaders, which the tests compare with the
official labels files; CheXpert's 191,027 and 518 are by third parties, as its training and test labels are not public
files that could be counted here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperNumber:
    """What the paper says about the size of a dataset.

    Attributes:
        stated: Number of images in the paper.
        files: The number that the official files give when they are read as described.
        why: Sentences that explain the number, and the difference where there is one.
    """

    stated: int
    files: int
    why: str


PAPER_NUMBERS = {
    "ham10k": PaperNumber(
        stated=11_720,
        files=11_720,
        why="It is ISIC-2018 task 3: the 10,015 images of HAM10000 train, 193 others validate and 1,512 others test.",
    ),
    "isic2019": PaperNumber(
        stated=25_331,
        files=25_331,
        why="It is the ISIC-2019 training set. All 10,015 images of HAM10000, the source, are in it.",
    ),
    "eyepacs": PaperNumber(
        stated=88_702,
        files=88_702,
        why="It is both labels files of the competition, 35,126 images of train and 53,576 of test.",
    ),
    "aptos2019": PaperNumber(
        stated=3_962,
        files=3_662,
        why=(
            "The labels file lists 3,662 images, 300 fewer than the paper says: a digit's difference, so most likely a "
            "slip. The 1,928 images of test have no public labels."
        ),
    ),
    "chexpert": PaperNumber(
        stated=191_747,
        files=191_747,
        why=(
            "It is the frontal images alone: 191,027 of train, 202 of valid and 518 of test (the first and the last as "
            "counted by others)."
        ),
    ),
    "rsna": PaperNumber(
        stated=14_863,
        files=14_863,
        why=(
            "It is the 8,851 images of Normal and the 6,012 of Lung Opacity, without the 11,821 of No Lung Opacity / "
            "Not Normal."
        ),
    ),
}
"""The paper's six datasets."""
