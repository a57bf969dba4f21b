"""Writes the PrometheusRule of the Prometheus operator: the rules of deploy/prometheus/rules.yml, word for word."""

import textwrap
from pathlib import Path

_FOLDER = Path(__file__).parent
RULES = _FOLDER.parent / "prometheus" / "rules.yml"
PROMETHEUS_RULE = _FOLDER / "base" / "prometheus-rule.yaml"
_HEAD = """---
# Written by generate_rules.py from deploy/prometheus/rules.yml; change that.
# yamllint disable rule:line-length
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: metasearch
spec:
"""


def prometheus_rule() -> str:
    """The text of the object."""
    text = RULES.read_text("utf-8")
    return _HEAD + textwrap.indent(text[text.index("groups:\n") :], "  ")


if __name__ == "__main__":
    PROMETHEUS_RULE.write_text(prometheus_rule(), "utf-8")
