"""Names of the candidate operations (primitives) and the profiles that list them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

NONE = "none"
MAX_POOL = "max_pool_3x3"
AVG_POOL = "avg_pool_3x3"
SKIP = "skip_connect"
SEP_CONV_3 = "sep_conv_3x3"
SEP_CONV_5 = "sep_conv_5x5"
SEP_CONV_7 = "sep_conv_7x7"
DIL_CONV_3 = "dil_conv_3x3"
DIL_CONV_5 = "dil_conv_5x5"
CONV_7X1_1X7 = "conv_7x1_1x7"

ProfileName = Literal["darts", "base", "base+"]

_DARTS = (NONE, MAX_POOL, AVG_POOL, SKIP, SEP_CONV_3, SEP_CONV_5, DIL_CONV_3, DIL_CONV_5)

# BASE app. A names the kinds of operation; the authors' released evaluation code lists all candidates.
PROFILES: Mapping[ProfileName, tuple[str, ...]] = MappingProxyType(
    {
        "darts": _DARTS,
        "base": (*_DARTS, CONV_7X1_1X7),
        "base+": (*_DARTS, CONV_7X1_1X7, SEP_CONV_7),
    }
)

PRIMITIVES = PROFILES["base+"]

# Without a weight of their own at stride 1. What an unguarded search collapses to.
PARAMETER_FREE = frozenset({NONE, MAX_POOL, AVG_POOL, SKIP})
