"""Datasets: each as a table, split by patient or lesion, decoded once, served in batches."""

from medmerge.data.base import DataError, Table
from medmerge.data.dataset import Dataset, load
from medmerge.data.images import Samples, load_images
from medmerge.data.splits import split
from medmerge.data.tables import DATASETS, listed_ids, load_table

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "Samples",
    "Table",
    "listed_ids",
    "load",
    "load_images",
    "load_table",
    "split",
]
