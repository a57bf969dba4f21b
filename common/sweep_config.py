"""A sweep as a value: which fields take which values, who chooses them, when a trial ends. No torch, no Ray."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from common.config import Frozen, PositiveFloat, Split, StudyConfig, explain, validate
from common.errors import InvalidInputError, NotFoundError
from common.loading import apply_overrides, read_tree, with_preset
from common.sweep_space import MOST_COMBINATIONS, Domain, combinations_of, fields_of

Searcher = Literal["random", "grid", "optuna", "hyperopt"]
Scheduler = Literal["asha", "pbt", "none"]
Metric = Literal["accuracy", "loss_nats", "train_loss_first", "train_loss_last"]
Mode = Literal["max", "min"]

# What decides the shape of the prior, or how far a schedule has come: a trial under PBT takes over another's prior.
_FIXED_UNDER_PBT = (
    "seed",
    "rounds",
    "space",
    "network.channels",
    "network.cells",
    "network.image_channels",
    "network.heads",
    "inner.weights",
    "inner.gaussian_scale",
    "adapt.weights",
    "adapt.gaussian_scale",
    "few_shot.network",
    "few_shot.genotype",
    "few_shot.filters",
)


class AshaConfig(Frozen):
    """Asynchronous successive halving: at each rung, only the best share of the trials goes on."""

    grace: int = Field(1, ge=1)
    """Rounds (epochs of full networks) that every trial gets: the first rung."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """Rungs lie this many times as far apart; one trial in so many goes on from a rung."""


class PbtConfig(Frozen):
    """Population based training: now and then, the worst take over the prior of the best, and change its values."""

    perturb_every: int = Field(2, ge=1)
    """Rounds between two such times."""
    quantile_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the trials that counts as best, and as worst."""
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Chance that a value is drawn afresh instead of moved a step."""


class ArchitecturesConfig(Frozen):
    """Instead of a space: the most probable architectures of a posterior, trained as full networks."""

    of: str | None = None
    """Where the posterior is: a run's folder (its latest prior), the result.json of an adaptation, or an adapt job
    (`studies/STUDY/jobs/ID`). In a job of the service, the study's latest prior where not given."""
    top: int = Field(8, ge=2, le=1000)
    """How many architectures."""
    data: str | None = None
    """Images to train on: a source by name, or a path."""
    root: str | None = None
    """Folder that holds the source's files."""
    recipe: str = "cifar10"
    """As in `metasearch evaluate`. Where it keeps no validation images, a tenth of each class is kept."""
    overrides: tuple[str, ...] = ()
    """Changes of single fields of the recipe, `epochs=50`."""


