"""What deploy/kubernetes renders to: by its schemas, and each object in itself."""

import copy
import re
import tomllib

import kubernetes_validate
import pytest
from pydantic import ValidationError
from reference.custom_objects import MODELS, num_bytes
from reference.kustomize import containers
from reference.manifests import KUBERNETES, OVERLAYS, Object, named, rendered
from reference.pods import Pod, pods

ROOT = KUBERNETES.parents[1]
OLDEST = "1.30"
"""The first version whose pods may sleep before they end, and have gRPC probes."""


@pytest.fixture(params=[*OVERLAYS, "s3"])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return rendered(request.param)


@pytest.fixture
def base() -> list[Object]:
    return rendered("base")


def check(each: Object, version: str) -> None:
    """By the model of its kind, or by the schemas of Kubernetes, which take no unknown field."""
    if (model := MODELS.get(each["kind"])) is not None:
        model.model_validate(each)
    else:
        kubernetes_validate.validate(each, version, strict=True)


def check_pod(pod: Pod, version: str) -> None:
    spec = copy.deepcopy(pod.spec)
    for each in spec["containers"]:
        each["ports"] = each["ports"] or [{"containerPort": 1}]
    tree = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "labels": dict(pod.labels)}, "spec": spec}
    kubernetes_validate.validate(tree, version, strict=True)


@pytest.mark.parametrize(
    "variant, version",
    [
        ("base", OLDEST),
        ("base", kubernetes_validate.latest_version()),
        *((name, OLDEST) for name in (*OVERLAYS[1:], "s3")),
    ],
)
def test_every_object_fits_its_schema(variant: str, version: str) -> None:
    objects = rendered(variant)
    same = [] if variant == "base" else rendered("base")
    for each in objects:
        if each not in same:
            check(each, version)
    for pod in pods(objects).values():
        if pod.owner not in same:
            check_pod(pod, version)


def test_schemas_find_what_is_wrong(base: list[Object]) -> None:
    gateway = copy.deepcopy(named(base, "Deployment", "metasearch-gateway"))
    gateway["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        check(gateway, OLDEST)
    cluster = copy.deepcopy(named(base, "RayCluster", "metasearch-ray"))
    cluster["spec"]["workerGroupSpecs"][0]["maxReplicas"] = -1
    cluster["spec"]["enableInTreeAutoscaler"] = True
    with pytest.raises(ValidationError, match=r"(?s)enableInTreeAutoscaler.*maxReplicas|maxReplicas.*InTree"):
        check(cluster, OLDEST)
    head = pods([cluster])["ray-head"]
    head.spec["containers"][0]["livenessProbe"]["httpGet"].pop("port")
    with pytest.raises(kubernetes_validate.ValidationError, match="port"):
        check_pod(head, OLDEST)


def test_names_are_used_once(objects: list[Object]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    assert all(each["metadata"].get("namespace", "metasearch") == "metasearch" for each in objects)


def test_images_are_pinned_to_the_version_of_the_package(base: list[Object]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    images = {container["image"] for each in base for container in containers(each)}
    assert {image.split(":")[0] for image in images} == {
        "metasearch-cpu", "metasearch-cuda", "metasearch-gateway", "redis",
    }  # fmt: skip
    for image in images:
        name, _, tag = image.partition(":")
        assert re.match(r"\d+\.\d+", tag), f"{image}: a tag that says which"
        assert tag == version or name == "redis"


def test_pods_may_as_little_as_they_can(objects: list[Object]) -> None:
    found = pods(objects)
    assert set(found) == {"gateway", "supervisor", "redis", "ray-head", "ray-worker/cpu", "ray-worker/gpu"}
    for pod in found.values():
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0, pod.name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, pod.name
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        assert pod.spec["enableServiceLinks"] is False, pod.name
    cluster = named(objects, "RayCluster", "metasearch-ray")["spec"]
    autoscaler = cluster["autoscalerOptions"]
    for container in [*(container for each in objects for container in containers(each)), autoscaler]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]} and "privileged" not in security
        resources = container["resources"]
        assert set(resources["requests"]) >= {"cpu", "memory"}
        assert num_bytes(resources["limits"]["memory"]) >= num_bytes(resources["requests"]["memory"])
    namespace = named(objects, "Namespace", "metasearch")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"


def test_only_the_autoscaler_can_call_the_api_of_kubernetes(objects: list[Object]) -> None:
    spec = named(objects, "RayCluster", "metasearch-ray")["spec"]
    with_token = {
        volume["name"]
        for pod in pods(objects).values()
        for volume in pod.spec.get("volumes", ())
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", ()))
    }
    mounted = {mount["name"] for pod in pods(objects).values() for mount in pod.main["volumeMounts"]}
    assert len(with_token) == 1 and not with_token & mounted
    # Where Ray's client of that API looks for its token.
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert {"name": with_token.pop(), "mountPath": folder, "readOnly": True} in spec["autoscalerOptions"][
        "volumeMounts"
    ]


def test_where_processes_write_there_is_a_volume(objects: list[Object]) -> None:
    for pod in pods(objects).values():
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())}
        if pod.owner["kind"] == "StatefulSet":
            volumes |= {claim["metadata"]["name"] for claim in pod.owner["spec"]["volumeClaimTemplates"]}
        extra = pod.owner["spec"].get("autoscalerOptions", {}).get("volumeMounts", []) if pod.name == "ray-head" else []
        mounts = pod.main["volumeMounts"] + extra
        assert {mount["name"] for mount in mounts} == volumes, f"{pod.name}: every volume is mounted, and no other"
        writable = {mount["mountPath"] for mount in pod.main["volumeMounts"] if not mount.get("readOnly")}
        assert ("/data" if pod.name == "redis" else "/tmp") in writable, pod.name
        for volume in pod.spec.get("volumes", ()):
            assert "hostPath" not in volume
            if "emptyDir" in volume:
                assert num_bytes(volume["emptyDir"]["sizeLimit"]), f"{pod.name}: {volume['name']} has an end"


