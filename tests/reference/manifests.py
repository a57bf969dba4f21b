"""What deploy/kubernetes renders to: the base, its overlays, and one that an operator would write."""

import copy
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from reference.kustomize import render

Object = dict[str, Any]
KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("base", "overlays/gpu", "overlays/gcs-fault-tolerance")
COMPONENTS = ("gpu", "gcs-fault-tolerance", "s3")


def rendered(variant: str) -> list[Object]:
    """The objects of the base, of an overlay, or of the base with the component `s3`."""
    return copy.deepcopy(_rendered(variant))


@functools.cache
def _rendered(variant: str) -> list[Object]:
    if variant != "s3":
        return render(KUBERNETES / variant)
    with tempfile.TemporaryDirectory() as folder:
        return render(overlay(Path(folder), "s3"))


def overlay(folder: Path, *components: str) -> Path:
    """A folder with an overlay as an operator would write it, beside a copy of what there is."""
    shutil.copytree(KUBERNETES, folder, dirs_exist_ok=True)
    own = folder / "overlays" / "own"
    own.mkdir()
    tree = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../base"],
        "components": [f"../../components/{name}" for name in components],
        "images": [
            {"name": "metasearch-gateway", "newName": "registry.example/team/metasearch-gateway", "newTag": "0.2.0"}
        ],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(tree), "utf-8")
    return own


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """All objects of a kind."""
    return [each for each in objects if each["kind"] == kind]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of a kind and name."""
    [found] = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def references(tree: Any, key: str) -> Iterator[Any]:
    """Everything under a key, wherever it is."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from references(value, key)
    elif isinstance(tree, list):
        for each in tree:
            yield from references(each, key)