class SweepConfig(Frozen):
    """What a sweep tries, and how."""

    space: Mapping[str, Domain] = {}
    """By field of the study's configuration, dotted (`inner.alpha.lr`, `families.0.num_ways`), the values to try.
    Several fields that take the same value are one key, with commas."""
    architectures: ArchitecturesConfig | None = None
    trials: int | None = Field(None, ge=1, le=100_000)
    """How many points are drawn (with grids among them, that many of every combination); 8 where not given. Under the
    searcher grid it is every combination, once."""
    searcher: Searcher = "random"
    """Who chooses the points: at random, every combination, or by what was found so far (Optuna's or HyperOpt's tree of
    Parzen estimators)."""
    scheduler: Scheduler = "asha"
    """Who ends trials early."""
    metric: Metric = "accuracy"
    """accuracy, loss_nats: on held-out images of fresh tasks, after adapting the trial's prior to them, mean over
    tasks. train_loss_...: of the last round. For architectures, accuracy on validation images."""
    mode: Mode | None = None
    """max or min; by the metric where not given."""
    report_every: int = Field(1, ge=1)
    """Rounds (epochs) between two measurements, and checkpoints."""
    tasks: int = Field(4, ge=1, le=10_000)
    """Fresh tasks of each family of the study that trials are measured on; the same for all."""
    split: Split = "unseen"
    """Which classes the fresh tasks are of."""
    concurrency: int | None = Field(None, ge=1)
    """Trials at the same time; as many as there is room for where not given. In a job of the service, all workers but
    one."""
    seed: int = Field(0, ge=0)
    """Draws points and fresh tasks. The trials' own random numbers are those of their configuration."""
    max_seconds: PositiveFloat | None = None
    """Stop all trials after so many seconds, over all resumptions."""
    asha: AshaConfig = AshaConfig()
    pbt: PbtConfig = PbtConfig()

    @field_validator("space")
    @classmethod
    def _names(cls, space: Mapping[str, Domain]) -> Mapping[str, Domain]:
        fields = [field for key in space for field in fields_of(key)]
        for field in fields:
            if not field:
                raise ValueError('names an empty field; write one like "inner.theta.lr"')
        for field in set(fields):
            if fields.count(field) > 1:
                raise ValueError(f"{field!r} is swept twice; remove one")
            for other in set(fields):
                if other.startswith(field + "."):
                    raise ValueError(f"{other!r} is a part of {field!r}, which is swept too; remove one")
        return space

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.space) == (self.architectures is not None):
            raise ValueError("give either [space], with fields to sweep, or [architectures]")
        if self.architectures is not None:
            for name in ("trials", "searcher", "tasks", "split"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no meaning with [architectures]; leave it out")
            if self.scheduler == "pbt":
                raise ValueError("scheduler 'pbt' has nothing to change with [architectures]; use asha or none")
            if self.metric != "accuracy":
                raise ValueError(f"metric must be 'accuracy' with [architectures], got {self.metric!r}")
        listed = {key: domain for key, domain in self.space.items() if domain.is_listed}
        if self.searcher == "grid":
            for key in self.space.keys() - listed.keys():
                raise ValueError(f"searcher 'grid' needs listed values, {key!r} has {self.space[key].kind}; use grid")
            if self.trials is not None:
                raise ValueError("searcher 'grid' takes every combination once; leave trials out")
        elif self.searcher != "random":
            for key, domain in listed.items():
                if domain.kind == "grid":
                    raise ValueError(f"searcher {self.searcher!r} takes no grid, {key!r} has one; use choice")
        if self.num_combinations > MOST_COMBINATIONS:
            raise ValueError(f"the grid has {self.num_combinations} combinations, more than {MOST_COMBINATIONS}")
        if self.scheduler == "pbt":
            self._check_pbt()
        return self

    def _check_pbt(self) -> None:
        if self.searcher != "random":
            raise ValueError(f"scheduler 'pbt' chooses values itself; set searcher to 'random', not {self.searcher!r}")
        for key, domain in self.space.items():
            if domain.kind == "grid":
                raise ValueError(f"scheduler 'pbt' takes no grid, {key!r} has one; use choice")
            for field in fields_of(key):
                for fixed in _FIXED_UNDER_PBT:
                    if field == fixed or field.startswith(fixed + ".") or fixed.startswith(field + "."):
                        raise ValueError(
                            f"scheduler 'pbt' cannot change {field!r}: priors of other values could not be taken "
                            "over; use asha"
                        )
        if self.num_trials < 2:
            raise ValueError("scheduler 'pbt' needs a population; set trials to 2 or more")

    @property
    def num_combinations(self) -> int:
        """Combinations of the grids; 1 where there is none."""
        return combinations_of(
            domain for domain in self.space.values() if domain.kind == "grid" or self.searcher == "grid"
        )

    @property
    def num_samples(self) -> int:
        """Points that are drawn for each combination."""
        return 1 if self.searcher == "grid" else self.trials or 8

    @property
    def num_trials(self) -> int:
        """Trials in all."""
        if self.architectures is not None:
            return self.architectures.top
        return self.num_samples * self.num_combinations

    @property
    def is_maximised(self) -> bool:
        """Whether more of the metric is better."""
        return (self.mode or ("max" if self.metric == "accuracy" else "min")) == "max"


def validate_sweep(tree: Mapping[str, Any]) -> SweepConfig:
    """A `SweepConfig` from plain values.

    Raises:
        InvalidInputError: names every wrong field, its value and what is allowed.
    """
    try:
        return SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise InvalidInputError("sweep: " + explain(error)) from None


def read_sweep(path: Path) -> dict[str, Any]:
    """The plain values of a sweep's TOML file; nothing is checked.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(f"there is no file {path}; a sweep is described by a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not a TOML file: {error}") from None


def base_study(study: Any, overrides: Sequence[str] = ()) -> StudyConfig:
    """The configuration that a sweep starts from.

    Args:
        study: name of a preset or of a study's TOML file; or a table, as such a file has it.
        overrides: changes of single fields, `rounds=20`.

    Raises:
        NotFoundError: there is no such preset or file.
        InvalidInputError: a field is wrong.
    """
    if not isinstance(study, str | Mapping):
        raise InvalidInputError(f"sweep: study must be a preset, a file or a table, got {study!r}")
    tree = read_tree(study) if isinstance(study, str) else with_preset(study, "study")
    apply_overrides(tree, overrides)
    return validate(tree)
