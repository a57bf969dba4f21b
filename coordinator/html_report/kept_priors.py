"""What the priors that a folder keeps say: posteriors, the architecture of the latest, principal components.

Torch is imported only where priors are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.config import StudyConfig
from common.cost import Cost, network_cost
from common.errors import CorruptArtifactError, NotFoundError
from common.space.genotype import Genotype, derive
from common.storage import ArtifactFolder
from coordinator.html_report.axes import evenly
from coordinator.html_report.pca import Components, principal_components
from coordinator.html_report.provenance import PRIOR_STEM
from coordinator.html_report.report import Found, Posterior

if TYPE_CHECKING:
    from common.meta.prior import Prior

MOST_HEATMAPS = 6  # versions shown
MOST_COMPONENTS = 64  # versions whose weights are in memory together


@dataclass(frozen=True, eq=False)
class KeptPriors:
    """What the kept priors of a study say."""

    versions: tuple[int, ...] = ()
    posteriors: tuple[Posterior, ...] = ()
    component_versions: tuple[int, ...] = ()
    architecture: Components | None = None
    weights: Components | None = None
    notes: tuple[str, ...] = ()


def read_priors(folder: Path, below: str, config: StudyConfig) -> KeptPriors:
    """Posteriors and components of the priors in `folder`/`below`; one that is damaged is noted and left out."""
    stems = [path.stem for path in sorted((folder / below).glob("*.json")) if PRIOR_STEM.match(path.stem)]
    if not stems:
        return KeptPriors()
    from common.artifacts import load_prior

    wanted = [stems[index] for index in evenly(len(stems), MOST_COMPONENTS)]
    notes: list[str] = []
    priors: list[Prior] = []
    for stem in wanted:
        version = int(stem[:8])
        try:
            priors.append(load_prior(ArtifactFolder(folder), f"{below}/{stem}", version))
        except NotFoundError:
            continue  # a run that goes on has removed it meanwhile
        except CorruptArtifactError as error:
            notes.append(f"Prior version {version} is left out, as it is damaged: {error}.")
    if not priors:
        return KeptPriors(notes=tuple(notes))
    found = [_probabilities(prior, config) for prior in priors if prior.has_architecture]
    shown = evenly(len(found), MOST_HEATMAPS)
    architecture = weights = None
    if len(found) >= 3:
        architecture = principal_components([np.concatenate([each.ravel() for each in by.values()]) for by in found])
    if len(priors) >= 3:
        weights = principal_components(
            [np.concatenate([prior.vectors[name] for name in sorted(prior.weight_names)]) for prior in priors]
        )
    return KeptPriors(
        versions=tuple(int(stem[:8]) for stem in stems),
        posteriors=tuple(Posterior(str(priors[index].version), found[index]) for index in shown),
        component_versions=tuple(prior.version for prior in priors),
        architecture=architecture,
        weights=weights,
        notes=tuple(notes),
    )


def _probabilities(prior: "Prior", config: StudyConfig) -> dict[str, NDArray[np.float64]]:
    from common.meta.posterior import probabilities

    space = config.space
    matrices = probabilities(prior.alpha(config), space.topology, space.normalisation).numpy()
    return dict(zip(space.cell_kinds, matrices, strict=True))


def found_by(priors: KeptPriors, config: StudyConfig) -> Found | None:
    """The architecture that the latest kept version stands for, or the study's own."""
    if config.few_shot is not None and config.few_shot.genotype is not None:
        genotype = config.few_shot.genotype
        return Found(genotype, "The study's own, which learns weights alone.", derived_cost(genotype, config))
    if not priors.posteriors:
        return None
    latest = priors.posteriors[-1]
    genotype = derive(latest.probabilities, config.space.topology, config.space.ops)
    return Found(genotype, f"Derived from version {latest.label} of the prior.", derived_cost(genotype, config))


def derived_cost(genotype: Genotype, config: StudyConfig) -> Cost:
    """Of the derived network for tasks of the first family."""
    family = config.families[0]
    return network_cost(genotype, config.space, config.network, family.image_size, family.num_ways)
