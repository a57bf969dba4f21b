"""deploy/kubernetes renders, and to what kustomize itself makes of it."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from reference.kustomize import render
from reference.manifests import COMPONENTS, KUBERNETES, overlay


def by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def has_kustomize() -> bool:
    if shutil.which("kubectl") is None:
        return False
    found = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True).stdout
    return (version := re.search(r"Kustomize Version: v(\d+)", found)) is not None and int(version[1]) >= 5


@pytest.mark.skipif(not has_kustomize(), reason="there is no kubectl with kustomize 5")
@pytest.mark.parametrize("folder", ["base", "own"])
def test_renderer_agrees_with_kustomize(folder: str, tmp_path: Path) -> None:
    path = overlay(tmp_path, *COMPONENTS) if folder == "own" else KUBERNETES / folder
    ran = subprocess.run(["kubectl", "kustomize", str(path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert by_name(render(path)) == by_name(list(yaml.safe_load_all(ran.stdout)))


@pytest.mark.parametrize("components", [("s3", "gpu"), ("gpu", "s3"), ("gcs-fault-tolerance", "gpu"), COMPONENTS])
def test_components_go_together_in_any_order(components: tuple[str, ...], tmp_path: Path) -> None:
    objects = by_name(render(overlay(tmp_path, *components)))
    spec = objects["RayCluster", "metasearch-ray"]["spec"]
    assert (("PersistentVolumeClaim", "metasearch-artifacts") in objects) == ("s3" not in components)
    assert (spec["workerGroupSpecs"][1]["maxReplicas"] > 0) == ("gpu" in components)
    assert ("gcsFaultToleranceOptions" in spec) == ("gcs-fault-tolerance" in components)
    gateway = objects["Deployment", "metasearch-gateway"]["spec"]["template"]["spec"]["containers"][0]
    assert gateway["image"] == "registry.example/team/metasearch-gateway:0.2.0"


def test_every_file_is_part_of_something(tmp_path: Path) -> None:
    used = {"create-secrets.sh", "generate_rules.py"}
    for file in KUBERNETES.rglob("kustomization.yaml"):
        tree = yaml.safe_load(file.read_text("utf-8"))
        names = [file.name, *tree.get("resources", ()), *(patch["path"] for patch in tree.get("patches", ()))]
        names += [name for generator in tree.get("configMapGenerator", ()) for name in generator["files"]]
        used |= {str((file.parent / name).resolve().relative_to(KUBERNETES)) for name in names}
    files = {str(path.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("*") if path.is_file()}
    assert {file for file in files if not file.endswith(".pyc")} <= used


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"namePrefix": "x-"}, "namePrefix"),
        ({"patches": [{"path": "none.yaml"}]}, "none.yaml"),
        ({"images": [{"name": "redis", "digest": "sha256:0"}]}, "digest"),
        ({"resources": ["nowhere.yaml"]}, "nowhere.yaml"),
    ],
)
def test_renderer_refuses_what_it_does_not_know(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    file = overlay(tmp_path) / "kustomization.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text("utf-8")) | change), "utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        render(file.parent)
