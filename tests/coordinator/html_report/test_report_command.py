"""The command report: pages of what real code has left behind, opened in a real browser; mistakes as one line."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference.gateway import PlayedCoordinator, running
from reference.priors import smoke_config
from reference.processes import Run, command_line

from common.artifacts import PriorStore
from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from common.limits import Limits
from common.space.genotype import Genotype
from common.telemetry import logger_for
from coordinator import study
from coordinator.adaptation import store_result
from coordinator.demo import DIGITS_TITLE
from coordinator.experiment import Arm, adapt_request, fresh_tasks
from coordinator.html_report import provenance
from coordinator.html_report.collect import collect
from coordinator.local import LocalExecutor
from coordinator.report import Panel, intervals_by_step
from coordinator.sinks import JsonLinesSink, LogSink
from workers.environment import environment
from workers.job import evaluation_steps, find_genotype

pytestmark = pytest.mark.usefixtures("one_thread")

CHROMIUM = shutil.which("chromium")
WIDE, NARROW, NARROWEST = 1280, 390, 360
# Puts what a browser has measured where --dump-dom shows it.
MEASURE = """<script>
addEventListener("load", () => {
  const root = document.documentElement, late = [];
  for (const each of document.querySelectorAll("body *")) {
    const box = each.getBoundingClientRect();
    if (box.right > root.clientWidth + 1 && !each.closest(".scroll")) late.push(each.tagName);
  }
  const dark = getComputedStyle(document.body).backgroundColor;
  const found = {width: root.clientWidth, scroll: root.scrollWidth, late: late.slice(0, 5), background: dark};
  root.setAttribute("data-measured", JSON.stringify(found));
});
</script></body>"""


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


@pytest.fixture(scope="module")
def run(shared_image_cache, tmp_path_factory) -> Path:
    """A finished training run, with an adaptation in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    config = smoke_config("checkpoint.keep_last=10")
    store = PriorStore(folder)
    executor = LocalExecutor(torch.device("cpu"))
    logger = logger_for("report-test", folder / "train.log")
    sinks = [LogSink(logger, config.rounds), JsonLinesSink(folder / "rounds.jsonl", 0)]
    prior = study.run(study.begin(store, config), config, executor, store, sinks, time.monotonic)
    for sink in sinks:
        sink.close()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    (task,) = fresh_tasks(config.families[0], "unseen", 1, seed=3)
    request = adapt_request(task, Arm("adapt", prior, config.adapt), config, evaluation_steps(config.adapt.steps))
    (result,) = executor.run(prior, [request])
    found = find_genotype(result.probabilities, task, config, "top2_pairs", Limits())
    store_result(folder / "adapt", result, task, prior, config, found, "top2_pairs")
    return folder


