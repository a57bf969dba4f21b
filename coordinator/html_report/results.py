"""What the result of a job on one task says, as a report: of an adaptation, a full network, or a handful of images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cost import Cost
from coordinator.html_report.axes import percent
from coordinator.html_report.provenance import StoredFile
from coordinator.html_report.reading import RESULT, genotype_of, modified, plain_facts, read_json
from coordinator.html_report.report import Accuracy, Curve, Found, Origin, Posterior, Prediction, Report

PREDICTIONS = "predictions.json"


def result_report(folder: Path, content: Mapping[str, Any], origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    """The report of a folder with such a result.

    Args:
        folder: where result.json is.
        content: of it.
        origin: where the folder comes from.
        files: in it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, InvalidInputError: it is no such result.
        CorruptArtifactError: another file of the folder is none.
    """
    if "learning_curve" in content:
        return _evaluation(folder, content, origin, files)
    if content.get("kind") == "few_shot":
        return _few_shot(folder, content, origin, files)
    return _adaptation(folder, content, origin, files)


def _adaptation(folder: Path, content: Mapping[str, Any], origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    posterior = content["architecture_posterior"]
    probabilities = _probabilities(posterior)
    evaluations = content["evaluations"]
    num_classes = len(content["task"]["classes"])
    cost = content.get("network")
    panels = [(f"{num_classes}-way task", "from the prior", evaluations)]
    if "derived_network" in content:
        panels.append(("Derived network, fine-tuned", "inherited weights", content["derived_network"]["evaluations"]))
    return Report(
        kind="adaptation",
        name=origin.name,
        began=origin.began,
        ended=origin.ended or modified(folder / RESULT),
        task=content["task"],
        accuracy=tuple(
            Accuracy(
                title,
                tuple(int(each["step"]) for each in of_panel),
                {arm: Curve(tuple(float(each["accuracy"]) for each in of_panel))},
                1 / num_classes,
            )
            for title, arm, of_panel in panels
        ),
        train_losses=tuple(float(loss) for loss in content["train_losses_nats"]),
        seconds={"adaptation": float(content["adapt_s"])},
        images_per_s=float(content["images_per_s"]),
        found=Found(
            genotype_of(content["genotype"]),
            f"Derived from the adapted posterior by the rule {content['derivation']}.",
            None if cost is None else Cost(int(cost["num_params"]), int(cost["num_macs"])),
            content.get("probability"),
        ),
        ops=tuple(posterior["ops"]),
        posteriors=(Posterior("adapted", probabilities),),
        entropies={kind: float(value) for kind, value in posterior["entropy_nats"].items()},
        environment=dict(content["environment"]),
        facts=plain_facts(content, ("prior", "job", "limits", "evaluation_mode", "batch_size"))
        | plain_facts(content.get("derived_network", {}), ("inductive", "inductive_mode", "input", "fine_tune_s")),
        files=files,
    )


def _evaluation(folder: Path, content: Mapping[str, Any], origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    curve, classes = content["learning_curve"], content["data"]["classes"]
    measured = [record for record in curve if record["accuracy"] is not None]
    arms = {"training images": "train_accuracy", f"{content['curve_images']} images": "accuracy"}
    low, high = content["interval_95"]
    cost = content["network"]
    panel = Accuracy(
        f"{len(classes)} classes of {content['data']['source']}",
        tuple(int(record["epoch"]) for record in measured),
        {arm: Curve(tuple(float(record[field]) for record in measured)) for arm, field in arms.items()},
        1 / len(classes),
    )
    return Report(
        kind="evaluation",
        name=origin.name,
        began=origin.began,
        ended=origin.ended or modified(folder / RESULT),
        summary={
            "Accuracy": f"{percent(content['accuracy'])} of {content['num_test']:,} test images (95 % interval "
            f"{percent(low)} to {percent(high)})",
            "Epochs": f"{content['epochs']}, ended by {content['ended_by'].replace('_', ' ')}",
        },
        accuracy=(panel,) if measured else (),
        train_losses=tuple(float(record["train_loss_nats"]) for record in curve),
        seconds={"training": float(content["train_s"])},
        found=Found(
            genotype_of(content["genotype"]),
            "The genotype that was given.",
            Cost(int(cost["num_params"]), int(cost["num_macs"])),
        ),
        environment=dict(content["environment"]),
        facts=plain_facts(content, ("data", "config", "evaluation_mode", "without_average", "inputs", "job")),
        files=files,
    )


def _few_shot(folder: Path, content: Mapping[str, Any], origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    posterior, genotype = content["architecture_posterior"], content["genotype"]
    labelled = read_json(folder / PREDICTIONS)
    predictions = tuple(
        Prediction(str(row["name"]), str(row["label"]), float(row["probability"])) for row in labelled["predictions"]
    )
    origin_of_cells = "The study's own." if posterior is None else "Derived from the adapted posterior."
    return Report(
        kind="few_shot",
        name=origin.name,
        began=origin.began,
        ended=origin.ended or modified(folder / RESULT),
        summary={
            "Classes": ", ".join(content["classes"]),
            "Images to learn from": str(len(content["support"])),
            "Labelled": f"{content['num_queries']:,} images; BatchNorm: {content['statistics']}",
        },
        train_losses=tuple(float(loss) for loss in content["support_losses_nats"]),
        seconds={"job": float(content["seconds"])},
        found=None
        if genotype is None
        else Found(genotype_of(genotype), origin_of_cells, probability=content["genotype_probability"]),
        ops=() if posterior is None else tuple(posterior["ops"]),
        posteriors=() if posterior is None else (Posterior("adapted", _probabilities(posterior)),),
        entropies={} if posterior is None else posterior["entropy_nats"],
        environment=dict(content["environment"]),
        facts=plain_facts(content, ("prior", "few_shot", "seed", "num_params", "path", "network_statistics", "job")),
        files=files,
        predictions=predictions,
    )


def _probabilities(posterior: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Of a result's posterior, by kind of cell.

    Raises:
        ValueError: they have not one column per op.
    """
    found = {kind: np.array(rows, dtype=np.float64) for kind, rows in posterior["probabilities"].items()}
    for kind, matrix in found.items():
        if matrix.ndim != 2 or matrix.shape[1] != len(posterior["ops"]):
            raise ValueError(f"probabilities of {kind} must have one column per op, got the shape {matrix.shape}")
    return found
