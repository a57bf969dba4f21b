"""What a sweep tries, with everything resolved: a study to vary, or architectures to train. No torch, no Ray."""

from collections.abc import Sequence

from common.config import DatasetRef, Frozen, StudyConfig
from common.errors import InvalidInputError
from common.evaluate_config import EvaluateConfig, load_evaluate_config
from common.network_config import cell_plans
from common.space.genotype import Genotype
from common.sweep_config import SweepConfig
from common.tasks import DatasetFile

_VALIDATION = "validation_fraction=0.1"


class Candidate(Frozen):
    """An architecture to train as a full network."""

    genotype: Genotype
    probability: float
    """Of drawing exactly it from the posterior, 0 to 1."""


class Architectures(Frozen):
    """What two-fidelity search trains."""

    candidates: tuple[Candidate, ...]
    """Most probable first. Of a job that has not begun none: those of the study's prior."""
    recipe: EvaluateConfig
    """Keeps validation images, which the choice is made on."""
    data: DatasetRef
    """The images; with `file`, `data.source` is only their name."""
    file: DatasetFile | None = None
    """A data file that trials fetch."""


class SweepPlan(Frozen):
    """A sweep with everything resolved: a study to vary, or architectures to train."""

    config: SweepConfig
    study: StudyConfig | None = None
    architectures: Architectures | None = None

    @property
    def most_rounds(self) -> int:
        """Rounds (epochs) of the longest trial, as far as it is known."""
        if self.architectures is not None:
            return self.architectures.recipe.last_epoch
        assert self.study is not None
        swept = self.config.space.get("rounds")
        return self.study.rounds if swept is None else max(int(end) for end in swept.ends)

    @property
    def unit(self) -> str:
        """What trials are measured in."""
        return "rounds" if self.architectures is None else "epochs"


def sweep_recipe(preset: str, overrides: Sequence[str]) -> EvaluateConfig:
    """The recipe that candidates are trained by: with validation images, as test images must not choose.

    Raises:
        NotFoundError: there is no such preset.
        InvalidInputError: a field is wrong, or there would be no validation images.
    """
    base = load_evaluate_config(preset)
    # After every epoch, as every one may be a rung.
    defaults = [*([] if base.validation_fraction else [_VALIDATION]), "evaluate_every_epochs=1"]
    recipe = load_evaluate_config(preset, [*defaults, *overrides])
    if recipe.validation_fraction == 0:
        raise InvalidInputError(
            "recipe: validation_fraction is 0, so the choice would be made on the test images; set it above 0"
        )
    if recipe.evaluate_every_epochs != 1:
        raise InvalidInputError("recipe: evaluate_every_epochs must be 1 in a sweep; use report_every of the sweep")
    return recipe


def check_kinds(candidates: Sequence[Candidate], recipe: EvaluateConfig) -> None:
    """Refuses architectures with kinds of cell that no full network has.

    Raises:
        InvalidInputError: names the kinds.
    """
    # Any number of classes and channels will do.
    tuple(cell_plans(candidates[0].genotype, recipe.network(2, 1)))
