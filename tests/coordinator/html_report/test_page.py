"""The page: whatever is in the report is in it, escaped; whatever is not is said in a sentence."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from common.config import StudyConfig
from common.cost import Cost
from common.space.released import DARTS_V2
from coordinator.html_report.page import page
from coordinator.html_report.parts import duration, size
from coordinator.html_report.pca import principal_components
from coordinator.html_report.provenance import StoredFile
from coordinator.html_report.report import Accuracy, Curve, Found, Posterior, Report

NASTY = "<script>alert(1)</script>"
CONFIG = StudyConfig()
OPS = CONFIG.space.ops
SECTIONS = (
    "summary",
    "curves",
    "cells",
    "posterior",
    "components",
    "cost",
    "configuration",
    "environment",
    "provenance",
)
VOID = {"meta"}


class Reader(HTMLParser):
    """Notes elements, their text, and whether each that opens closes."""

    def __init__(self, content):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def posterior(label, seed):
    random = np.random.default_rng(seed)
    return Posterior(label, {kind: random.dirichlet(np.ones(len(OPS)), 14) for kind in ("normal", "reduction")})


def metrics(version):
    values = {"prior_version": version, "train_loss_first": 2.3, "train_loss_last": 2.0 / version, "update_norm": 1.0}
    values |= {"images_per_second": 400.0 + version, "round_seconds": 1.5}
    for kind in ("normal", "reduction"):
        values[f"alpha_entropy/{kind}"] = 2.0 - 0.1 * version
        values |= {f"strongest_op_edges/{kind}/{op}": 14.0 * (index == version % 3) for index, op in enumerate(OPS)}
    return values


def run_report(**changes):
    posteriors = tuple(posterior(str(version), version) for version in (1, 2, 3))
    components = principal_components([np.concatenate([*each.probabilities.values()]).ravel() for each in posteriors])
    report = Report(
        kind="run",
        name="mine",
        began="2026-11-24 10:00:00",
        rounds=tuple(metrics(version) for version in (1, 2, 3)),
        seconds={"all rounds": 4.5},
        found=Found(DARTS_V2, "Derived from version 3 of the prior.", Cost(12_345, 678_900)),
        ops=OPS,
        posteriors=posteriors,
        versions=(1, 2, 3),
        architecture_components=components,
        weight_components=components,
        component_versions=(1, 2, 3),
        config=CONFIG,
        files=(
            StoredFile("config.json", 2048, "ab" * 32, "unlisted"),
            StoredFile("priors/00000003.safetensors", 5, "cd" * 32, "intact"),
        ),
    )
    return replace(report, **changes)


def demo_report():
    curves = {
        "from the prior": Curve((0.1, 0.6, 0.9), (0.1, 0.5, 0.85), (0.1, 0.7, 0.95)),
        "from scratch": Curve((0.1, 0.3, 0.5), (0.1, 0.2, 0.4), (0.1, 0.4, 0.6)),
    }
    return run_report(kind="demo", rounds=(), accuracy=(Accuracy("Unseen scripts", (0, 1, 5), curves),))


def adaptation_report(**changes):
    task = {"data": {"source": "digits"}, "classes": ["0", "1"], "image_size": 16}
    report = Report(
        kind="adaptation",
        name="job",
        task=task,
        accuracy=(Accuracy("2-way task", (0, 1), {"from the prior": Curve((0.5, 0.75))}, 0.5),),
        train_losses=(0.7, 0.5),
        found=Found(DARTS_V2, "Derived.", Cost(1, 2), 1e-9),
        ops=OPS,
        posteriors=(posterior("adapted", 0),),
        entropies={"normal": 1.25, "reduction": 1.5},
        environment={"python": "3.11", "torch": "2.9"},
    )
    return replace(report, **changes)


@pytest.mark.parametrize(
    "report", [run_report(), demo_report(), adaptation_report()], ids=["run", "demo", "adaptation"]
)
def test_pages_are_well_formed_and_have_every_section(report):
    content = page(report)
    read = Reader(content)
    ids = [value for name, value in read.attributes if name == "id"]
    assert [each for each in ids if each in SECTIONS] == list(SECTIONS) and len(set(ids)) == len(ids)
    assert [f"#{each}" for each in SECTIONS] == [value for name, value in read.attributes if name == "href"]
    for drawing in re.findall(r"<svg.*?</svg>", content, re.S):
        root = ElementTree.fromstring(drawing)
        assert root.get("aria-label") or root.get("aria-hidden") == "true"


@pytest.mark.parametrize(
    "report", [run_report(), demo_report(), adaptation_report()], ids=["run", "demo", "adaptation"]
)
def test_pages_ask_for_nothing_from_elsewhere_and_run_nothing(report):
    content = page(report)
    urls = set(re.findall(r"\w+://[^\s\"'<)]+", content))
    assert urls <= {"http://www.w3.org/2000/svg"}
    read = Reader(content)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    names = {name for name, _ in read.attributes}
    assert not {name for name in names if name.startswith("on") or name == "src"}
    assert "url(" not in content and "@import" not in content


def test_the_same_report_gives_the_same_bytes():
    assert page(run_report()) == page(run_report())


def test_every_value_is_escaped():
    task = {"data": {"source": NASTY}, "classes": [NASTY, "b"], "image_size": 16, "task_id": NASTY}
    curve = {NASTY: Curve((0.5, 0.75))}
    report = adaptation_report(
        name=NASTY,
        began=NASTY,
        ended=NASTY,
        task=task,
        accuracy=(Accuracy(NASTY, (0, 1), curve, 0.5), Accuracy("b", (0, 1), {**curve, "b": Curve((0.1, 0.2))})),
        seconds={NASTY: 1.0},
        found=Found(DARTS_V2, NASTY),
        ops=(NASTY, *OPS[1:]),
        posteriors=(Posterior(NASTY, {NASTY: posterior("", 0).probabilities["normal"]}),),
        entropies={NASTY: 1.0},
        environment={NASTY: NASTY},
        facts={NASTY: NASTY},
        files=(StoredFile(NASTY, 1, NASTY, "altered"),),
        notes=(NASTY,),
    )
    for shown in (report, replace(report, kind="run", config=CONFIG, versions=(1,))):
        content = page(shown)
        assert "<script" not in content
        read = Reader(content)
        assert "script" not in read.tags and NASTY in read.text


def test_an_empty_report_says_in_a_sentence_what_is_missing():
    text = Reader(page(Report(kind="run", name="empty"))).text
    for words in (
        "There are no learning curves",
        "There is no architecture to draw",
        "There are no heatmaps",
        "Principal components need at least 3 versions of the prior, 0 are kept",
        "Nothing about cost",
        "does not record what it was computed with",
        "The folder holds no file",
    ):
        assert words in text


def test_summary_says_what_came_out():
    text = Reader(page(demo_report())).text
    assert "90.0 % after 5 steps (95 % interval 85.0 % to 95.0 %)" in text
    assert "12,345 parameters, 678,900 MACs" in text
    assert f"3 of {CONFIG.rounds}" in Reader(page(run_report())).text


def test_bands_are_drawn_only_where_there_are_limits():
    def bands(report):
        return [value for name, value in Reader(page(report)).attributes if name == "class" and "band" in value.split()]

    assert len(bands(demo_report())) == 2 and bands(adaptation_report()) == []


def test_heatmaps_name_the_versions_shown_and_those_kept():
    text = Reader(page(run_report(versions=(0, 1, 2, 3, 48, 49)))).text
    assert "version 1, 2, 3, of the 6 that are kept (0 to 3, 48 to 49)" in text
    assert "c(k-2)→0" in text and "0→1" in text  # edges


def test_configuration_marks_defaults():
    changed = CONFIG.model_copy(update={"seed": 5})
    content = page(run_report(config=changed))
    row = re.search(r"<tr><th scope=\"row\"><code>seed</code></th>(.*?)</tr>", content)[1]
    assert "<code>5</code>" in row and "<strong>set</strong>" in row
    row = re.search(r"<tr><th scope=\"row\"><code>families.0.num_ways</code></th>(.*?)</tr>", content)[1]
    assert '<span class="note">default</span>' in row
    assert content.count("<strong>set</strong>") == 1


def test_a_file_that_differs_from_its_manifest_is_named_first_of_all():
    files = (StoredFile("a.safetensors", 5, "ef" * 32, "altered"), StoredFile("b", 1, None, "missing"))
    content = page(run_report(files=files))
    summary = content.partition('id="curves"')[0]
    assert "Not as the manifests say: a.safetensors, b." in summary
    assert "ef" * 32 in content and "differs from its manifest" in content


def test_versions_that_do_not_differ_have_no_components_to_draw():
    still = principal_components([np.ones(3)] * 3)
    assert "the kept versions do not differ" in Reader(page(run_report(weight_components=still))).text


def test_durations_and_sizes_are_for_people():
    assert [duration(value) for value in (0.84, 59.94, 125, 12_000)] == ["0.8 s", "59.9 s", "2 min 5 s", "3 h 20 min"]
    assert [size(value) for value in (12, 2048, 3 << 20, 5 << 30)] == ["12 bytes", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
