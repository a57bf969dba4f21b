"""What the paper's experiments are, as values: the study, the data sets, what each target needs. Pure; no torch."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from common.config import DatasetRef, Frozen, InnerConfig, PositiveFloat, Split, StudyConfig, TaskFamily
from common.errors import InvalidInputError
from common.evaluate_config import EvaluateConfig
from coordinator.paper.anchors import (
    CIFAR10_ROW,
    DARTS_FIRST_ROW,
    DARTS_IMAGENET_ROW,
    DARTS_SECOND_ROW,
    DARTS_SVHN_ROW,
    IMAGENET32_ROW,
    IMAGENET_ROW,
    PRIOR_ROW,
    SVHN_ROW,
    TableName,
)
from coordinator.paper.few_shot import FewShotTable

Scale = Literal["smoke", "full"]
GroupName = Literal[
    "imagenet32", "imagenet64", "imagenet224", "cifar10", "cifar10_tuned", "svhn_tuned", "imagenet_tuned"
]
Target = Literal["cifar10", "svhn", "imagenet", "figure2", "figure3", "figure4", "cells", "all", "table4"]

TARGETS: Mapping[Target, str] = MappingProxyType(
    {
        "cifar10": "Table 1: architectures of the prior, of Imagenet32 Tuned and of CIFAR10 Tuned, trained on CIFAR10",
        "svhn": "Table 2: the prior's, Imagenet32 Tuned's and SVHN Tuned's, trained on SVHN",
        "imagenet": "Table 3: the prior's and Imagenet Tuned's (mean of 8 posteriors), trained on ImageNet",
        "figure2": "Figure 2: search cost against ImageNet error; needs table 3",
        "figure3": "Figure 3: principal components of adapted weights and architectures, with silhouettes",
        "figure4": "Figure 4: accuracy while adapting to CIFAR10; with the architecture frozen; from scratch",
        "cells": "Drawings of the cells found, and of the published ones",
        "all": "all of these",
        "table4": "Table 4: few-shot learning by BASE (Gumbel, softmax), MAML and Reptile; by itself, not part of all",
    }
)
"""What can be asked for, and what it is."""

TABLES: tuple[TableName, ...] = ("cifar10", "svhn", "imagenet")
FIGURE3_GROUPS: Mapping[GroupName, str] = MappingProxyType(
    {"imagenet32": "Imagenet32", "imagenet64": "Imagenet64", "imagenet224": "Imagenet224", "cifar10": "CIFAR10"}
)
"""Groups of adaptations that figure 3 compares, and the paper's names of them."""


DARTS_CHANNELS = (
    36  # of the public DARTS code for CIFAR10; with them its networks have the tables' 3.3 million parameters
)


class TableRow(Frozen):
    """A row that a run fills: a genotype, trained on the table's data set."""

    published: str
    """Name of the paper's row beside which it stands."""
    key: str
    """Names its folder."""
    group: GroupName | Literal["prior"] | None = None
    """Adaptations whose mean posterior gives the genotype; prior: the prior's own architecture."""
    released: str | None = None
    """A published genotype instead."""
    channels: int | None = None
    """Per node of the first cell, at the paper's size, where the row's authors took others than BASE's."""


ROWS: Mapping[TableName, tuple[TableRow, ...]] = MappingProxyType(
    {
        "cifar10": (
            TableRow(published=PRIOR_ROW, key="prior", group="prior"),
            TableRow(published=IMAGENET32_ROW, key="imagenet32", group="imagenet32"),
            TableRow(published=CIFAR10_ROW, key="cifar10_tuned", group="cifar10_tuned"),
            TableRow(published=CIFAR10_ROW, key="released", released="CIFAR_TUNED"),
            TableRow(published=DARTS_FIRST_ROW, key="darts_v1", released="DARTS_V1", channels=DARTS_CHANNELS),
            TableRow(published=DARTS_SECOND_ROW, key="darts_v2", released="DARTS_V2", channels=DARTS_CHANNELS),
        ),
        "svhn": (
            TableRow(published=PRIOR_ROW, key="prior", group="prior"),
            TableRow(published=IMAGENET32_ROW, key="imagenet32", group="imagenet32"),
            TableRow(published=SVHN_ROW, key="svhn_tuned", group="svhn_tuned"),
            TableRow(published=DARTS_SVHN_ROW, key="darts_v2", released="DARTS_V2", channels=DARTS_CHANNELS),
        ),
        "imagenet": (
            TableRow(published=PRIOR_ROW, key="prior", group="prior"),
            TableRow(published=IMAGENET_ROW, key="imagenet_tuned", group="imagenet_tuned"),
            TableRow(published=IMAGENET_ROW, key="released", released="IMAGENET_TUNED"),
            TableRow(published=DARTS_IMAGENET_ROW, key="darts_v2", released="DARTS_V2"),
        ),
    }
)
"""What is trained for each table. Published rows without one need architectures that are not in this package."""

