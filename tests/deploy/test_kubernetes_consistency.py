"""What the manifests say of each other, of the command line, of the settings, of Ray, Redis and Prometheus."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from reference.custom_objects import num_bytes
from reference.manifests import KUBERNETES, OVERLAYS, Object, of_kind, references, rendered
from reference.pods import Pod, pods, selects

from coordinator.settings import ENVIRONMENT_PREFIX, ServiceSettings, load_settings

PROMETHEUS = KUBERNETES.parent / "prometheus" / "prometheus.yml"
CLOSING_S = 5.0
"""What a process may take beside draining."""
S3_KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"}
# Of versions of the code to come; nothing, once they are there.
PENDING = {"METASEARCH_SERVICE_METRICS_LISTEN"} if "metrics_listen" not in ServiceSettings.model_fields else set()
# Not of the code, but read by what it starts: Redis's client, and Ray.
FOREIGN_VARIABLES = {"REDIS_PASSWORD", "REDISCLI_AUTH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}


@pytest.fixture(params=[*OVERLAYS, "s3"])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return rendered(request.param)


@pytest.fixture
def base() -> list[Object]:
    return rendered("base")


def settings_of(objects: list[Object], pod: Pod, folder: Path) -> ServiceSettings:
    """What a pod's process reads: its file, and its environment as the kubelet makes it."""
    data = next(each for each in of_kind(objects, "ConfigMap") if "service.toml" in each["data"])["data"]
    (folder / "service.toml").write_text(data["service.toml"], "utf-8")
    environment = {}
    for name, value in pod.environment.items():
        if name in PENDING:
            continue
        text = value if isinstance(value, str) else "secret"
        environment[name] = re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], text)
    return load_settings(folder / "service.toml", environment=environment)


def secrets_made() -> dict[str, set[str]]:
    """The keys of each secret that create-secrets.sh makes, as its own text says."""
    text = (KUBERNETES / "create-secrets.sh").read_text("utf-8")
    made = {name: {key} for name, key in re.findall(r"random (\S+) (\w+);", text)}
    made |= {name: {key} for name, key in re.findall(r"secret generic (\S+) .*--from-file=([\w.]+)=", text)}
    return made | {name: {"tls.crt", "tls.key"} for name in re.findall(r"secret tls (\S+)", text)}


# What is named exists


def test_secrets_that_are_named_are_made(objects: list[Object]) -> None:
    made = secrets_made()
    assert set(made) == {"metasearch-redis", "metasearch-ray-token", "metasearch-tokens", "metasearch-tls"}
    made["metasearch-s3"] = S3_KEYS  # of the component s3, which says so
    for reference in references(objects, "secretKeyRef"):
        assert reference["key"] in made[reference["name"]], reference
    for secret in references(objects, "secret"):
        assert secret["secretName"] in made
    for each in references(objects, "secretRef"):
        assert each["name"] in made
    for options in references(objects, "authOptions"):
        assert made[options["secretName"]] == {"auth_token"}, "the key that KubeRay reads"
    assert not of_kind(objects, "Secret"), "no secret in a file"


def test_what_pods_mount_and_are_run_as_exists(objects: list[Object]) -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(objects, "ConfigMap")}
    claims = {each["metadata"]["name"] for each in of_kind(objects, "PersistentVolumeClaim")}
    accounts = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    for reference in references(objects, "configMap"):
        assert reference["name"] in maps or reference["name"] == "kube-root-ca.crt", "in every namespace"
    assert {each["claimName"] for each in references(objects, "persistentVolumeClaim")} == claims
    for pod in pods(objects).values():
        # The head's is made by the operator, with the role of its autoscaler.
        assert pod.spec.get("serviceAccountName") in (accounts if pod.name != "ray-head" else {None}), pod.name
        for mount in pod.main["volumeMounts"]:
            if "subPath" in mount:
                assert any(mount["subPath"] in data for data in maps.values())


