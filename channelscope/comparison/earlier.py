"""An evaluation made before, whose outcomes and adversarial images a comparison uses again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from channelscope.attacks import Attack, attack_name
from channelscope.attacks.suites import norm_of
from channelscope.data import Split
from channelscope.errors import UserError
from channelscope.evaluation import Evaluation
from channelscope.study.models import Model


@dataclass(frozen=True)
class Earlier:
    """An evaluation of the very networks and images that are compared."""

    evaluation: Evaluation
    folder: Path | None
    labels: dict[str, str]  # the networks' labels here -> there

    @classmethod
    def of(
        cls, evaluation: Evaluation | Path | str, subjects: Sequence[Model], part: Split
    ) -> Self:
        """Find the networks in the evaluation by their weights.

        Raises:
            UserError: for an evaluation of other images or networks.
        """
        folder = None if isinstance(evaluation, Evaluation) else Path(evaluation)
        found = evaluation if isinstance(evaluation, Evaluation) else Evaluation.load(evaluation)
        if found.meta["data"]["fingerprint"] != part.fingerprint():
            raise UserError(
                "The evaluation is of other images: compare with the same data, number of images and seed, or evaluate "
                "again."
            )
        by_digest = {known["digest"]: label for label, known in found.meta["models"].items()}
        labels = {subject.label: by_digest.get(subject.digest) for subject in subjects}
        if missing := [label for label, there in labels.items() if there is None]:
            raise UserError(
                f"The evaluation is not of the network {missing[0]}: evaluate all networks to be compared."
            )
        return cls(found, folder, {label: str(there) for label, there in labels.items()})

    @property
    def eps(self) -> float:
        """Radius of the evaluation's ball."""
        return float(self.evaluation.meta["eps"])

    @property
    def attacks(self) -> list[str]:
        """What the evaluation was asked for."""
        return list(self.evaluation.meta["attacks"])

    def check(self, attack: Attack) -> None:
        """Refuse an attack on another ball."""
        norm = norm_of(attack)
        if attack.eps != self.eps or norm != self.evaluation.meta["norm"]:
            raise UserError(
                f"The evaluation is of eps {self.eps:.6g} and the norm {self.evaluation.meta['norm']!r}, the attack "
                f"{attack} of eps {attack.eps:.6g} and {norm!r}: choose the same."
            )

    def images(self, subject: Model, attack: Attack) -> Float[ndarray, "n c h w"] | None:
        """Give the adversarial images of the attack, where the evaluation kept any."""
        if self.folder is None or not self.evaluation.meta["save_adversarial"]:
            return None
        return self.evaluation.adversarial(
            self.folder, self.labels[subject.label], attack_name(attack)
        )

    def stood(self, subject: Model) -> dict[str, Bool[Tensor, " n"]]:
        """Tell which images stood each attack."""
        index = list(self.evaluation.meta["models"]).index(self.labels[subject.label])
        prefix = f"correct/{index}/"
        arrays = self.evaluation.arrays.items()
        return {
            name.removeprefix(prefix): torch.from_numpy(array)
            for name, array in arrays
            if name.startswith(prefix)
        }

    def masked(self, subject: Model) -> tuple[str, ...] | None:
        """Name the checks that found signs of gradient masking; None where none were made."""
        if not self.evaluation.meta["checks"]:
            return None
        signs = self.evaluation.warnings
        return tuple(signs[signs["model"] == self.labels[subject.label]]["check"])
