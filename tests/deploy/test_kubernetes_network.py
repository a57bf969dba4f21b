"""Who may talk to whom, as the network policies of deploy/kubernetes say together."""

import pytest
from reference.manifests import OVERLAYS, Object, of_kind, rendered
from reference.pods import Pod, pods, selects


@pytest.fixture(params=[*OVERLAYS, "s3"])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return rendered(request.param)


def test_only_those_talk_that_need_to(objects: list[Object]) -> None:
    found = pods(objects)
    ray = {"ray-head", "ray-worker/cpu", "ray-worker/gpu"}
    expected = {
        ("anywhere", "gateway", "grpc"),
        ("monitoring", "gateway", "grpc"),
        ("monitoring", "gateway", "metrics"),
    }
    # The store is opened by gateways, the supervisor, and the coordinator, which is on the head.
    expected |= {(one, "redis", "redis") for one in ("gateway", "supervisor", "ray-head")}
    expected |= {("supervisor", "ray-head", "client")}
    expected |= {("monitoring", one, "metrics") for one in ray}
    expected |= {("monitoring", "ray-head", "as-metrics"), ("monitoring", "ray-head", "dash-metrics")}
    expected |= {(one, other, port) for one in ray for other in ray for port in found[other].ports}
    outside = {"anywhere": None, "monitoring": {"kubernetes.io/metadata.name": "monitoring"}}
    allowed = set()
    for other, pod in found.items():
        for port in pod.ports:
            for one in (*found, *outside):
                if one in outside:
                    if _admits(objects, pod, port, None, outside[one] or {}):
                        allowed.add((one, other, port))
                elif _admits(objects, pod, port, found[one], {}) and _lets_out(objects, found[one], pod, port):
                    allowed.add((one, other, port))
    assert allowed == expected


def test_beyond_the_namespace_pods_reach_names_and_little_else(objects: list[Object]) -> None:
    to_anywhere: dict[str, set[int]] = {}
    for pod in pods(objects).values():
        ports: set[int] = set()
        for rule in _rules(objects, pod, "egress"):
            if not rule.get("to"):
                ports |= {port["port"] for port in rule["ports"]}
        to_anywhere[pod.name] = ports
        assert any(peer.get("podSelector", {}).get("matchLabels") == {"k8s-app": "kube-dns"}
                   for rule in _rules(objects, pod, "egress") for peer in rule.get("to", ())), pod.name  # fmt: skip
    bucket = {443} if not of_kind(objects, "PersistentVolumeClaim") else set()
    workers = {"ray-worker/cpu": bucket, "ray-worker/gpu": bucket}
    assert to_anywhere == {"gateway": bucket, "supervisor": set(), "redis": set(), "ray-head": {443, 6443}, **workers}


def _rules(objects: list[Object], pod: Pod, direction: str) -> list[Object]:
    policies = [
        each["spec"] for each in of_kind(objects, "NetworkPolicy") if selects(each["spec"]["podSelector"], pod.labels)
    ]
    assert any(direction.capitalize() in each["policyTypes"] for each in policies), "denied by default"
    return [rule for each in policies for rule in each.get(direction, ())]


def _has_port(rule: Object, pod: Pod, port: str) -> bool:
    if "ports" not in rule:
        return True
    for each in rule["ports"]:
        assert each["protocol"] in ("TCP", "UDP")
        if isinstance(each["port"], str):
            if each["port"] == port:
                return True
        elif each["port"] == pod.ports[port]:
            return True
    return False


def _is_peer(peer: Object, pod: Pod | None, namespace: dict[str, str]) -> bool:
    if "namespaceSelector" in peer:
        return pod is None and bool(namespace) and selects(peer["namespaceSelector"], namespace)
    return pod is not None and selects(peer["podSelector"], pod.labels)


def _admits(objects: list[Object], pod: Pod, port: str, source: Pod | None, namespace: dict[str, str]) -> bool:
    return any(
        _has_port(rule, pod, port)
        and ("from" not in rule or any(_is_peer(peer, source, namespace) for peer in rule["from"]))
        for rule in _rules(objects, pod, "ingress")
    )


def _lets_out(objects: list[Object], source: Pod, target: Pod, port: str) -> bool:
    return any(
        _has_port(rule, target, port) and ("to" not in rule or any(_is_peer(peer, target, {}) for peer in rule["to"]))
        for rule in _rules(objects, source, "egress")
    )
