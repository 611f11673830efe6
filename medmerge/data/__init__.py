"""Datasets: each as a table, split by patient or lesion, decoded once, served in batches."""

from medmerge.data.catalogue import CATALOGUE, PAPER_NUMBERS
from medmerge.data.dataset import Dataset, load
from medmerge.data.images import Images, glance, load_images
from medmerge.data.loaders import DATASETS, known_names, listed_ids, load_table
from medmerge.data.reading import read_ids
from medmerge.data.splits import split
from medmerge.data.table import DataError, Table
from medmerge.samples import Samples

__all__ = [
    "CATALOGUE",
    "DATASETS",
    "DataError",
    "Dataset",
    "Images",
    "PAPER_NUMBERS",
    "Samples",
    "Table",
    "glance",
    "known_names",
    "listed_ids",
    "load",
    "load_images",
    "load_table",
    "read_ids",
    "split",
]
