"""A study computed again from its log alone: which tasks each version took in, and where they had begun."""

from collections.abc import Callable, Iterable

from common.config import StudyConfig
from common.intake import Intake
from common.messages import Update
from common.meta.prior import ALPHA, Prior
from common.meta.sums import Origin
from coordinator.outer import OuterStep


def replayed(
    prior: Prior, config: StudyConfig, intakes: Iterable[Intake], update_of: Callable[[int, Prior], Update]
) -> list[Prior]:
    """All versions, `prior` first.

    Args:
        prior: the first version.
        config: of the study.
        intakes: of the versions after it.
        update_of: what a task learns, by its number and the prior that it begins from.
    """
    versions = {prior.version: prior}
    for intake in intakes:
        step = OuterStep(prior, config)
        for number, began in intake.accepted:
            update = update_of(number, versions[began])
            weight = (1 + prior.version - began) ** -config.schedule.staleness_power
            origin = Origin(began, versions[began].vectors.get(ALPHA), weight)
            assert step.absorb(update, None if began == prior.version else origin) is None
        prior = step.finish()
        versions[prior.version] = prior
    return [versions[version] for version in sorted(versions)]
