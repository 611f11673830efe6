"""Simulated coverage of the intervals of `evaluation` and `significance`.

    python benchmarks/coverage.py [RUNS]

Writes benchmarks/coverage.json, a case at a time: a case that is there with as many runs is not simulated again.
Two equal models are simulated on the same images; a seed has its own accuracy (the spread between seeds).
"""

import functools
import json
import math
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from medmerge.stats.evaluation import bootstrap_interval
from medmerge.stats.significance import over_seeds

OUT = Path(__file__).with_suffix(".json")
SHARES = {
    "three classes, ISIC 2017": [0.69, 0.19, 0.12],
    "eight classes, ISIC 2019": [0.51, 0.18, 0.13, 0.10, 0.034, 0.025, 0.009, 0.010],
    "five grades, RetinaMNIST": [0.44, 0.12, 0.20, 0.17, 0.07],
    "two classes, NIH": [0.5, 0.5],
}
SPREAD = 0.01
"""Standard deviation between seeds of the share of images that a model knows."""


def simulate(generator, labels, classes, seeds, spread=SPREAD):
    """Predictions [2, S, N] of two models."""
    known = generator.random(len(labels))
    guess = generator.integers(0, classes, (2, seeds, len(labels)))
    level = 0.7 + spread * generator.normal(size=(2, seeds, 1))
    noise = 0.1 * generator.normal(size=guess.shape)
    return np.where(known + noise < level, labels, guess)


def labels_of(shares, images):
    """The fixed test set: class sizes by share, at least four images each."""
    counts = np.maximum(4, np.round(np.array(shares) / sum(shares) * images)).astype(int)
    return np.repeat(np.arange(len(shares)), counts)


def macro_interval(generator, shares, images):
    labels, classes = labels_of(shares, images), len(shares)
    predicted = simulate(generator, labels, classes, 1, 0.0)[0, 0]
    many = np.repeat(labels, 200)
    truth = f1_score(many, simulate(np.random.default_rng(7), many, classes, 1, 0.0)[0, 0], average="macro")
    low, high = bootstrap_interval(labels, predicted, classes, resamples=500)
    return low <= truth <= high


def holds_zero(generator, seeds):
    labels = labels_of(SHARES["three classes, ISIC 2017"], 549)
    one = over_seeds(labels, *simulate(generator, labels, 3, seeds), 3, resamples=400)
    return one.low <= 0 <= one.high


def cases():
    """What is simulated, by name: a function of a generator."""
    for name, shares in SHARES.items():
        for images in (200, 549):
            simulated = functools.partial(macro_interval, shares=shares, images=images)
            yield f"coverage, bootstrap macro F1, {name}, {images} images", simulated
    for seeds in (1, 3, 5, 10):
        yield f"coverage, over_seeds t, {seeds} seeds", functools.partial(holds_zero, seeds=seeds)


def main(runs: int) -> None:
    """Simulate every case."""
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    for position, (name, case) in enumerate(cases()):
        if found.get(name, {}).get("runs") != runs:
            generator = np.random.default_rng([position, 2026])
            share = float(np.mean([case(generator) for _ in range(runs)]))
            found[name] = {"share": share, "error": round(math.sqrt(share * (1 - share) / runs), 4), "runs": runs}
            OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
