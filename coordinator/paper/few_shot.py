"""Table 4 as values: the studies that find, train and compare few-shot networks (BASE section 6.3, appendix B). Pure.

Every network that is tested is meta-trained by itself, from fresh weights, on as many episodes as every other, and all
but Reptile's by the same settings ("all network architectures were trained with the same setting"). What BASE searches
comes before and on top of that.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from common.config import DatasetRef, Frozen, NetworkConfig, SpaceConfig, StudyConfig, TaskFamily, validate
from common.cost import Cost, four_convolutions_cost, network_cost
from common.few_shot_config import FewShotConfig
from common.loading import load
from common.space.genotype import Genotype
from common.space.released import released_genotype
from coordinator.paper.anchors import DARTS_FEW_SHOT_ROW, GUMBEL_ROW, MAML_ROW, REPTILE_ROW, SOFTMAX_ROW

Variant = Literal["gumbel", "softmax"]
Baseline = Literal["maml", "reptile"]

IMAGE_SIZE = 84  # of Mini-ImageNet
NUM_WAYS = 5
FILTERS = 64  # of the four convolutions, with which they have the table's 0.1 million parameters

# With it the published genotypes of the space have 1.05 to 1.34 million parameters; the paper's networks have 1.2, and
# its figure of their layout is lost (reconstruction).
FULL_NETWORK = NetworkConfig(
    channels=36,
    cells=("normal", "normal", "reduction", "normal", "normal", "reduction", "normal", "normal"),
    heads={IMAGE_SIZE: 4},
)


class FewShotRow(Frozen):
    """A row that a run fills: a network, found or given, meta-trained and tested."""

    published: str
    """Name of the paper's row beside which it stands."""
    key: str
    """Names its folder."""
    variant: Variant | None = None
    """Of the search that finds the genotype."""
    released: str | None = None
    """A published genotype instead."""
    baseline: Baseline | None = None
    """Four convolutions instead, and what meta-trains them."""


FEW_SHOT_ROWS: tuple[FewShotRow, ...] = (
    FewShotRow(published=MAML_ROW, key="maml", baseline="maml"),
    FewShotRow(published=REPTILE_ROW, key="reptile", baseline="reptile"),
    FewShotRow(published=DARTS_FEW_SHOT_ROW, key="darts_v2", released="DARTS_V2"),
    FewShotRow(published=SOFTMAX_ROW, key="base_softmax", variant="softmax"),
    FewShotRow(published=GUMBEL_ROW, key="base_gumbel", variant="gumbel"),
)
"""One for each of the paper's, in its order."""


class FewShotTable(Frozen):
    """All that table 4 computes."""

    name: str = "Mini-ImageNet"
    """The paper's images."""
    stand_in: str = ""
    """What takes their place; nothing does where this is empty."""
    search: StudyConfig
    """The search, by Gumbel-softmax; its episodes are those of all studies here."""
    network: NetworkConfig
    """Of the genotypes, when they are trained by themselves."""
    baselines: Mapping[Baseline, StudyConfig]
    """Four convolutions, by what meta-trains them; as MAML trains them, it trains the genotypes' networks."""
    rounds: int = Field(ge=1)
    """Of the meta-training of every network that is tested."""
    repeats: int = Field(ge=1)
    """Times that search and training are run, each with a seed of its own (the paper: twice)."""
    episodes: int = Field(ge=2)
    """Of the test; the same for all networks."""
    test_seed: int = Field(7, ge=0)
    """Draws them."""

    @property
    def family(self) -> TaskFamily:
        """The episodes."""
        return self.search.families[0]


_BASELINES: tuple[Baseline, ...] = ("maml", "reptile")

VARIANTS: Mapping[Variant, str] = MappingProxyType({"gumbel": "Gumbel-softmax", "softmax": "softmax"})
"""How architecture weights are relaxed, for people."""


def search_study(table: FewShotTable, variant: Variant, repeat: int) -> StudyConfig:
    """The study that searches; by softmax, the mixture is that of DARTS, whose temperature is 1."""
    tree = table.search.model_dump(mode="json")
    tree["seed"] += repeat
    tree["relaxation"]["kind"] = variant
    if variant == "softmax":
        tree["relaxation"] |= {"tau_start": 1.0, "tau_end": 1.0}
    return validate(tree)