def test_ray_cluster_has_a_token_an_autoscaler_and_a_head_without_workers(objects: list[Object]) -> None:
    spec = named(objects, "RayCluster", "metasearch-ray")["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "metasearch-ray-token"}
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["minReplicas"] for group in spec["workerGroupSpecs"]] == [0, 0]
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["rayStartParams"]["num-cpus"] == limits["cpu"], "a worker has a processor to itself"
        assert group["rayStartParams"].get("num-gpus") == limits.get("nvidia.com/gpu")


def test_gpu_pods_are_put_on_gpu_nodes(objects: list[Object]) -> None:
    found = pods(objects)
    gpu, cpu = found["ray-worker/gpu"], found["ray-worker/cpu"]
    assert gpu.spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu.spec["tolerations"]
    assert gpu.main["image"].startswith("metasearch-cuda:")
    assert "nodeSelector" not in cpu.spec and "tolerations" not in cpu.spec


def test_overlays_change_what_they_are_for_and_nothing_else(base: list[Object]) -> None:
    def differing(overlay: str) -> set[tuple[str, str]]:
        others = rendered(f"overlays/{overlay}")
        assert len(others) == len(base)
        pairs = zip(base, others, strict=True)
        return {(old["kind"], old["metadata"]["name"]) for old, new in pairs if old != new}

    cluster, supervisor = ("RayCluster", "metasearch-ray"), ("Deployment", "metasearch-supervisor")
    assert differing("gpu") == {cluster, supervisor}
    assert differing("gcs-fault-tolerance") == {cluster}
    gpu = named(rendered("overlays/gpu"), *cluster)["spec"]["workerGroupSpecs"][1]
    none = named(base, *cluster)["spec"]["workerGroupSpecs"][1]
    assert (none["maxReplicas"], gpu["minReplicas"], gpu["maxReplicas"]) == (0, 0, 8)
    assert gpu | {"maxReplicas": 0} == none


def test_gateways_are_replaced_without_a_gap(base: list[Object]) -> None:
    spec = named(base, "Deployment", "metasearch-gateway")["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0 and "replicas" not in spec
    scaler = named(base, "HorizontalPodAutoscaler", "metasearch-gateway")["spec"]
    disruption = named(base, "PodDisruptionBudget", "metasearch-gateway")["spec"]
    assert scaler["minReplicas"] - disruption["maxUnavailable"] >= 1
    assert {each["topologyKey"] for each in spec["template"]["spec"]["topologySpreadConstraints"]} == {
        "topology.kubernetes.io/zone", "kubernetes.io/hostname",
    }  # fmt: skip


def test_prometheus_rule_has_the_rules_of_prometheus(base: list[Object]) -> None:
    import runpy

    import yaml

    generated = runpy.run_path(str(KUBERNETES / "generate_rules.py"))
    if not generated["RULES"].exists():
        pytest.skip("there is no deploy/prometheus/rules.yml")
    assert generated["PROMETHEUS_RULE"].read_text("utf-8") == generated["prometheus_rule"](), "run generate_rules.py"
    rules = yaml.safe_load(generated["RULES"].read_text("utf-8"))
    assert named(base, "PrometheusRule", "metasearch")["spec"] == rules
