"""How often intervals of effects hold the truth, over simulated seeds and images.

    python -m benchmarks.coverage [--json FILE] [--simulations N] [--images N ...] [--seeds N ...]

The networks are simulated by a probit model: network s of method g gets image i right where

    m_g + a[g, s] + d[i] + d[g, i] + e[g, s, i] > 0

with normal effects of the seed (a), of the image on all networks (d) and on those of one method,
and of the image on one network (e). The true mean accuracy of a method, over seeds and images, is
then known: Phi(m_g / sqrt(1 + var a + var d)). The seeds' part is set against the images': the
ratio of a network's variance between seeds to that between samples of n images. "no shared images"
has only e, so that the seeds share nothing of the images: the hardest case to tell from seeds.

Counted is how often the truth is in the interval of ``estimate_effect``, and in that of the plain
two-level bootstrap, which resamples seeds and images and takes percentiles.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from scipy.special import ndtr, ndtri

from benchmarks.timing import describe_machine, write_report
from channelscope.statistics.effects import estimate_effect

LEVELS = (0.95, 0.9)
RATIOS = {"alone": 100.0, "dominant": 5.0, "equal": 1.0, "small": 0.1}
REPLICATES = 200
ACCURACIES = (0.5, 0.55)  # of the methods, on the images' average and without seeds
_AT_ONCE = 100  # simulations that share their resamples; 2,000 images of 20 networks each fit


@dataclass(frozen=True)
class Cell:
    """What is simulated: methods, networks of each, images, the seeds' part and the images'."""

    groups: int
    seeds: int
    images: int
    part: str
    shared: bool

    @property
    def image_variances(self) -> tuple[float, float]:
        """Variance of the images' effect on all networks, and on those of one method."""
        return (0.7, 0.3) if self.shared else (0.0, 0.0)


def find_seed_variance(cell: Cell) -> float:
    """Return the variance of a at which the accuracies of seeds vary as the ratio says.

    By the delta method, which is near enough: it decides on the setting and not on the truth.
    """
    others = 1 + sum(cell.image_variances)
    p = ACCURACIES[0]
    wanted = RATIOS[cell.part] * p * (1 - p) / cell.images
    slope = math.exp(-(float(ndtri(p)) ** 2) / 2) / math.sqrt(2 * math.pi)
    return wanted / slope**2 * others


def simulate_correct(
    cell: Cell, simulations: int, rng: np.random.Generator
) -> tuple[list[ndarray], list[float]]:
    """Draw which images are classified correctly, of each method (simulations, s, n); the truth."""
    of_all, of_method = cell.image_variances
    of_seeds = find_seed_variance(cell)
    total = 1 + of_all + of_method
    shape = (simulations, 1, cell.images)
    common = math.sqrt(of_all) * rng.standard_normal(shape, np.float32)
    correct = []
    truth = []
    for accuracy in ACCURACIES[: cell.groups]:
        m = float(ndtri(accuracy)) * math.sqrt(total)
        seeds = math.sqrt(of_seeds) * rng.standard_normal((simulations, cell.seeds, 1), np.float32)
        latent = rng.standard_normal((simulations, cell.seeds, cell.images), np.float32)
        latent += m + seeds + common
        latent += math.sqrt(of_method) * rng.standard_normal(shape, np.float32)
        correct.append(latent > 0)
        truth.append(float(ndtr(m / math.sqrt(total + of_seeds))))
    return correct, truth


def make_replicates(correct: ndarray, weights: ndarray) -> ndarray:
    """Return accuracies (simulations, s, r) under the weights (n, r), column 0 the estimate."""
    accuracies: ndarray = correct.astype(np.float32) @ weights
    return accuracies.astype(float) / correct.shape[-1]


def draw_weights(images: int, rng: np.random.Generator) -> ndarray:
    """Draw how often each image counts in each resample (n, r), column 0 all 1."""
    counts = rng.multinomial(images, np.full(images, 1 / images), REPLICATES).T
    return np.column_stack([np.ones(images), counts]).astype(np.float32)


def resample_seeds(
    groups: Sequence[ndarray], signs: Sequence[float], rng: np.random.Generator
) -> ndarray:
    """Return the replicates (simulations, r) of the two-level bootstrap, seeds drawn for each."""
    total = np.zeros((len(groups[0]), REPLICATES))
    for group, sign in zip(groups, signs, strict=True):
        simulations, seeds, _ = group.shape
        shares = np.full(seeds, 1 / seeds)
        counts = rng.multinomial(seeds, shares, (simulations, REPLICATES)).swapaxes(1, 2)
        total += sign * (group[..., 1:] * counts).mean(1)
    return total


def run_simulations(cell: Cell, simulations: int, rng: np.random.Generator) -> dict[str, Any]:
    """Count how often the truth is covered: method and level -> share of the simulations."""
    signs = (1.0, -1.0)[: cell.groups]
    covered = {(way, level): 0 for way in ("effect", "two_level") for level in LEVELS}
    for start in range(0, simulations, _AT_ONCE):
        correct, truth = simulate_correct(cell, min(_AT_ONCE, simulations - start), rng)
        weights = draw_weights(cell.images, rng)
        # Less the truth the effect is 0, so the interval covers it where p is above 1 - level.
        groups = [
            make_replicates(images, weights) - mean
            for images, mean in zip(correct, truth, strict=True)
        ]
        p = np.array([estimate_effect(each, signs).p for each in zip(*groups, strict=True)])
        replicates = resample_seeds(groups, signs, rng)
        for level in LEVELS:
            low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], axis=1)
            covered["effect", level] += int((p >= 1 - level).sum())
            covered["two_level", level] += int(((low <= 0) & (high >= 0)).sum())
    return {f"{way}_{level:.0%}": n / simulations for (way, level), n in covered.items()}


def list_cells(seeds: Sequence[int], images: Sequence[int]) -> Iterator[Cell]:
    """List what is simulated: one and two methods, shared images everywhere, none at n = 200."""
    for groups, each, n, part in product((1, 2), seeds, images, RATIOS):
        yield Cell(groups, each, n, part, shared=True)
    for groups, each, part in product((1, 2), seeds, RATIOS):
        yield Cell(groups, each, min(images), part, shared=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--images", type=int, nargs="+", default=[200, 2000])
    options = parser.parse_args()
    machine = describe_machine()
    rows = []
    print("methods seeds images seeds' part  shared images   effect 95% 90%   two-level 95% 90%")
    for number, cell in enumerate(list_cells(options.seeds, options.images)):
        row = asdict(cell) | run_simulations(
            cell, options.simulations, np.random.default_rng(number)
        )
        rows.append(row)
        words = "yes" if cell.shared else "no"
        print(
            f"{cell.groups:7} {cell.seeds:5} {cell.images:6} {cell.part:12}  {words:13}"
            f"   {row['effect_95%']:10.1%} {row['effect_90%']:5.1%}"
            f"   {row['two_level_95%']:11.1%} {row['two_level_90%']:5.1%}",
            flush=True,
        )
    settings = {
        "simulations": options.simulations,
        "replicates": REPLICATES,
        "ratios": RATIOS,
        "accuracies": ACCURACIES,
    }
    write_report({"settings": settings, "cells": rows}, machine, options.json)


if __name__ == "__main__":
    main()
