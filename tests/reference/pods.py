"""The pods that rendered objects make, with what the KubeRay operator adds to those of a RayCluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod as its template says.

    Attributes:
        name: component, or component and group of workers.
        labels: of the pod, those of the operator included.
        spec: of the pod.
        owner: the object that makes it.
    """

    name: str
    labels: Mapping[str, str]
    spec: Object
    owner: Object

    @property
    def main(self) -> Object:
        """The container that it is there for."""
        return self.spec["containers"][0]

    @property
    def ports(self) -> dict[str, int]:
        """By name."""
        return {port["name"]: port["containerPort"] for each in self.spec["containers"] for port in each["ports"]}

    @property
    def environment(self) -> dict[str, Any]:
        """Of the main container; values, or the reference that a value comes from."""
        return {each["name"]: each.get("value", each.get("valueFrom")) for each in self.main.get("env", ())}


def pods(objects: Sequence[Object]) -> dict[str, Pod]:
    """By name."""
    found = []
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet"):
            template = each["spec"]["template"]
            labels = template["metadata"]["labels"]
            found.append(Pod(labels["app.kubernetes.io/component"], labels, template["spec"], each))
        elif each["kind"] == "RayCluster":
            found.append(_ray_pod(each, each["spec"]["headGroupSpec"], "head", "headgroup"))
            for group in each["spec"]["workerGroupSpecs"]:
                found.append(_ray_pod(each, group, "worker", group["groupName"]))
    for pod in found:
        for container in pod.spec["containers"]:
            container.setdefault("ports", [])
    return {pod.name: pod for pod in found}


def _ray_pod(cluster: Object, group: Object, node_type: str, group_name: str) -> Pod:
    template = group["template"]
    own = template["metadata"]["labels"]
    # A template may say otherwise of the first two alone.
    labels = {"app.kubernetes.io/name": "kuberay", "ray.io/is-ray-node": "yes"} | own
    labels |= {
        "ray.io/cluster": cluster["metadata"]["name"],
        "ray.io/node-type": node_type,
        "ray.io/group": group_name,
    }
    name = own["app.kubernetes.io/component"]
    return Pod(name if node_type == "head" else f"{name}/{group_name}", labels, template["spec"], cluster)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector picks what has these labels."""
    if set(selector) - {"matchLabels", "matchExpressions"}:
        raise ValueError(f"unknown kind of selector: {selector}")
    for expression in selector.get("matchExpressions", ()):
        if expression["operator"] != "In":
            raise ValueError(f"unknown operator: {expression}")
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
