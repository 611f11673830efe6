"""Simulated coverage, type I error and power of the intervals and tests of `evaluation` and `significance`.

    python benchmarks/coverage.py [RUNS]

Writes benchmarks/coverage.json, a case at a time: a case that is there with as many runs is not simulated again.
Two models are simulated on the same images; a seed has its own accuracy (the spread between seeds).
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

from medmerge.stats.evaluation import bootstrap_interval, compare
from medmerge.stats.resampling import cells_of_classes, scores
from medmerge.stats.significance import delong, mcnemar, over_seeds

OUT = Path(__file__).with_suffix(".json")
SHARES = {
    "three classes, ISIC 2017": [0.69, 0.19, 0.12],
    "eight classes, ISIC 2019": [0.51, 0.18, 0.13, 0.10, 0.034, 0.025, 0.009, 0.010],
    "five grades, RetinaMNIST": [0.44, 0.12, 0.20, 0.17, 0.07],
    "two classes, NIH": [0.5, 0.5],
}
SPREAD = 0.01
"""Standard deviation between seeds of the share of images that a model knows."""


def simulate(generator, labels, classes, seeds, spread=SPREAD, gain=0.0):
    """Predictions [S, N] of two models; the first knows ``gain`` more of the images."""
    known = generator.random(len(labels))
    guess = generator.integers(0, classes, (2, seeds, len(labels)))
    level = 0.7 + spread * generator.normal(size=(2, seeds, 1)) + np.array([gain, 0]).reshape(2, 1, 1)
    noise = 0.1 * generator.normal(size=guess.shape)
    return np.where(known + noise < level, labels, guess)


def labels_of(shares, images):
    """The fixed test set: class sizes by share, at least four images each."""
    counts = np.maximum(4, np.round(np.array(shares) / sum(shares) * images)).astype(int)
    return np.repeat(np.arange(len(shares)), counts)


def macro_interval(generator, shares, images):
    labels = labels_of(shares, images)
    predicted = simulate(generator, labels, len(shares), 1, 0.0)[0, 0]
    many = np.repeat(labels, 200)
    truth = _true(many, simulate(np.random.default_rng(7), many, len(shares), 1, 0.0)[0, 0], len(shares))
    low, high = bootstrap_interval(labels, predicted, len(shares), resamples=500)
    return low <= truth <= high


def _true(labels, predicted, classes):
    cells = cells_of_classes(labels, predicted[None], classes)
    return float(scores(cells, cells.count, "macro_f1")[0])


def main(runs: int) -> None:
    """Simulate every case."""
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    cases = {}
    for name, shares in SHARES.items():
        for images in (200, 549):
            cases[f"coverage, bootstrap macro F1, {name}, {images} images"] = lambda g, s=shares, n=images: (
                macro_interval(g, s, n)
            )
    labels = labels_of(SHARES["three classes, ISIC 2017"], 549)
    for seeds in (1, 3, 5, 10):
        cases[f"coverage, over_seeds t, {seeds} seeds"] = lambda g, k=seeds: _holds_zero(g, labels, k)
    for gain in (0.0, 0.02, 0.05):
        word = "power" if gain else "type I error"
        cases[f"{word}, permutation, gain {gain}"] = lambda g, d=gain: (
            compare(labels, *simulate(g, labels, 3, 1, 0, d), 3, resamples=400).p_value < 0.05
        )
        cases[f"{word}, McNemar, gain {gain}"] = lambda g, d=gain: (
            mcnemar(labels, *simulate(g, labels, 3, 1, 0, d)[:, 0]).p_value < 0.05
        )
        cases[f"{word}, DeLong, gain {gain}"] = lambda g, d=gain: _delong(g, labels, d) < 0.05
    for position, (name, case) in enumerate(cases.items()):
        if found.get(name, {}).get("runs") == runs:
            continue
        generator = np.random.default_rng([position, 2026])
        share = float(np.mean([case(generator) for _ in range(runs)]))
        found[name] = {"share": share, "error": round(math.sqrt(share * (1 - share) / runs), 4), "runs": runs}
        OUT.write_text(json.dumps(found, indent=1) + "\n")


def _holds_zero(generator, labels, seeds):
    one = over_seeds(labels, *simulate(generator, labels, 3, seeds), 3, resamples=400)
    return one.low <= 0 <= one.high


def _delong(generator, labels, gain):
    truth = labels[:, None] == np.arange(3)
    shared = generator.normal(size=truth.shape)
    a, b = (truth * (1 + more) + shared + generator.normal(size=truth.shape) / 2 for more in (5 * gain, 0.0))
    return delong(labels, a, b).p_value


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
