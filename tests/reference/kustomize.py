"""Renders what deploy/kubernetes holds, as `kubectl kustomize` does: the few features used there, no others."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

Object = dict[str, Any]
_CLUSTER_WIDE = ("Namespace",)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Labels(_Strict):
    pairs: dict[str, str]


class _Generator(_Strict):
    name: str
    files: list[str] = Field(min_length=1)


class _Image(_Strict):
    name: str
    newName: str | None = None
    newTag: str


class _Target(_Strict):
    group: str
    version: str
    kind: str
    name: str


class _Patch(_Strict):
    path: str
    target: _Target | None = None
    """With it a list of operations (RFC 6902), without it a part of the object."""


class _Operation(_Strict):
    op: Literal["add", "replace", "remove", "test"]
    path: str
    value: Any = None


class Kustomization(_Strict):
    apiVersion: Literal["kustomize.config.k8s.io/v1beta1", "kustomize.config.k8s.io/v1alpha1"]
    kind: Literal["Kustomization", "Component"]
    namespace: str | None = None
    labels: list[_Labels] = []
    resources: list[str] = []
    components: list[str] = []
    configMapGenerator: list[_Generator] = []
    images: list[_Image] = []
    patches: list[_Patch] = []


def render(folder: Path) -> list[Object]:
    """The objects that a folder with a kustomization.yaml stands for.

    Raises:
        ValueError: a field or form that this renderer, and so deploy/kubernetes, does without; or nothing to patch.
        FileNotFoundError: a file that it names is not there.
    """
    objects = _accumulated(folder, [])
    _follow_generated_names(objects)
    for each in objects:
        each.pop("//generated", None)
    return objects


def _accumulated(folder: Path, objects: list[Object]) -> list[Object]:
    text = (folder / "kustomization.yaml").read_text("utf-8")
    own = Kustomization.model_validate(yaml.safe_load(text))
    for name in own.resources:
        path = folder / name
        objects += _accumulated(path, []) if path.is_dir() else yaml.safe_load_all(path.read_text("utf-8"))
    objects += [_config_map(folder, generator) for generator in own.configMapGenerator]
    for name in own.components:
        objects = _accumulated(folder / name, objects)
    for patch in own.patches:
        objects = _patched(objects, folder / patch.path, patch.target)
    for each in objects:
        metadata = each["metadata"]
        if own.namespace is not None:
            metadata |= {"name" if each["kind"] in _CLUSTER_WIDE else "namespace": own.namespace}
        for labels in own.labels:
            metadata["labels"] = metadata.get("labels", {}) | labels.pairs
        for container in containers(each):
            container["image"] = _image(container["image"], own.images)
    return objects


def containers(tree: Any) -> Iterator[Object]:
    """All containers in an object, init containers included, wherever they are."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("containers", "initContainers") and isinstance(value, list):
                yield from value
            yield from containers(value)
    elif isinstance(tree, list):
        for each in tree:
            yield from containers(each)


def _config_map(folder: Path, generator: _Generator) -> Object:
    data = {Path(file).name: (folder / file).read_text("utf-8") for file in generator.files}
    metadata = {"name": generator.name}
    return {"apiVersion": "v1", "kind": "ConfigMap", "data": data, "metadata": metadata, "//generated": True}


def _follow_generated_names(objects: list[Object]) -> None:
    """A generated name ends in a hash of the content, and references to it follow."""
    renamed = {}
    for each in objects:
        if each.get("//generated"):
            name = each["metadata"]["name"]
            renamed[name] = f"{name}-{_hash(each['data'])}"
            each["metadata"]["name"] = renamed[name]

    def follow(tree: Any) -> None:
        if isinstance(tree, dict):
            reference = tree.get("configMap")
            if isinstance(reference, dict) and reference.get("name") in renamed:
                reference["name"] = renamed[reference["name"]]
            for value in tree.values():
                follow(value)
        elif isinstance(tree, list):
            for value in tree:
                follow(value)

    for each in objects:
        follow(each)


def _hash(data: dict[str, str]) -> str:
    # Without the name, whatever kustomize may have meant.
    text = json.dumps({"data": data, "kind": "ConfigMap", "name": ""}, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":  # as Go's encoder does
        text = text.replace(character, f"\\u{ord(character):04x}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return digest.translate(str.maketrans("013ae", "ghkmt"))  # no digits or vowels that could make a word


def _image(image: str, images: list[_Image]) -> str:
    for each in images:
        if image.partition(":")[0] == each.name:
            return f"{each.newName or each.name}:{each.newTag}"
    return image


def _patched(objects: list[Object], file: Path, target: _Target | None) -> list[Object]:
    content = yaml.safe_load(file.read_text("utf-8"))
    if target is None:
        named = [each for each in objects if _identity(each) == _identity(content)]
        if len(named) != 1:
            raise ValueError(f"{file}: there is no {content['kind']} {content['metadata']['name']}")
        if content.get("$patch") == "delete":
            return [each for each in objects if each is not named[0]]
        _merge(named[0], content, str(file))
        return objects
    api = f"{target.group}/{target.version}"
    named = [each for each in objects if _identity(each) == (api, target.kind, target.name)]
    if len(named) != 1:
        raise ValueError(f"{file}: there is no {target.kind} {target.name}")
    for operation in content:
        _apply(named[0], _Operation.model_validate(operation), str(file))
    return objects


def _identity(each: Object) -> tuple[str, str, str]:
    return each["apiVersion"], each["kind"], each["metadata"]["name"]


def _merge(into: Object, patch: Object, where: str) -> None:
    for key, value in patch.items():
        if isinstance(value, list) or key.startswith("$"):
            raise ValueError(f"{where}: {key}: only maps and values are merged here; use operations for lists")
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, where)
        else:
            into[key] = copy.deepcopy(value)


def _apply(target: Object, operation: _Operation, where: str) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation.path.split("/")[1:]]
    here: Any = target
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here[part]
    key: Any = int(last) if isinstance(here, list) and last != "-" else last
    act: dict[str, Callable[[], Any]] = {
        "test": lambda: here[key] == operation.value,
        "add": lambda: here.append(operation.value) if last == "-" else here.__setitem__(key, operation.value),
        "replace": lambda: here[key] is not None and here.__setitem__(key, operation.value),
        "remove": lambda: here.pop(key),
    }
    if operation.op == "add" and isinstance(here, list) and last != "-":
        raise ValueError(f"{where}: {operation.path}: lists are added to at their end here")
    if act[operation.op]() is False:
        raise ValueError(f"{where}: {operation.path} is not {operation.value!r}")