def test_create_secrets_makes_what_is_missing_and_replaces_nothing(tmp_path: Path) -> None:
    recorder = tmp_path / "kubectl"
    recorder.write_text(
        '#!/bin/bash\nprintf "%q " "$@" >> "$CALLS"; echo >> "$CALLS"\n'
        'if [[ $1 == get && -n $THERE ]]; then echo secret/"$3"; fi\n'
        'if [[ $* == *"--filename -" ]]; then cat >> "$CALLS"; echo >> "$CALLS"; fi\n'
    )
    recorder.chmod(0o755)
    (tmp_path / "tokens.toml").touch()

    def calls(there: str) -> str:
        log = tmp_path / f"calls{there}"
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(log), "THERE": there}
        files = ["tokens.toml", "cert.pem", "key.pem"]
        subprocess.run([KUBERNETES / "create-secrets.sh", *files], cwd=tmp_path, env=environment, check=True)
        return log.read_text()

    made = calls("")
    assert made.count("create") == 4 and "--from-file=tokens.toml=tokens.toml" in made and "--cert=cert.pem" in made
    documents = [yaml.safe_load(text) for text in re.findall(r"(?m)^apiVersion(?:.*\n)+?\n", made)]
    values = [value for each in documents for value in each["stringData"].values()]
    assert {each["metadata"]["name"]: set(each["stringData"]) for each in documents} == {
        "metasearch-redis": {"password"}, "metasearch-ray-token": {"auth_token"},
    }  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values) and len(set(values)) == 2
    assert "create" not in calls("yes")


# Selectors and ports


