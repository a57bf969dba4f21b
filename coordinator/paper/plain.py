"""An outcome as plain values, as results.json holds it."""

from typing import Any

from common.cost import Cost
from coordinator.html_report.pca import Components
from coordinator.paper.anchors import FEW_SHOT_TITLE, SOURCE
from coordinator.paper.clusters import Clusters
from coordinator.paper.few_shot_outcome import FewShotOutcome, FewShotRowOutcome
from coordinator.paper.outcome import FourthFigureOutcome, Outcome, Row, Table, ThirdFigure


def plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON holds it: every figure of the tables and drawings, published ones named as such."""
    return {
        "source_of_published_figures": SOURCE,
        "scale": outcome.config.scale,
        "meta_training": None
        if outcome.meta is None
        else {
            "rounds": outcome.meta.rounds,
            "tasks_per_round": outcome.meta.tasks_per_round,
            "seconds": outcome.meta.seconds,
            "num_workers": outcome.meta.num_workers,
            "device_s": outcome.meta.device_s,
        },
        "tables": {table.name: _plain_table(table) for table in outcome.tables},
        "table4": _plain_few_shot(outcome.few_shot),
        "figure3": None if outcome.figure3 is None else _plain_figure3(outcome.figure3),
        "figure4": None if outcome.figure4 is None else _plain_figure4(outcome.figure4),
        "cells": [
            {
                "name": cell.key,
                "title": cell.title,
                "origin": cell.origin,
                "genotype": None if cell.genotype is None else cell.genotype.model_dump(mode="json"),
            }
            for cell in outcome.cells
        ],
        "environment": dict(outcome.environment),
    }


def _plain_table(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "images": table.images,
        "images_are_the_papers": not table.is_stand_in,
        "rows": [_plain_row(row) for row in table.rows],
    }


def _plain_row(row: Row) -> dict[str, Any]:
    paper = row.published
    trained = row.trained
    return {
        "name": paper.name,
        "paper": {
            "top1_error_percent": paper.error,
            "top1_error_spread": paper.error_spread,
            "top5_error_percent": paper.top5_error,
            "params_millions": paper.params_m,
            "macs_millions": paper.macs_m,
            "search_gpu_days": paper.search_days,
            "meta_gpu_days": paper.meta_days,
        },
        "genotype_is": "published" if row.is_released else "found by this run" if row.row is not None else None,
        "genotype": None if row.genotype is None else row.genotype.model_dump(mode="json"),
        "at_paper_size": None if row.at_paper_size is None else _plain_cost(row.at_paper_size),
        "run": None
        if trained is None
        else {
            "top1_error_percent": trained.error,
            "top1_error_interval_95": [trained.error_low, trained.error_high],
            "top5_error_percent": None,
            "num_train": trained.num_train,
            "num_test": trained.num_test,
            "epochs": trained.epochs,
            "train_s": trained.train_s,
            **_plain_cost(trained.cost),
            "adaptation_device_s": None if row.is_released else row.adapt_s,
        },
        "not_run": row.why_not or None,
    }


def _plain_few_shot(found: FewShotOutcome) -> dict[str, Any]:
    return {
        "title": FEW_SHOT_TITLE,
        "images": found.images,
        "images_are_the_papers": not found.is_stand_in,
        "rounds": found.config.rounds,
        "search_rounds": found.config.search.rounds,
        "num_classes": dict(found.num_classes),
        "split_sha256": found.split_sha256 or None,
        "rows": [_plain_few_shot_row(row) for row in found.rows],
    }


def _plain_few_shot_row(row: FewShotRowOutcome) -> dict[str, Any]:
    paper, tested = row.published, row.tested
    return {
        "name": paper.name,
        "paper": {
            "accuracy_percent": paper.accuracy,
            "accuracy_spread": paper.spread,
            "params_millions": paper.params_m,
            "algorithm": paper.algorithm,
            "source_if_not_the_paper": paper.source or None,
        },
        "genotypes_are": None
        if row.row.baseline is not None
        else "published"
        if row.row.released is not None
        else "found by this run",
        "genotypes": [genotype.model_dump(mode="json") for genotype in row.genotypes],
        "at_paper_size": [_plain_cost(cost) for cost in row.at_paper_size],
        "run": None
        if tested is None
        else {
            "accuracy_percent": tested.accuracy,
            "accuracy_interval_95": [tested.low, tested.high],
            "accuracy_by_seed": list(tested.by_repeat),
            "num_episodes": tested.num_episodes,
            "inner_steps": tested.steps,
            "evaluation": tested.evaluation,
            "computed_by": list(tested.paths),
            "networks": [_plain_cost(cost) for cost in tested.costs],
            "search_device_s": tested.search_s,
            "training_device_s": tested.training_s,
        },
        "not_run": row.why_not or None,
    }


def _plain_cost(cost: Cost) -> dict[str, int]:
    return {"params": cost.num_params, "macs": cost.num_macs}


def _plain_figure3(figure: ThirdFigure) -> dict[str, Any]:
    return {
        "num_weights": figure.num_weights,
        "weights": _plain_clusters(figure.weights),
        "architecture": _plain_clusters(figure.architecture),
    }


def _plain_clusters(found: Clusters) -> dict[str, Any]:
    components: Components = found.components
    return {
        "families": list(found.families),
        "points": components.points.tolist(),
        "explained_variance_fraction": list(components.explained),
        "silhouette": found.silhouette,
        "silhouette_by_family": dict(found.silhouettes),
        "relative_spread_by_family": dict(found.spreads),
        "nearest_family": dict(found.nearest),
    }


def _plain_figure4(figure: FourthFigureOutcome) -> dict[str, Any]:
    return {
        "images": figure.images,
        "epochs": list(figure.epochs),
        "chance": figure.chance,
        "accuracy": {name: values.tolist() for name, values in figure.arms.items()},
    }
