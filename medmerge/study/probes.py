"""What meeting a patient or lesion in training is worth: simple classifiers on random and on grouped splits."""

import logging

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medmerge import backbones, data, devices
from medmerge.data import splits
from medmerge.data.table import Table
from medmerge.study.inputs import resolve
from medmerge.study.params import Parameters
from medmerge.training import Protocol, Task, features

log = logging.getLogger(__name__)

METHODS = ("random", "grouped")
FRACTIONS = (0.8, 0.1, 0.1)
CLASSIFIERS = {"nearest neighbour": KNeighborsClassifier(1), "linear probe": LogisticRegression(max_iter=2000)}
"""The nearest neighbour finds a copy if there is one; a linear probe is what the paper's first phase trains."""


def scores(p: Parameters, table: Table, pixels: np.ndarray) -> list[dict]:
    """Macro F1 of the classifiers on a frozen network's features, for both ways to split and every seed.

    Args:
        p: ``backbone`` and ``base_weights``, a network that has not seen the images; ``seeds``, one draw each.
        table: single-label, its images all here. One with fewer than 5 % of them in groups of several is left out.
        pixels: uint8 ``[N, S, S, 3]``, aligned with it.

    Returns:
        A row each: ``probe``, ``split``, ``seed``, ``macro_f1``.
    """
    if table.multilabel or (shared_groups(table) != "").mean() < 0.05:
        return []
    inputs, labels, rows = _features(p, table, pixels), table.labels, []
    for method in METHODS:
        for seed in p.seeds:
            parts = splits.split(table, method=method, fractions=FRACTIONS, seed=seed)
            train, test = parts == "train", parts == "test"
            for name, classifier in CLASSIFIERS.items():
                fitted = make_pipeline(StandardScaler(), classifier).fit(inputs[train], labels[train])
                score = f1_score(labels[test], fitted.predict(inputs[test]), average="macro", zero_division=0)
                rows.append({"probe": name, "split": method, "seed": seed, "macro_f1": float(score)})
        log.info("%s: probes on %s splits done", table.name, method)
    return rows


def shared_groups(table: Table) -> np.ndarray:
    """The group of each image, str ``[N]``, empty for an image that is a group of its own."""
    frame = table.frame
    return frame["group"].where(frame["group"].duplicated(keep=False), "").to_numpy(dtype=object)


def _features(p: Parameters, table: Table, pixels: np.ndarray) -> np.ndarray:
    """float32 ``[N, F]``: the images through the base network, frozen."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    samples = data.Samples(images, torch.arange(len(pixels)), torch.from_numpy(table.labels), tuple(table.frame["id"]))
    task = Task(samples, samples, len(table.classes), protocol=Protocol(device=p.device, precision=p.precision))
    with devices.seeded(devices.choose_device("cpu"), 0):
        weights = resolve(p.base_weights) if backbones.is_path(p.base_weights) else p.base_weights
        network = backbones.backbone(p.backbone, weights, p.image_size).to(task.device)
    return features(network, samples, task).inputs.numpy()
