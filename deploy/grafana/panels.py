"""Panels of the dashboard as values, and the words of their queries. `make_dashboard.py` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
"""Of Okabe and Ito's colours, which people with any colour vision tell apart."""
RAY = 'SessionName=~"$SessionName"'
STUDY = f'{RAY}, tenant=~"$tenant", study=~"$study"'
BY_STUDY = "tenant, study"


@dataclass(frozen=True)
class Query:
    """A line, or several that differ by labels; `legend` names them."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel.

    Attributes:
        title: of the panel.
        description: what it shows, and what is worth a look.
        unit: of Grafana.
        queries: what it draws.
        width: of 24 columns.
        kind: `timeseries` or `stat`.
        stacked: whether lines are added up.
        steps: of thresholds (colour, from); drawn as lines where there are any.
        maximum: of the axis.
        panel_id: where it is given.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    width: int = 8
    kind: str = "timeseries"
    stacked: bool = False
    steps: Sequence[tuple[str, float]] = ()
    maximum: float | None = None
    panel_id: int | None = None


@dataclass(frozen=True)
class Row:
    """Panels under a title."""

    title: str
    panels: Sequence[Panel]
    height: int = 8


def ray(metric: str, labels: str = "") -> str:
    """A metric of actors, within the session that is chosen."""
    return f"ray_metasearch_{metric}{{{', '.join(each for each in (RAY, labels) if each)}}}"


def of_study(metric: str, by: str = BY_STUDY) -> str:
    """A gauge of the studies that are chosen."""
    return f"max by ({by}) (ray_metasearch_{metric}{{{STUDY}}})"


def strongest(cell: str) -> str:
    """On how many edges of a kind of cell each op is the most probable one, in the studies that are chosen."""
    gauge = f'ray_metasearch_strongest_op_edges{{{STUDY}, cell="{cell}"}}'
    return f"sum by (op) (max by ({BY_STUDY}, op) ({gauge}))"


def quantiles(bucket: str, by: str, window: str = "5m", shares: Sequence[float] = (0.5, 0.95)) -> list[Query]:
    """Quantiles of a histogram, by some labels."""
    labels = ", ".join(("le", by)) if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return [
        Query(f"histogram_quantile({share}, sum by ({labels}) (rate({bucket}[{window}])))", f"{legend}p{share * 100:g}")
        for share in shares
    ]
