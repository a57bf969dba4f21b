"""Models of the objects whose kinds Kubernetes itself does not know: their fields, and no others.

RayCluster as of KubeRay 1.6 (`ray.io/v1`), PodMonitor and PrometheusRule as of the Prometheus operator.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
Duration = Annotated[str, StringConstraints(pattern=r"^(\d+(ms|[smhdwy]))+$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: Name
    namespace: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Selector(Strict):
    matchLabels: dict[str, str] = Field(min_length=1)


# KubeRay


class SecretKey(Strict):
    name: Name
    key: str


class FromSecret(Strict):
    secretKeyRef: SecretKey


class Credential(Strict):
    """Never a `value`, which would be a secret in a file."""

    valueFrom: FromSecret


class GcsFaultTolerance(Strict):
    redisAddress: Annotated[str, StringConstraints(pattern=r"^(rediss?://)?[a-z0-9.-]+:\d+$")]
    redisUsername: Credential | None = None
    redisPassword: Credential | None = None
    externalStorageNamespace: str = ""


class Auth(Strict):
    mode: Literal["disabled", "token"] = "token"
    secretName: Name | None = None
    enableK8sTokenAuth: bool | None = None


class Upgrade(Strict):
    type: Literal["Recreate", "None"]


class Resources(Strict):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, StringConstraints(pattern="^/")]
    readOnly: bool = False
    subPath: str = ""


class Autoscaler(Strict):
    version: Literal["v1", "v2"] | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    idleTimeoutSeconds: int | None = Field(None, ge=0)
    image: str | None = None
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    resources: Resources | None = None
    securityContext: dict[str, Any] | None = None
    env: list[dict[str, Any]] = []
    envFrom: list[dict[str, Any]] = []
    volumeMounts: list[Mount] = []
    command: list[str] = []
    args: list[str] = []


class HeadGroup(Strict):
    template: dict[str, Any]
    """A pod's template, as Kubernetes knows it."""
    rayStartParams: dict[str, str]
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    headService: dict[str, Any] | None = None
    enableIngress: bool | None = None
    resources: dict[str, str] = {}
    labels: dict[str, str] = {}


class WorkerGroup(Strict):
    groupName: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    template: dict[str, Any]
    rayStartParams: dict[str, str]
    replicas: int = Field(0, ge=0)
    minReplicas: int = Field(0, ge=0)
    maxReplicas: int = Field(ge=0)
    idleTimeoutSeconds: int | None = Field(None, ge=0)
    numOfHosts: int = Field(1, ge=1)
    suspend: bool | None = None
    scaleStrategy: dict[str, list[str]] = {}
    resources: dict[str, str] = {}
    labels: dict[str, str] = {}

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerGroup":
        assert self.minReplicas <= self.replicas <= max(self.maxReplicas, self.minReplicas), self.groupName
        assert self.minReplicas <= self.maxReplicas, self.groupName
        return self


class RayClusterSpec(Strict):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    rayVersion: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")] = ""
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    authOptions: Auth | None = None
    upgradeStrategy: Upgrade | None = None
    gcsFaultToleranceOptions: GcsFaultTolerance | None = None
    headServiceAnnotations: dict[str, str] = {}
    managedBy: Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"] | None = None
    suspend: bool | None = None

    @model_validator(mode="after")
    def _as_the_operator_checks(self) -> "RayClusterSpec":
        names = [group.groupName for group in self.workerGroupSpecs]
        assert len(names) == len(set(names)), "two groups of one name"
        if self.gcsFaultToleranceOptions is not None:
            assert "redis-password" not in self.headGroupSpec.rayStartParams, "redisPassword says it"
        return self


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


# The Prometheus operator


class Relabeling(Strict):
    targetLabel: LabelName
    sourceLabels: list[LabelName] = []
    replacement: str | None = None
    regex: str | None = None
    separator: str | None = None
    action: Literal["replace", "keep", "drop", "labeldrop", "labelkeep", "labelmap", "hashmod"] = "replace"


class Endpoint(Strict):
    port: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$")]
    path: str = "/metrics"
    interval: Duration | None = None
    scrapeTimeout: Duration | None = None
    honorLabels: bool = False
    relabelings: list[Relabeling] = []
    metricRelabelings: list[Relabeling] = []


class PodMonitorSpec(Strict):
    selector: Selector
    podMetricsEndpoints: list[Endpoint] = Field(min_length=1)
    jobLabel: str | None = None
    podTargetLabels: list[str] = []


class PodMonitor(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class Rule(Strict):
    alert: str | None = None
    record: str | None = None
    expr: str
    for_: Duration | None = Field(None, alias="for")
    keep_firing_for: Duration | None = None
    labels: dict[LabelName, str] = {}
    annotations: dict[LabelName, str] = {}

    @model_validator(mode="after")
    def _one_kind(self) -> "Rule":
        assert (self.alert is None) != (self.record is None), "a rule alerts, or it records"
        return self


class RuleGroup(Strict):
    name: str
    interval: Duration | None = None
    rules: list[Rule] = Field(min_length=1)


class PrometheusRuleSpec(Strict):
    groups: list[RuleGroup] = Field(min_length=1)


class PrometheusRule(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: PrometheusRuleSpec


MODELS: dict[str, type[Strict]] = {each.__name__: each for each in (RayCluster, PodMonitor, PrometheusRule)}


def num_bytes(quantity: str) -> int:
    """Bytes of a quantity of Kubernetes, or of Redis."""
    found = re.fullmatch(r"(\d+)\s*(\w*)", quantity.strip())
    assert found is not None, quantity
    binary = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "kb": 1 << 10, "mb": 1 << 20}
    return int(found[1]) * (binary | {"gb": 1 << 30, "k": 1000, "M": 10**6, "G": 10**9})[found[2]]
