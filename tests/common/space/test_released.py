"""Published genotypes: against the text in which they were released, and by name."""

import subprocess
import sys

import pytest

from common.errors import NotFoundError
from common.space.genotype import Genotype
from common.space.released import RELEASED, released_genotype

# As in the released codes: per node, op(source) in their order.
PUBLISHED = {
    "CIFAR_TUNED": {
        "normal": "skip0 dil3_1 | max0 dil5_0 | max0 sep5_0 | max1 dil5_1",
        "reduction": "sep3_0 sep5_0 | max0 sep3_0 | skip0 avg3 | max1 skip2",
    },
    "IMAGENET_TUNED": {
        "normal": "skip0 max1 | avg0 sep5_1 | sep5_0 dil5_3 | sep5_0 sep5_2",
        "reduction": "max0 sep5_0 | max0 avg0 | sep5_2 dil5_2 | avg0 sep5_3",
    },
    "DARTS_V1": {
        "normal": "sep3_1 sep3_0 | skip0 sep3_1 | skip0 sep3_1 | sep3_0 skip2",
        "reduction": "max0 max1 | skip2 max0 | max0 skip2 | skip2 avg0",
    },
    "DARTS_V2": {
        "normal": "sep3_0 sep3_1 | sep3_0 sep3_1 | sep3_1 skip0 | skip0 dil3_2",
        "reduction": "max0 max1 | skip2 max1 | max0 skip2 | skip2 max1",
    },
}
SHORT = {
    "max_pool_3x3": "max",
    "avg_pool_3x3": "avg",
    "skip_connect": "skip",
    "sep_conv_3x3": "sep3_",
    "sep_conv_5x5": "sep5_",
    "dil_conv_3x3": "dil3_",
    "dil_conv_5x5": "dil5_",
}


def short(genotype: Genotype) -> dict[str, str]:
    return {
        kind: " | ".join(" ".join(f"{SHORT[edge.primitive]}{edge.source}" for edge in node) for node in nodes)
        for kind, nodes in genotype.cells.items()
    }


def test_genotypes_are_those_published() -> None:
    assert {name: short(genotype) for name, genotype in RELEASED.items()} == PUBLISHED


def test_a_genotype_is_found_by_its_name_and_survives_json() -> None:
    for name, genotype in RELEASED.items():
        assert released_genotype(name) == genotype
        assert Genotype.from_json(genotype.to_json()) == genotype


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="'DARTS_V3'; released are CIFAR_TUNED, IMAGENET_TUNED, DARTS_V1, DARTS_V2"):
        released_genotype("DARTS_V3")


def test_counting_a_released_network_needs_no_torch() -> None:
    code = (
        "import sys; from common.nn.counting import count_network; from common.network_config import network_config;"
        "from common.nn.source import python_source; from common.space.released import DARTS_V2;"
        "count_network(DARTS_V2, network_config('cifar')); python_source(DARTS_V2, network_config('cifar'), 'net');"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "False\n"