def test_selectors_pick_the_pods_that_they_are_for(objects: list[Object]) -> None:
    found = pods(objects)

    def picked(selector: Object) -> set[str]:
        return {name for name, pod in found.items() if selects(selector, pod.labels)}

    workers = {"ray-worker/cpu", "ray-worker/gpu"}
    expected = {
        ("Service", "metasearch-gateway"): {"gateway"},
        ("Service", "metasearch-redis"): {"redis"},
        ("Deployment", "metasearch-gateway"): {"gateway"},
        ("Deployment", "metasearch-supervisor"): {"supervisor"},
        ("StatefulSet", "metasearch-redis"): {"redis"},
        ("PodDisruptionBudget", "metasearch-gateway"): {"gateway"},
        ("PodMonitor", "metasearch-gateway"): {"gateway"},
        ("PodMonitor", "metasearch-ray"): {"ray-head", *workers},
    }
    for (kind, name), names in expected.items():
        each = next(each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
        selector = each["spec"]["selector"]
        assert picked({"matchLabels": selector} if kind == "Service" else selector) == names, (kind, name)
    with_selectors = {
        (each["kind"], each["metadata"]["name"])
        for each in objects
        if "selector" in each.get("spec", {}) and each["kind"] != "NetworkPolicy"
    }
    assert with_selectors == set(expected)
    for spread in references(objects, "topologySpreadConstraints"):
        assert all(picked(each["labelSelector"]) == {"gateway"} for each in spread)
    scaler = of_kind(objects, "HorizontalPodAutoscaler")[0]["spec"]["scaleTargetRef"]
    assert any(each["metadata"]["name"] == scaler["name"] for each in of_kind(objects, scaler["kind"]))


def test_services_monitors_and_probes_name_real_ports(objects: list[Object]) -> None:
    found = pods(objects)
    for service in of_kind(objects, "Service"):
        pod = next(pod for pod in found.values() if selects({"matchLabels": service["spec"]["selector"]}, pod.labels))
        for port in service["spec"]["ports"]:
            assert pod.ports[port["targetPort"]] == port["port"]
    for monitor in of_kind(objects, "PodMonitor"):
        watched = [pod for pod in found.values() if selects(monitor["spec"]["selector"], pod.labels)]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert any(endpoint["port"] in pod.ports for pod in watched), endpoint
    for pod in found.values():
        names = ("startupProbe", "readinessProbe", "livenessProbe")
        probes = [pod.main[name] for name in names if name in pod.main]
        assert len(probes) == (0 if pod.name == "supervisor" else 3), pod.name
        for probe in probes:
            if "grpc" in probe:
                assert probe["grpc"]["port"] in pod.ports.values(), "its port cannot be a name"
            elif "httpGet" in probe:
                assert probe["httpGet"]["port"] in pod.ports
            else:
                assert probe["exec"]["command"][0] == "redis-cli"


def test_ports_are_those_of_the_settings_and_of_ray(objects: list[Object], tmp_path: Path) -> None:
    from ray._private import ray_constants
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    found = pods(objects)
    gateway = settings_of(objects, found["gateway"], tmp_path)
    assert int(gateway.listen.rpartition(":")[2]) == found["gateway"].ports["grpc"]
    assert int(gateway.health_listen.rpartition(":")[2]) == found["gateway"].ports["health"]
    assert found["gateway"].environment["METASEARCH_SERVICE_METRICS_LISTEN"] == "0.0.0.0:9464"
    assert found["gateway"].ports["metrics"] == 9464
    head = found["ray-head"]
    parameters = head.owner["spec"]["headGroupSpec"]["rayStartParams"]
    assert head.ports["client"] == int(parameters["ray-client-server-port"])
    assert head.ports["gcs-server"] == ray_constants.DEFAULT_PORT
    assert head.ports["dashboard"] == ray_constants.DEFAULT_DASHBOARD_PORT
    assert head.ports["as-metrics"] == AUTOSCALER_METRIC_PORT
    assert head.ports["dash-metrics"] == DASHBOARD_METRIC_PORT
    groups = [head.owner["spec"]["headGroupSpec"], *head.owner["spec"]["workerGroupSpecs"]]
    assert all(int(each["rayStartParams"]["metrics-export-port"]) == head.ports["metrics"] for each in groups)
    assert all(
        pod.ports["agent"] == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
        for pod in found.values()
        if "agent" in pod.ports
    )


def test_paths_of_probes_are_rays(base: list[Object]) -> None:
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    found = {probe["path"] for probe in references(base, "httpGet")}
    assert found and found <= set(PUBLIC_EXACT_PATHS), "and need no token"


def test_grpc_probes_ask_for_services_that_the_gateway_tells_of(base: list[Object]) -> None:
    from coordinator.api.gatekeeper import SERVICE
    from coordinator.api.probes import LIVENESS

    main = pods(base)["gateway"].main
    assert main["readinessProbe"]["grpc"]["service"] == SERVICE
    assert main["livenessProbe"]["grpc"]["service"] == main["startupProbe"]["grpc"]["service"] == LIVENESS


# Commands, settings, environment


def test_commands_are_those_of_the_command_line(objects: list[Object]) -> None:
    import typer

    from coordinator.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if "max_workers" not in {parameter.name for parameter in commands["coordinate"].params}:
        pytest.skip("this version of `coordinate` has no --max-workers")
    ran = set()
    for pod in pods(objects).values():
        if pod.main.get("command") == ["metasearch"]:
            name, *arguments = pod.main["args"]
            context = commands[name].make_context(name, list(arguments))
            ran.add(name)
            assert str(context.params["settings"]) in {mount["mountPath"] for mount in pod.main["volumeMounts"]}
            if name == "coordinate":
                spec = pod.owner
                _check_coordinate(objects, context.params)
                assert spec["spec"]["strategy"]["type"] == "Recreate" and context.params["drain"]
    assert ran == {"serve", "coordinate"}


def _check_coordinate(objects: list[Object], parameters: dict[str, Any]) -> None:
    cluster = of_kind(objects, "RayCluster")[0]
    client = pods(objects)["ray-head"].ports["client"]
    assert parameters["address"] == f"ray://{cluster['metadata']['name']}-head-svc:{client}", "KubeRay's Service"
    kind, unit = ("gpu", "num-gpus") if parameters["gpus_per_worker"] else ("cpu", "num-cpus")
    group = next(each for each in cluster["spec"]["workerGroupSpecs"] if each["groupName"] == kind)
    assert parameters["max_workers"] == group["maxReplicas"] * int(group["rayStartParams"][unit])


def test_variables_are_those_that_somebody_reads(objects: list[Object]) -> None:
    from workers.data.cache import CACHE_VARIABLE

    settings = {ENVIRONMENT_PREFIX + name.upper() for name in ServiceSettings.model_fields}
    for pod in pods(objects).values():
        assert set(pod.environment) <= settings | {CACHE_VARIABLE} | FOREIGN_VARIABLES | PENDING, pod.name


def test_settings_are_accepted_and_their_paths_are_mounted(objects: list[Object], tmp_path: Path) -> None:
    found = pods(objects)
    gateway, supervisor = found["gateway"], found["supervisor"]
    settings = settings_of(objects, gateway, tmp_path)
    alone = {name: getattr(settings, name) for name in ("metrics_listen",) if hasattr(settings, name)}
    assert settings == settings_of(objects, supervisor, tmp_path).model_copy(update=alone)
    assert settings.store == "redis://:secret@metasearch-redis:6379/0"
    assert settings.listen.startswith("0.0.0.0:") and not settings.insecure
    mounts = {mount["mountPath"] for mount in gateway.main["volumeMounts"]}
    paths = (settings.tokens, settings.tls.certificate, settings.tls.key)
    assert all(str(path.parent) in mounts for path in paths if path is not None) and None not in paths
    keys = secrets_made()
    assert settings.tokens.name in keys["metasearch-tokens"]
    assert {path.name for path in paths[1:] if path is not None} == keys["metasearch-tls"]
    if of_kind(objects, "PersistentVolumeClaim"):
        writers = ("gateway", "ray-head", "ray-worker/cpu", "ray-worker/gpu")
        assert all(settings.artifacts in {m["mountPath"] for m in found[name].main["volumeMounts"]} for name in writers)
    else:
        assert settings.artifacts.startswith("s3://")
    scratch = next(each["emptyDir"] for each in gateway.spec["volumes"] if each["name"] == "tmp")
    assert num_bytes(scratch["sizeLimit"]) >= 2 * settings.max_upload_bytes, "uploads pass through it"
    assert num_bytes(gateway.main["resources"]["limits"]["ephemeral-storage"]) >= num_bytes(scratch["sizeLimit"])


def test_pods_get_the_time_that_draining_takes(objects: list[Object], tmp_path: Path) -> None:
    found = pods(objects)
    drain_s = settings_of(objects, found["supervisor"], tmp_path).drain_s
    gateway = found["gateway"]
    pause_s = gateway.main["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert gateway.spec["terminationGracePeriodSeconds"] >= pause_s + drain_s + CLOSING_S
    # `Supervisor._drain` asks for the state at most once after the time is up.
    from coordinator import supervisor

    asking_s = supervisor._STATUS_TIMEOUT_S
    assert found["supervisor"].spec["terminationGracePeriodSeconds"] >= drain_s + 2 * asking_s + CLOSING_S
    for name in ("ray-head", "ray-worker/cpu", "ray-worker/gpu"):
        script = found[name].main["lifecycle"]["preStop"]["exec"]["command"][-1]
        waits = [int(seconds) for pattern in (r"timeout (\d+)", r"\{1\.\.(\d+)\}", r"--grace-period=(\d+)")
                 for seconds in re.findall(pattern, script)]  # fmt: skip
        assert len(waits) == (1 if name == "ray-head" else 3)
        assert found[name].spec["terminationGracePeriodSeconds"] >= sum(waits) + CLOSING_S, name


# Ray


def test_parameters_of_ray_start_are_its_own(objects: list[Object]) -> None:
    from ray.scripts import scripts

    spec = of_kind(objects, "RayCluster")[0]["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        # As the operator makes a command line of them: `true` is a flag.
        arguments = ["--block"]
        for name, value in group["rayStartParams"].items():
            arguments.append(f"--{name}" if value == "true" else f"--{name}={value}")
        context = scripts.start.make_context("start", arguments)
        assert context.params["metrics_export_port"] == 8080 and context.params["disable_usage_stats"] is True
    with pytest.raises(Exception, match="No such option"):
        scripts.start.make_context("start", ["--num-cpu=0"])


def test_what_pods_do_before_they_end_is_known_to_ray(objects: list[Object]) -> None:
    from ray.scripts import scripts

    for name in ("ray-head", "ray-worker/cpu", "ray-worker/gpu"):
        shell, option, script = pods(objects)[name].main["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, option) == ("/bin/bash", "-c")
        assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0
        lines = script.replace("\\\n", " ").splitlines()
        calls = [shlex.split(line[line.index("ray ") :]) for line in lines if re.search(r"\bray \w", line)]
        for _, command, *arguments in calls:
            scripts.cli.commands[command].make_context(command, arguments)
        assert [call[1] for call in calls] == (["stop"] if name == "ray-head" else ["drain-node", "stop"])


def test_ray_version_is_one_that_the_package_takes(base: list[Object]) -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((KUBERNETES.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    ray = next(found for each in project["dependencies"] if (found := Requirement(each)).name == "ray")
    version = of_kind(base, "RayCluster")[0]["spec"]["rayVersion"]
    assert ray.specifier.contains(version)


# Redis


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server")
def test_redis_keeps_all_that_it_acknowledged(base: list[Object], tmp_path: Path) -> None:
    import redis as client
    from reference.gateway import until

    pod = pods(base)["redis"]
    text = next(each["data"]["redis.conf"] for each in of_kind(base, "ConfigMap") if "redis.conf" in each["data"])
    assert "dir /data\n" in text
    (tmp_path / "redis.conf").write_text(text.replace("dir /data\n", f"dir {tmp_path}\n"))
    arguments = [argument.replace("$(REDIS_PASSWORD)", "secret") for argument in pod.main["args"]]
    arguments[0] = str(tmp_path / "redis.conf")
    socket = tmp_path / "redis.sock"
    command = [*pod.main["command"], *arguments, "--port", "0", "--unixsocket", str(socket)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            until(socket.exists, "the socket")
            connection = client.Redis(unix_socket_path=str(socket), password="secret")
            until(connection.ping, "an answer")
            found = connection.config_get("*")
            assert found["appendonly"] == "yes" and found["appendfsync"] == "always" and found["save"] == ""
            assert found["maxmemory-policy"] == "noeviction"
            limit = num_bytes(pod.main["resources"]["limits"]["memory"])
            assert int(found["maxmemory"]) <= 0.8 * limit, "room for what is not data"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                name, *rest = pod.main[probe]["exec"]["command"]
                with_password = os.environ | {"REDISCLI_AUTH": "secret"}
                ask = [name, "-s", str(socket), *rest]
                assert subprocess.run(ask, env=with_password, capture_output=True).stdout == b"PONG\n"
                wrong = os.environ | {"REDISCLI_AUTH": ""}
                assert subprocess.run(ask, env=wrong, capture_output=True).returncode != 0
            connection.close()
        finally:
            server.terminate()


# Prometheus


def test_monitors_name_jobs_as_prometheus_does(base: list[Object]) -> None:
    if not PROMETHEUS.exists():
        pytest.skip("there is no deploy/prometheus/prometheus.yml")
    jobs = {each["job_name"] for each in yaml.safe_load(PROMETHEUS.read_text("utf-8"))["scrape_configs"]}
    for monitor in of_kind(base, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            named = [each["replacement"] for each in endpoint["relabelings"] if each["targetLabel"] == "job"]
            assert len(named) == 1 and named[0] in jobs
