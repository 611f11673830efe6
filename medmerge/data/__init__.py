"""Datasets: each as a table, split by patient or lesion, decoded once, served in batches."""

from medmerge.data.audit import Audit, audit, leakage, shared
from medmerge.data.base import DataError, Table
from medmerge.data.catalogue import CATALOGUE
from medmerge.data.dataset import Dataset, load
from medmerge.data.images import Images, load_images
from medmerge.data.paper_numbers import PAPER_NUMBERS
from medmerge.data.splits import join_identical, split
from medmerge.data.tables import DATASETS, listed_ids, load_table
from medmerge.samples import Samples

__all__ = [
    "Audit",
    "CATALOGUE",
    "DATASETS",
    "DataError",
    "Dataset",
    "Images",
    "PAPER_NUMBERS",
    "Samples",
    "Table",
    "audit",
    "join_identical",
    "leakage",
    "listed_ids",
    "load",
    "load_images",
    "load_table",
    "shared",
    "split",
]