def training_study(table: FewShotTable, row: FewShotRow, genotype: Genotype | None, repeat: int) -> StudyConfig:
    """The study that meta-trains a row's network: of a genotype, as MAML's row says.

    Args:
        table: of the run.
        row: whose network.
        genotype: its architecture; None for four convolutions.
        repeat: which time.
    """
    tree = table.baselines[row.baseline or "maml"].model_dump(mode="json")
    tree["seed"] += repeat
    tree["rounds"] = table.rounds
    if row.baseline is None:
        assert genotype is not None, "of every row but four convolutions"
        tree["network"] = table.network.model_dump(mode="json")
        tree["space"] = table.search.space.model_dump(mode="json")
        tree["few_shot"] |= {"network": "genotype", "genotype": genotype.model_dump(mode="json")}
    return validate(tree)


def given_genotype(row: FewShotRow) -> Genotype | None:
    """The genotype of a row that has one without a search."""
    return None if row.released is None else released_genotype(row.released)


def few_shot_of(table: FewShotTable, row: FewShotRow) -> FewShotConfig:
    """How a row's network learns, its own kind aside."""
    few_shot = table.baselines[row.baseline or "maml"].few_shot
    assert few_shot is not None, "a few-shot study"
    return few_shot


def trained_cost(table: FewShotTable, row: FewShotRow, genotype: Genotype | None) -> Cost:
    """Parameters and multiply-accumulates of a row's network as the run trains it; a genotype of None is four
    convolutions."""
    family = table.family
    if row.baseline is None:
        assert genotype is not None, "of every row but four convolutions"
        return network_cost(genotype, table.search.space, table.network, family.image_size, family.num_ways)
    channels = table.baselines[row.baseline].network.image_channels
    return four_convolutions_cost(channels, few_shot_of(table, row).filters, family.image_size, family.num_ways)


def full_cost(space: SpaceConfig, genotype: Genotype | None) -> Cost:
    """The same at full scale, whatever the run's own."""
    if genotype is None:
        return four_convolutions_cost(FULL_NETWORK.image_channels, FILTERS, IMAGE_SIZE, NUM_WAYS)
    return network_cost(genotype, space, FULL_NETWORK, IMAGE_SIZE, NUM_WAYS)


def smoke_few_shot() -> FewShotTable:
    """Table 4 in minutes on two cores: characters at 28 pixels, the searches' own small network, few rounds."""
    search = load("few_shot", ["rounds=25", "space.num_nodes=4"], environment={})
    family = search.families[0]
    return FewShotTable(
        stand_in=f"characters of many scripts (gray, {family.image_size} pixels)",
        search=search,
        network=search.network,
        baselines={name: load(name, environment={}) for name in _BASELINES},
        rounds=30,
        repeats=1,
        episodes=40,
    )


def full_few_shot(mini_imagenet: str | None) -> FewShotTable:
    """The paper's table 4, as far as its text has it: step counts, rates and layouts are reconstructions.

    Args:
        mini_imagenet: folder with Mini-ImageNet's files; where it is looked for by default if not given.
    """
    search = load("mini_imagenet", environment={})
    data: DatasetRef = search.families[0].data.model_copy(update={"root": mini_imagenet})
    families = (search.families[0].model_copy(update={"data": data}),)
    search = search.model_copy(update={"families": families})
    # MAML's rates are those that it was published with for these images, as the search's; Reptile's are the preset's.
    published = ["few_shot.theta_lr=0.01", "few_shot.adam.lr=1e-3"]
    baselines: dict[Baseline, StudyConfig] = {}
    for name in _BASELINES:
        changes = [f"few_shot.filters={FILTERS}", *(published if name == "maml" else [])]
        tree = load(name, changes, environment={}).model_dump(mode="json")
        for field in ("families", "checkpoint", "cluster"):
            tree[field] = search.model_dump(mode="json")[field]
        baselines[name] = validate(tree)
    return FewShotTable(
        search=search,
        network=FULL_NETWORK,
        baselines=baselines,
        rounds=search.rounds,
        repeats=2,
        episodes=600,
    )
