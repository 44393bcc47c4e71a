"""What is tested: a classifier's weights, and the recipe that says its model, its clips and its views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mvd_offline.errors import CheckpointError
from mvd_offline.models.classifier import Classifier
from mvd_offline.models.loading import load_classifier
from mvd_offline.models.positions import Positions
from mvd_offline.models.vit import encoder_arch
from mvd_offline.recipe import FinetuneRecipe


@dataclass(frozen=True)
class Subject:
    """A classifier, how it is tested, and where its results go.

    Attributes:
        classes: names that it was trained on; empty where nobody recorded them.
        trained_on: the identity of its training videos (`CatalogRows.source`); empty where nobody recorded it.
        step: of its run, after which it has these weights; None where nobody recorded it.
        positions: its position table, for a file that does not tell: MVD's and VideoMAE's differ.
    """

    weights: Path
    recipe: FinetuneRecipe
    out: Path
    classes: tuple[str, ...] = ()
    trained_on: str = ""
    step: int | None = None
    positions: Positions | None = None


def load_subject(subject: Subject) -> Classifier:
    """The classifier on the CPU, in evaluation mode.

    Raises:
        CheckpointError: another size than the recipe's: names all that differs. Or no classifier.
    """
    recipe, clip = subject.recipe, subject.recipe.clip
    arch = encoder_arch(recipe.model)
    model = load_classifier(
        subject.weights,
        arch.heads,
        image_size=clip.image_size,
        frames=clip.frames,
        positions=subject.positions,
    )
    sizes = (
        ("model.width", model.arch.width, arch.width),
        ("model.depth", model.arch.depth, arch.depth),
        ("model.classes", model.classes, recipe.model.classes),
        ("clip.patch_size", model.patch_size, clip.patch_size),
        ("clip.tubelet_size", model.tubelet_size, clip.tubelet_size),
    )
    if differing := [(name, found, wanted) for name, found, wanted in sizes if found != wanted]:
        listed = "; ".join(f"{name} is {wanted} there and {found} in the weights" for name, found, wanted in differing)
        changes = " ".join(f"--set {name}={found}" for name, found, _ in differing)
        raise CheckpointError(
            f"{subject.weights} does not fit the recipe {recipe.name}: {listed}. Give the recipe that it was trained "
            f"by, or {changes}."
        )
    return model