@pytest.fixture(scope="module")
def demo(run: Path, tmp_path_factory) -> Path:
    """A folder as `coordinator.demo` leaves it, with made-up accuracies."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    found = json.loads((run / "adapt" / "result.json").read_text())
    random = np.random.default_rng(0)
    arms = {arm: np.sort(random.random((6, 3))) for arm in ("from the prior", "from scratch")}
    panels = [Panel(f"{DIGITS_TITLE}, 10-way, 6 tasks", (0, 1, 5), arms, 0.1)]
    content = {
        "prior": found["prior"],
        "panels": {panel.title: intervals_by_step(panel) for panel in panels},
        "genotype": found["genotype"],
        "train_s": 12.3,
        "total_s": 45.6,
        "environment": environment(),
        "config": json.loads((run / "config.json").read_text()),
    }
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content))
    priors = folder / "service/artifacts/tenants/local/studies/demo/priors"
    priors.mkdir(parents=True)
    for path in (run / "priors").iterdir():
        shutil.copy(path, priors / f"{path.stem}-0123456789abcdef{path.suffix}")
    (folder / "service" / "token").write_text("msk_very-secret")
    return folder


def test_help_explains_and_gives_an_example_of_use(metasearch: Run) -> None:
    code, out, _ = metasearch("report", "--help")
    assert code == 0 and "Usage: metasearch report" in out and "metasearch report runs/mine" in out


def test_a_network_that_an_adaptation_left_is_part_of_its_page(metasearch: Run, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapt"
    shutil.copytree(run / "adapt", folder)
    content = json.loads((folder / "result.json").read_text())
    marks = [{"step": step, "accuracy": step / 8, "loss_nats": 1.0} for step in (0, 3, 7)]
    content["derived_network"] = {"evaluations": marks, "inductive": {"accuracy": 0.8125, "loss_nats": 0.5}}
    (folder / "result.json").write_text(json.dumps(content))
    code, _, err = metasearch("report", str(folder))
    assert code == 0, err
    page = (folder / "report.html").read_text()
    assert "Derived network, fine-tuned" in page and "0.8125" in page
    assert "Derived network, fine-tuned" not in page_of(metasearch, run / "adapt", tmp_path / "plain.html")


def page_of(metasearch: Run, folder: Path, out: Path) -> str:
    assert metasearch("report", str(folder), "--out", str(out))[0] == 0
    return out.read_text()


def test_a_runs_page_lies_in_its_folder_and_is_the_same_again(metasearch: Run, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(run, folder)
    code, out, err = metasearch("report", str(folder))
    assert (code, out) == (0, "") and "report.html" in err
    first = (folder / "report.html").read_bytes()
    assert metasearch("report", str(folder))[0] == 0
    assert (folder / "report.html").read_bytes() == first
    text = first.decode()
    assert "3 of 3" in text and "version 0, 1, 2, 3, all that are kept" in text and "of the variance" in text
    assert "report.html" not in text and "4 as their manifests say" in text


def test_a_runs_report_agrees_with_its_files(run: Path) -> None:
    report = collect(run)
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [dict(values) for values in report.rounds] == rounds
    assert report.versions == report.component_versions == (0, 1, 2, 3)
    prior = PriorStore(run).load(3)
    logits = prior.alpha(report.config).numpy()
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=-1, keepdims=True)
    for matrix, kind in zip(expected, report.config.space.cell_kinds, strict=True):
        assert np.allclose(report.posteriors[-1].probabilities[kind], matrix)
    # Files hold their vectors in any order; a component is of the same parameters in all versions.
    vectors = [PriorStore(run).load(version).vectors for version in range(4)]
    weights = np.stack([np.concatenate([each[name] for name in ("body", "head/16")]) for each in vectors], dtype=float)
    left, singular, _ = np.linalg.svd(weights - weights.mean(axis=0), full_matrices=False)
    assert np.allclose(np.abs(report.weight_components.points), np.abs(left[:, :2] * singular[:2]), atol=1e-6)
    assert np.allclose(report.weight_components.explained, singular[:2] ** 2 / (singular**2).sum())
    states = {file.name: file.state for file in report.files}
    assert states["config.json"] == "unlisted" and states["priors/00000003.safetensors"] == "intact"
    assert report.seconds["all rounds"] == pytest.approx(sum(values["round_seconds"] for values in rounds))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", report.began) and report.accuracy[0].steps == (0, 1, 2, 4)


def test_a_demos_report_has_its_intervals_and_keeps_its_secrets(metasearch: Run, demo: Path, tmp_path: Path) -> None:
    report = collect(demo)
    assert report.kind == "demo" and report.versions == (0, 1, 2, 3) and report.environment["torch"]
    (panel,) = report.accuracy
    assert panel.steps == (0, 1, 5) and all(curve.low is not None for curve in panel.arms.values())
    (secret,) = [file for file in report.files if file.name == "service/token"]
    assert (secret.state, secret.sha256) == ("withheld", None)
    assert metasearch("report", str(demo), "--out", str(tmp_path / "demo.html"))[0] == 0
    assert "msk_very-secret" not in (tmp_path / "demo.html").read_text()


def test_an_adaptations_report_has_what_was_found(run: Path) -> None:
    report = collect(run / "adapt")
    content = json.loads((run / "adapt" / "result.json").read_text())
    assert report.found.genotype == Genotype.from_json(json.dumps(content["genotype"]))
    assert report.found.cost.num_params == content["network"]["num_params"]
    assert report.facts["prior.version"] == 3 and report.train_losses == tuple(content["train_losses_nats"])
    assert report.accuracy[0].chance == pytest.approx(1 / 3)


def test_a_damaged_prior_is_named_and_left_out(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / "priors" / "00000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (folder / "priors" / "00000001.safetensors").unlink()
    report = collect(folder)
    assert [posterior.label for posterior in report.posteriors] == ["0", "3"]
    assert report.weight_components is None and len(report.notes) == 2 and "version 2" in report.notes[1]
    states = {file.name: file.state for file in report.files}
    assert states["priors/00000002.safetensors"] == "altered" and states["priors/00000001.safetensors"] == "missing"


def test_a_version_that_is_pruned_while_it_is_read_is_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    hashed = provenance.sha256

    def hash_and_prune(path: Path) -> str:
        if path.name == "config.json":
            PriorStore(folder).prune(keep_last=3)
        return hashed(path)

    monkeypatch.setattr(provenance, "sha256", hash_and_prune)
    report = collect(folder)
    assert report.versions == (1, 2, 3) and report.notes == ()
    assert {file.state for file in report.files} == {"intact", "unlisted"}
    assert not [file for file in report.files if "00000000" in file.name]


def test_a_line_that_a_crash_cut_short_is_left_out_and_a_wrong_one_is_named(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    rounds = folder / "rounds.jsonl"
    lines = rounds.read_text().splitlines()
    rounds.write_text("\n".join([*lines[:2], lines[2][:40]]))
    assert len(collect(folder).rounds) == 2
    rounds.write_text("\n".join([lines[0], "{}", lines[2]]))
    with pytest.raises(CorruptArtifactError, match=r"line 2 of .*rounds\.jsonl"):
        collect(folder)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, NotFoundError, "holds neither config.json nor result.json"),
        ({"config.json": "{"}, CorruptArtifactError, "config.json is not JSON"),
        ({"config.json": '{"sed": 1}'}, CorruptArtifactError, "sed: no such field"),
        ({"result.json": "[]"}, CorruptArtifactError, "must hold a JSON object"),
        ({"result.json": "{}"}, CorruptArtifactError, "is not a result of metasearch"),
        ({"result.json": '{"panels": []}'}, CorruptArtifactError, "is not a result of metasearch"),
    ],
)
def test_other_folders_are_refused_by_name(tmp_path: Path, files, error, words) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=words) as caught:
        collect(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_mistakes_are_one_line(metasearch: Run, run: Path, tmp_path: Path) -> None:
    code, out, err = metasearch("report", str(tmp_path / "nowhere"))
    assert (code, out) == (NotFoundError.exit_code, "") and err.count("\n") == 1 and "studies/STUDY/jobs/ID" in err
    code, _, err = metasearch("report", str(run), "--out", str(tmp_path / "page.pdf"))
    assert code == InvalidInputError.exit_code and "--out must name an .html file" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_opened_on_demand(
    metasearch: Run, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)))
    target = tmp_path / "page.html"
    code, _, err = metasearch("report", str(run / "adapt"), "--out", str(target), "--open")
    assert code == 0 and opened == [target.as_uri()] and "No browser could be opened" in err


def test_a_report_of_an_adaptation_imports_neither_torch_nor_ray(run: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['metasearch', 'report', {str(run / 'adapt')!r}, '--out', 'page.html']\n"
        "from coordinator import cli\n"
        "try: cli.main()\n"
        "finally: assert not {'torch', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_a_jobs_report_comes_from_the_service(
    metasearch: Run, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = (run / "adapt" / "result.json").read_bytes()
    with running(tmp_path / "gateway") as gateway:
        options = ("--server", gateway.address, "--token", gateway.known_token("vision"))
        coordinator = PlayedCoordinator(gateway)
        with gateway.client("vision") as client:
            client.create_study("mine", preset="smoke")
            coordinator.first_prior("vision", "mine")
            names = [client.submit("studies/mine", "digits").name for _ in range(2)]
        code, _, err = metasearch("report", names[0], *options)
        assert code == NotFoundError.exit_code and f"metasearch watch {names[0]}" in err
        coordinator.succeed(
            coordinator.start("vision", names[0]), {"weights.safetensors": b"weights", "result.json": content}
        )
        coordinator.fail(coordinator.start("vision", names[1]))
        code, _, err = metasearch("report", names[1], *options)
        assert code != 0 and "did not succeed" in err and err.count("\n") == 1
        # With and without the tenant, whose folders have it in their names.
        assert metasearch("report", f"tenants/vision/{names[0]}", *options, "--out", "job.html")[0] == 0
        assert metasearch("report", names[0], *options)[0] == 0
        coordinator.close()
    text = (tmp_path / "job.html").read_text()
    assert f"<h1>{names[0]}</h1>" in text and "2 as their manifests say" in text and "Began" in text
    assert (tmp_path / f"report-{names[0].rpartition('/')[2]}.html").read_text() == text


@pytest.fixture(scope="module")
def pages(run: Path, demo: Path, tmp_path_factory) -> dict[str, Path]:
    from coordinator.html_report.page import page

    folder = tmp_path_factory.mktemp("pages")
    written = {}
    for name, source in (("run", run), ("demo", demo), ("adaptation", run / "adapt")):
        written[name] = folder / f"{name}.html"
        written[name].write_text(page(collect(source)))
    return written


def chromium(profile: Path, *arguments: str) -> str:
    """Runs the browser and returns what it prints."""
    assert CHROMIUM is not None
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1")
    command = [CHROMIUM, *options, f"--user-data-dir={profile}", "--virtual-time-budget=2000", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["run", "demo", "adaptation"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_browser_draws_the_page(pages: dict[str, Path], name: str, width: int, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    size = f"--window-size={width},4000"
    chromium(tmp_path / "profile", f"--screenshot={picture}", size, pages[name].as_uri())
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == width
    drawn = (pixels != pixels[0, 0]).any(axis=-1)
    # Something nearly everywhere down the page: a section that failed to draw would leave a gap.
    assert drawn.mean() > 0.02 and drawn[:1000].any(axis=1).mean() > 0.3
    assert len(np.unique(pixels.astype(np.uint32) @ (1 << 16, 1 << 8, 1))) > 50


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["run", "demo", "adaptation"])
def test_nothing_reaches_beyond_the_window(pages: dict[str, Path], name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.html"
    content = pages[name].read_text()
    # Unfolded, where tables are widest; in frames, as a browser's own window may not be as narrow as a telephone's.
    copy.write_text(content.replace("<details", "<details open").replace("</body>", MEASURE))
    for width in (WIDE, NARROW, NARROWEST):
        frame = tmp_path / f"frame-{width}.html"
        frame.write_text(
            f'<!DOCTYPE html><body style="margin:0"><iframe src="copy.html" width="{width}" height="900" '
            'style="border:0" onload="document.body.dataset.measured = '
            'this.contentDocument.documentElement.dataset.measured"></iframe></body>'
        )
        dom = chromium(tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom", frame.as_uri())
        measured = json.loads(re.search(r'data-measured="([^"]*)"', dom)[1].replace("&quot;", '"'))
        assert measured["width"] == width
        assert measured["scroll"] <= width and measured["late"] == [], measured


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_prints(pages: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    chromium(tmp_path / "profile", f"--print-to-pdf={target}", "--no-pdf-header-footer", pages["run"].as_uri())
    assert target.read_bytes().startswith(b"%PDF") and target.stat().st_size > 20_000