CELL_GROUPS: tuple[GroupName, ...] = ("imagenet32", "cifar10_tuned", "svhn_tuned", "imagenet_tuned")


class Tuning(Frozen):
    """How the prior is adapted to a data set, to find an architecture for it."""

    num_tasks: int = Field(1, ge=1)
    """1: all classes at once, as for CIFAR10 and SVHN. More: tasks whose mean posterior counts (ImageNet: 8)."""
    num_ways: int = Field(10, ge=2)
    """Classes of a task."""
    steps: int = Field(ge=1)
    train_per_class: int = Field(ge=1)
    test_per_class: int = Field(20, ge=1)
    """Held-out images per class, of those that the final network is trained on."""


class ImageSet(Frozen):
    """A data set of the paper, or what takes its place."""

    name: str
    """The paper's."""
    data: DatasetRef
    stand_in: str = ""
    """What takes its place; nothing does where this is empty."""
    num_unseen_classes: int | None = Field(None, ge=2)
    """With it, so many of the classes that meta-training keeps out make up the set."""
    search_size: int = Field(ge=4)
    """Height and width in pixels at which the prior is adapted to it; the search network has a head for it."""
    search_in_training_part: bool = True
    """Adaptation sees the training images alone. False where the source is too large to be copied."""
    tuning: Tuning
    recipe: EvaluateConfig
    """Trains the full networks."""
    num_train: int | None = Field(None, ge=1)
    """Training images, where that is known beforehand: what a training costs depends on it."""


class FourthFigure(Frozen):
    """Figure 4: the prior's supernet while it adapts to CIFAR10, epoch by epoch."""

    num_epochs: int = Field(6, ge=1)
    repeats: int = Field(ge=2)
    """Times that each arm is run, with other images and orders; bands are over them."""
    train_per_class: int = Field(ge=1)
    test_per_class: int = Field(ge=1)
    scratch_lr: PositiveFloat = 0.025
    """Learning rate of the arm from scratch: one that suits freshly drawn weights."""


class PaperConfig(Frozen):
    """All that a run computes. Equal configurations give equal results, on processors of one kind."""

    scale: str
    study: StudyConfig
    """The meta-training; its three families are, in this order, Imagenet32, Imagenet64 and Imagenet224."""
    num_posteriors: int = Field(8, ge=1)
    """Imagenet32 Tuned: tasks whose mean posterior counts (as the paper says of ImageNet; of Imagenet32:
    reconstruction)."""
    figure3_tasks: int = Field(8, ge=2)
    """Adaptations per family in figure 3."""
    figure4: FourthFigure
    cifar10: ImageSet
    svhn: ImageSet
    imagenet: ImageSet
    few_shot: FewShotTable
    task_seed: int = 7
    """Draws the tasks that are adapted to."""

    def image_set(self, table: TableName) -> ImageSet:
        """The data set of a table."""
        return {"cifar10": self.cifar10, "svhn": self.svhn, "imagenet": self.imagenet}[table]


def recipe_of(image_set: ImageSet, row: TableRow) -> EvaluateConfig:
    """How a row's network is trained; all alike where another data set stands in and networks are small."""
    if row.channels is None or image_set.stand_in:
        return image_set.recipe
    return image_set.recipe.model_copy(update={"channels": row.channels})


class TaskGroup(Frozen):
    """Adaptations of one kind, all from the prior."""

    name: GroupName
    family: TaskFamily
    split: Split
    num_tasks: int
    inner: InnerConfig


