"""What the paper's experiments cost at full scale, in GPU-days of the paper's GPU, before any of it is run. Pure.

The paper gives the meta-training's 8 GPU-days. All else is held against it by counted multiply-accumulates: a step of
the search network costs as many per image as its ops have, three times over (forward, and twice backward), and a full
network's training likewise. At the rate that makes the meta-training cost its 8 days, the rest costs what is said here.
Full networks have fewer and larger ops than a search network, so their trainings probably take less. Of the few-shot
experiments the paper gives no time at all.
"""

from dataclasses import dataclass

from common.config import StudyConfig, TaskFamily
from common.cost import cost_model
from common.few_shot_config import FewShotConfig
from common.network_config import network_config
from common.nn.counting import count_network
from common.space.genotype import Genotype
from common.space.primitives import NONE
from common.space.released import CIFAR_TUNED, IMAGENET_TUNED, released_genotype
from coordinator.paper.anchors import META_DAYS, TITLES
from coordinator.paper.experiments import (
    ROWS,
    PaperConfig,
    TableRow,
    Target,
    figure4_family,
    figure4_steps,
    groups_of,
    needs_figure4,
    needs_prior,
    tables_of,
    task_groups,
)
from coordinator.paper.few_shot import FEW_SHOT_ROWS, VARIANTS, FewShotTable, few_shot_of, given_genotype, trained_cost
from workers.job import evaluation_steps

GPU = "GTX 1080 Ti"
FOURTH_ARMS = 3
_SECONDS_PER_DAY = 86_400
_HOURS_PER_DAY = 24
# Forward, and backward with respect to maps and to weights; each multiply-accumulate is two operations.
_PASSES, _OPERATIONS_PER_MAC = 3, 2


@dataclass(frozen=True)
class CostItem:
    """Something that a run computes, and what it costs in GPU-days."""

    name: str
    days: float

    @property
    def hours(self) -> float:
        """In GPU-hours."""
        return self.days * _HOURS_PER_DAY


def search_macs(study: StudyConfig, image_size: int, num_classes: int) -> int:
    """Multiply-accumulates of one image's way through the whole search network, with every op on every edge."""
    space = study.space
    model = cost_model(space, study.network, image_size, num_classes)
    ops = (
        model.op(kind, edge.source, primitive).num_macs
        for kind in space.cell_kinds
        for edge in space.topology.edges
        for primitive in space.ops
        if primitive != NONE
    )
    return model.constant.num_macs + sum(ops)


def meta_macs(study: StudyConfig) -> int:
    """Multiply-accumulates of the forward passes of a whole meta-training."""
    images = study.rounds * study.inner.steps * study.inner.batch_size
    return sum(
        images * family.tasks_per_round * search_macs(study, family.image_size, family.num_ways)
        for family in study.families
    )


def operations_per_s(study: StudyConfig) -> float:
    """Floating-point operations per second at which the meta-training costs the paper's 8 GPU-days."""
    return _PASSES * _OPERATIONS_PER_MAC * meta_macs(study) / (META_DAYS * _SECONDS_PER_DAY)


def costs(config: PaperConfig, target: Target) -> tuple[CostItem, ...]:
    """What a target of the full scale costs, item by item; the meta-training first."""
    study = config.study
    days_per_mac = META_DAYS / meta_macs(study)
    if not needs_prior(target):
        return _few_shot_costs(config.few_shot, days_per_mac)
    items = [CostItem("Meta-training, as the paper reports it", META_DAYS)]
    search = {table: config.image_set(table).data for table in ROWS}
    groups = task_groups(config, search)
    for name in groups_of(target):
        group = groups[name]
        macs = search_macs(study, group.family.image_size, group.family.num_ways)
        images = group.num_tasks * group.inner.steps * group.inner.batch_size
        label = f"{group.num_tasks} adaptation{'s' if group.num_tasks > 1 else ''}: {name}"
        items.append(CostItem(label, images * macs * days_per_mac))
    if needs_figure4(target):
        family = figure4_family(config)
        images = FOURTH_ARMS * config.figure4.repeats * figure4_steps(config)[-1] * study.adapt.batch_size
        macs = search_macs(study, family.image_size, family.num_ways)
        items.append(
            CostItem(f"Figure 4: {FOURTH_ARMS} arms, {config.figure4.repeats} times", images * macs * days_per_mac)
        )
    for table in tables_of(target):
        image_set = config.image_set(table)
        assert image_set.num_train is not None, "the full configuration says how many images there are"
        images = image_set.num_train * image_set.recipe.last_epoch
        macs = sum(_full_macs(row, image_set.recipe.motif) for row in ROWS[table])
        label = f"{TITLES[table]}: {len(ROWS[table])} networks for {image_set.recipe.last_epoch} epochs"
        items.append(CostItem(label, images * macs * days_per_mac))
    return tuple(items)


def few_shot_passes(few_shot: FewShotConfig, family: TaskFamily) -> int:
    """Forward passes of one image, or as much work, that the meta-gradient of one episode takes.

    A gradient counts as three. Differentiating through a step counts as three gradients, exact or by finite
    differences: the step's own, and one that goes forward and back through it, or two at displaced parameters.
    """
    support, query = (family.num_ways * count for count in (family.train_per_class, family.test_per_class))
    if few_shot.method == "reptile":
        return _PASSES * few_shot.steps * (support + query)
    gradients = 1 if few_shot.method == "first_order" else 3
    return _PASSES * (gradients * few_shot.steps * support + query)


def _few_shot_costs(table: FewShotTable, days_per_mac: float) -> tuple[CostItem, ...]:
    family, searched = table.family, table.search.few_shot
    assert searched is not None, "a few-shot study"
    episodes = table.rounds * family.tasks_per_round
    days_per_pass = table.repeats * days_per_mac / _PASSES
    times = f"{table.repeats} x " if table.repeats > 1 else ""
    items = []
    search_passes = table.search.rounds * family.tasks_per_round * few_shot_passes(searched, family)
    macs = search_macs(table.search, family.image_size, family.num_ways)
    for variant, name in VARIANTS.items():
        if any(row.variant == variant for row in FEW_SHOT_ROWS):
            label = f"Search by {name}: {times}{table.search.rounds:,} rounds of {family.tasks_per_round} episodes"
            items.append(CostItem(label, search_passes * macs * days_per_pass))
    for row in FEW_SHOT_ROWS:
        few_shot = few_shot_of(table, row)
        # A genotype that is not found yet counts as a published one.
        genotype = None if row.baseline is not None else given_genotype(row) or CIFAR_TUNED
        macs = trained_cost(table, row, genotype).num_macs
        num_support = family.num_ways * family.train_per_class
        tested = table.episodes * (
            _PASSES * few_shot.test_steps * num_support
            + len(evaluation_steps(few_shot.test_steps)) * family.num_ways * family.test_per_class
        )
        passes = episodes * few_shot_passes(few_shot, family) + tested
        label = f"{row.published}: {times}{table.rounds:,} rounds, {table.episodes} test episodes"
        items.append(CostItem(label, passes * macs * days_per_pass))
    return tuple(items)


def _full_macs(row: TableRow, motif: str) -> int:
    """Of a row's network; one that is not found yet counts as the published one."""
    genotype: Genotype = CIFAR_TUNED if motif == "cifar" else IMAGENET_TUNED
    if row.released is not None:
        genotype = released_genotype(row.released)
    return count_network(genotype, network_config(motif, channels=row.channels)).total.num_macs