def task_groups(config: PaperConfig, search: Mapping[TableName, DatasetRef]) -> dict[GroupName, TaskGroup]:
    """All adaptations that can be asked for.

    Args:
        config: of the run.
        search: by table, the images that adaptation may see.
    """
    study = config.study
    num_tasks = max(config.num_posteriors, config.figure3_tasks)
    groups: list[TaskGroup] = []
    names: tuple[GroupName, ...] = ("imagenet32", "imagenet64", "imagenet224")
    for name, family in zip(names, study.families, strict=True):
        count = num_tasks if name == "imagenet32" else config.figure3_tasks
        groups.append(TaskGroup(name=name, family=family, split="meta_train", num_tasks=count, inner=study.adapt))
    tuned: tuple[tuple[GroupName, TableName], ...] = (
        ("cifar10_tuned", "cifar10"),
        ("svhn_tuned", "svhn"),
        ("imagenet_tuned", "imagenet"),
    )
    for name, table in tuned:
        image_set = config.image_set(table)
        groups.append(
            TaskGroup(
                name=name,
                family=_family(image_set, search[table]),
                split="all",
                num_tasks=image_set.tuning.num_tasks,
                inner=study.adapt.model_copy(update={"steps": image_set.tuning.steps}),
            )
        )
    # As long as the other families' adaptations: else figure 3 would show how long each was adapted.
    cifar10 = _family(config.cifar10, search["cifar10"])
    groups.append(
        TaskGroup(name="cifar10", family=cifar10, split="all", num_tasks=config.figure3_tasks, inner=study.adapt)
    )
    return {group.name: group for group in groups}


def figure4_family(config: PaperConfig) -> TaskFamily:
    """The tasks of figure 4: all of CIFAR10, each time with other images."""
    image_set, figure = config.cifar10, config.figure4
    return TaskFamily(
        data=image_set.data.model_copy(update={"unseen_fraction": 0.0}),
        image_size=image_set.search_size,
        num_ways=image_set.tuning.num_ways,
        train_per_class=figure.train_per_class,
        test_per_class=figure.test_per_class,
    )


def figure4_steps(config: PaperConfig) -> tuple[int, ...]:
    """Steps after which each epoch of figure 4 ends."""
    family = figure4_family(config)
    per_epoch = max(family.num_ways * family.train_per_class // config.study.adapt.batch_size, 1)
    return tuple(per_epoch * epoch for epoch in range(1, config.figure4.num_epochs + 1))


def tables_of(target: Target) -> tuple[TableName, ...]:
    """Tables that a target needs."""
    if target == "all":
        return TABLES
    if target == "figure2":
        return ("imagenet",)
    return tuple(table for table in TABLES if table == target)


def groups_of(target: Target) -> tuple[GroupName, ...]:
    """Groups of adaptations that a target needs, each once."""
    wanted: list[GroupName] = []
    for table in tables_of(target):
        wanted += [row.group for row in ROWS[table] if row.group is not None and row.group != "prior"]
    if target in ("cells", "all"):
        wanted += CELL_GROUPS
    if target in ("figure3", "all"):
        wanted += FIGURE3_GROUPS
    return tuple(dict.fromkeys(wanted))


def needs_figure4(target: Target) -> bool:
    """Whether a target needs the arms of figure 4."""
    return target in ("figure4", "all")


def needs_prior(target: Target) -> bool:
    """Whether a target needs the meta-training over three image sizes, with which all but table 4 begins."""
    return target != "table4"


def target_named(name: str) -> Target:
    """The target that goes by a name.

    Raises:
        InvalidInputError: there is none.
    """
    for target in TARGETS:
        if target == name:
            return target
    raise InvalidInputError(f"TARGET must be one of {', '.join(TARGETS)}, got {name!r}")


def data_needed(config: PaperConfig, target: Target) -> tuple[tuple[DatasetRef, int], ...]:
    """Sources that a target reads, each with the height and width in pixels at which it does; each once."""
    if not needs_prior(target):
        return ((config.few_shot.family.data, config.few_shot.family.image_size),)
    wanted: list[tuple[DatasetRef, int]] = [(family.data, family.image_size) for family in config.study.families]
    groups: Sequence[GroupName] = groups_of(target)
    for table in TABLES:
        image_set = config.image_set(table)
        is_trained = table in tables_of(target)
        if is_trained:
            wanted.append((image_set.data, image_set.recipe.loaded_size))
        if f"{table}_tuned" in groups or table in groups or (table == "cifar10" and needs_figure4(target)):
            wanted.append((image_set.data, image_set.search_size))
    return tuple(dict.fromkeys(wanted))


def _family(image_set: ImageSet, search: DatasetRef) -> TaskFamily:
    tuning = image_set.tuning
    return TaskFamily(
        data=search,
        image_size=image_set.search_size,
        num_ways=tuning.num_ways,
        train_per_class=tuning.train_per_class,
        test_per_class=tuning.test_per_class,
    )
