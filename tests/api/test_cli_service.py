"""The commands that talk to the service, in this process, against a real gateway."""

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.full_networks import trained
from reference.gateway import Gateway, PlayedCoordinator
from reference.processes import Run, command_line

from common.loading import load
from common.nn.export import inference_copy
from common.nn.stored import load_network, save_network, weights_to_bytes
from common.space.released import CIFAR_TUNED
from coordinator.api.auth import read_tokens
from coordinator.api.client import SearchClient
from coordinator.jobs import FailureReason

STUDY = "studies/mine"


@pytest.fixture
def metasearch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, gateway: Gateway, tenant: str, tmp_path: Path
) -> Run:
    """The command line of a submitter, in an empty folder."""
    monkeypatch.setenv("METASEARCH_ADDRESS", gateway.address)
    monkeypatch.setenv("METASEARCH_TOKEN", gateway.token(tenant))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    return command_line(capsys, monkeypatch)


@pytest.fixture
def study(client: SearchClient) -> str:
    return client.create_study("mine", preset="smoke").name


def answer(found: tuple[int, str, str]) -> Any:
    """What a command printed with --json; nothing else may be on standard output."""
    code, out, err = found
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    "command",
    [
        ("serve",),
        ("coordinate",),
        ("submit",),
        ("jobs",),
        ("watch",),
        ("result",),
        ("cancel",),
        ("pause",),
        ("resume",),
        ("upload",),
        ("study",),
        ("study", "create"),
        ("study", "list"),
        ("study", "show"),
        ("study", "train"),
        ("prior", "list"),
        ("prior", "show"),
        ("token", "create"),
    ],
)
def test_help_explains(metasearch: Run, command: tuple[str, ...]) -> None:
    code, out, _ = metasearch(*command, "--help")
    assert code == 0 and f"Usage: metasearch {' '.join(command)}" in out


# Studies and priors


def test_study_commands(metasearch: Run, tmp_path: Path) -> None:
    made = answer(metasearch("study", "create", "mine", "--preset", "smoke", "--set", "rounds=5", "--json"))
    assert made["name"] == STUDY and made["config"]["rounds"] == 5
    code, out, _ = metasearch("study", "create", "mine", "--preset", "smoke", "--set", "rounds=5")
    assert code == 0 and out == f"{STUDY} is there; prior version 0\n"
    (tmp_path / "own.toml").write_text('preset = "smoke"\nrounds = 7\n')
    assert metasearch("study", "create", "own", "--preset", str(tmp_path / "own.toml"))[0] == 0
    assert [found["name"] for found in answer(metasearch("study", "list", "--json"))] == [STUDY, "studies/own"]
    code, out, _ = metasearch("study", "list")
    assert code == 0 and STUDY in out and "studies/own" in out
    for name in ("own", "studies/own"):
        assert answer(metasearch("study", "show", name))["config"]["rounds"] == 7
    trained = answer(metasearch("study", "train", "mine", "--until-version", "2", "--json"))
    assert trained["spec"] == {"meta_train": {"until_version": "2"}}


def test_prior_commands(metasearch: Run, study: str, coordinator: PlayedCoordinator, tenant: str) -> None:
    assert answer(metasearch("prior", "list", "mine", "--json")) == []
    coordinator.first_prior(tenant, "mine")
    (prior,) = answer(metasearch("prior", "list", study, "--json"))
    assert prior["name"] == f"{study}/priors/0" and prior["sha256"] == "ab" * 32
    assert answer(metasearch("prior", "show", f"{study}/priors/latest")) == prior
    code, out, _ = metasearch("prior", "list", "mine")
    assert code == 0 and "ab" * 32 in out


# Jobs


def test_submit_passes_every_option_on(
    metasearch: Run, study: str, coordinator: PlayedCoordinator, tenant: str
) -> None:
    coordinator.first_prior(tenant, "mine")
    made = answer(
        metasearch(
            *("submit", "--study", "mine", "--data", "digits", "--classes", "1, 7", "--steps", "3", "--json"),
            *("--image-size", "16", "--train-per-class", "5", "--test-per-class", "6", "--version", "0"),
            *("--derive", "darts", "--seed", "9", "--priority", "8", "--gpu", "--fine-tune-steps", "4"),
        )
    )
    assert made["priority"] == 8 and made["needs_gpu"] is True and made["state"] == "JOB_STATE_QUEUED"
    assert made["spec"]["adapt"] == {
        "data": {"builtin": "digits"},
        "classes": ["1", "7"],
        "image_size": 16,
        "train_per_class": 5,
        "test_per_class": 6,
        "steps": 3,
        "prior_version": "0",
        "seed": "9",
        "derivation": "DERIVATION_RULE_DARTS",
        "fine_tune_steps": 4,
    }
    limited = answer(
        metasearch(
            *("submit", "--study", "mine", "--data", "digits", "--contribute", "--json"),
            *("--max-params", "1000000", "--max-macs", "100000000"),
        )
    )
    assert limited["spec"]["adapt"]["max_params"] == "1000000" and limited["spec"]["adapt"]["contribute"] is True
    assert limited["spec"]["adapt"]["max_macs"] == "100000000"
    drawn = answer(metasearch("submit", "--study", "mine", "--data", "digits", "--classes", "3", "--json"))
    assert drawn["spec"]["adapt"]["num_ways"] == 3
    code, out, _ = metasearch("submit", "--study", "mine", "--data", "digits")
    assert code == 0 and out.startswith(f"{study}/jobs/") and "metasearch watch" in out


def test_submit_twice_under_one_id(metasearch: Run, client: SearchClient, study: str) -> None:
    command = ("submit", "--study", "mine", "--data", "digits", "--request-id", str(uuid.uuid4()), "--json")
    assert answer(metasearch(*command)) == answer(metasearch(*command))
    assert len(list(client.list_jobs(study))) == 1
    code, _, err = metasearch(*command, "--steps", "9")
    assert code == 4 and "made another job" in err


def test_dry_run_creates_nothing(metasearch: Run, client: SearchClient, study: str) -> None:
    code, out, _ = metasearch("submit", "--study", "mine", "--data", "digits", "--dry-run")
    assert (code, out) == (0, "The job is fine; nothing was created.\n")
    found = answer(metasearch("submit", "--study", "mine", "--data", "digits", "--dry-run", "--json"))
    assert found["spec"]["adapt"]["data"] == {"builtin": "digits"}
    code, _, err = metasearch("submit", "--study", "mine", "--data", "digits", "--dry-run", "--max-params", "5")
    assert code == 2 and "smallest" in err
    assert list(client.list_jobs(study)) == []


def test_folder_is_stored_once(
    metasearch: Run, client: SearchClient, gateway: Gateway, study: str, photos: Path
) -> None:
    command = ("submit", "--study", "mine", "--data", str(photos), "--json")
    first, second = answer(metasearch(*command)), answer(metasearch(*command))
    assert first["name"] != second["name"]
    assert first["spec"]["adapt"]["data"] == second["spec"]["adapt"]["data"]
    uploaded = answer(metasearch("upload", str(photos), "--json"))
    assert first["spec"]["adapt"]["data"] == {"dataset": uploaded["name"]}
    assert [found.name for found in client.list_datasets()] == [uploaded["name"]]
    assert (
        answer(metasearch("submit", "--study", "mine", "--data", uploaded["name"], "--json"))["spec"] == first["spec"]
    )


def test_upload_prints_titles_as_they_are(metasearch: Run, photos: Path, tmp_path: Path) -> None:
    odd = photos.rename(tmp_path / "[bold]photos")
    code, out, err = metasearch("upload", str(odd))
    assert code == 0, err
    assert out.startswith("datasets/") and out.rstrip().endswith("[bold]photos")


def test_jobs_lists_by_state(
    metasearch: Run, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    done, failed, queued = (client.submit(study, "digits").name for _ in range(3))
    coordinator.succeed(coordinator.start(tenant, done))
    coordinator.fail(coordinator.start(tenant, failed), message="[red]no[/blue] images")
    assert [job["name"] for job in answer(metasearch("jobs", "--study", "mine", "--json"))] == [queued, failed, done]
    assert len(answer(metasearch("jobs", "--study", "mine", "--json", "--limit", "1"))) == 1
    found = answer(metasearch("jobs", "--study", "mine", "--json", "--state", "queued", "--state", "failed"))
    assert [job["name"] for job in found] == [queued, failed]
    code, out, _ = metasearch("jobs", "--study", "mine")
    assert code == 0 and "0.750" in out and "[red]no[/blue] images" in out
    code, _, err = metasearch("jobs", "--study", "mine", "--state", "bored")
    assert code == 2 and "queued, running" in err


def test_cancel_pause_resume(metasearch: Run, client: SearchClient, study: str) -> None:
    name = client.submit(study, "digits").name
    assert answer(metasearch("pause", name, "--json"))["paused"] is True
    assert metasearch("pause", name)[:2] == (0, f"{name} is queued, paused\n")
    assert "paused" not in answer(metasearch("resume", name, "--json"))
    assert metasearch("cancel", name)[:2] == (0, f"{name} is cancelled\n")
    for command in ("pause", "resume"):
        code, out, err = metasearch(command, name)
        assert (code, out) == (4, "") and "cancelled" in err
    code, out, err = metasearch("watch", name)
    assert (code, out) == (6, "") and "was cancelled" in err


def test_watch_prints_a_line_per_change(
    metasearch: Run, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    name = client.submit(study, "digits").name

    def work() -> None:
        running = coordinator.start(tenant, name)
        coordinator.progress(running, 2, 4, 0.5)
        coordinator.succeed(running)

    worker = threading.Thread(target=work)
    worker.start()
    code, out, err = metasearch("watch", name, "--json")
    worker.join()
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    states = [line["job"]["state"].removeprefix("JOB_STATE_") for line in lines if line.get("state_changed")]
    assert states == ["QUEUED", "RUNNING", "SUCCEEDED"]
    code, out, err = metasearch("watch", name)
    assert (code, out) == (0, "")
    assert "succeeded" in err and "12,345 parameters" in err and "weights.safetensors" in err


def test_submit_and_wait(
    metasearch: Run, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    def work() -> None:
        while not (queued := list(client.list_jobs(study))):
            pass
        coordinator.fail(coordinator.start(tenant, queued[0].name), FailureReason.INVALID_INPUT, "too few images")

    worker = threading.Thread(target=work)
    worker.start()
    code, out, err = metasearch("submit", "--study", "mine", "--data", "digits", "--wait")
    worker.join()
    assert (code, out) == (6, "")
    assert "failed: invalid_input: too few images" in err


def test_result_and_its_files(
    metasearch: Run, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str, tmp_path: Path
) -> None:
    name = client.submit(study, "digits").name
    code, out, err = metasearch("result", name)
    assert (code, out) == (3, "") and "no result yet; it is queued" in err
    coordinator.succeed(coordinator.start(tenant, name))
    code, out, err = metasearch("result", name, "--json", "--out", str(tmp_path / "[out]"))
    assert code == 0, err
    assert json.loads(out)["adapt_result"]["accuracy"] == 0.75
    assert sorted(path.name for path in (tmp_path / "[out]").iterdir()) == ["result.json", "weights.safetensors"]
    assert "[out]/result.json" in err
    assert "normal: sep_conv_3x3(0) + skip_connect(1)" in err
    (tmp_path / "file").write_text("x")
    code, _, err = metasearch("result", name, "--out", str(tmp_path / "file"))
    assert code == 5 and "cannot write" in err


def test_a_jobs_network_is_exported(
    metasearch: Run, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str, tmp_path: Path
) -> None:
    save_network(tmp_path / "net", trained(CIFAR_TUNED))
    stored = {name: (tmp_path / "net" / name).read_bytes() for name in ("network.json", "weights.safetensors")}
    out = tmp_path / "taken.py"
    arguments = ("--format", "python", "--out", str(out))
    for prefix in ("", "network/"):
        name = client.submit(study, "digits").name
        code, _, err = metasearch("export", name, *arguments)
        assert code == 3 and f"{name} has no result yet" in err
        files = {prefix + file: data for file, data in stored.items()}
        coordinator.succeed(coordinator.start(tenant, name), {"result.json": b"{}", **files})
        code, _, err = metasearch("export", name, *arguments)
        assert code == 0, err
        weights = out.with_suffix(".safetensors").read_bytes()
        assert weights == weights_to_bytes(inference_copy(load_network(tmp_path / "net")).state_dict())
        out.unlink()
    code, _, err = metasearch("export", name, *arguments, "--channels", "4")
    assert code == 2 and f"{name} says what its network is" in err and "--channels" in err
    bare = client.submit(study, "digits").name
    coordinator.succeed(coordinator.start(tenant, bare))
    code, _, err = metasearch("export", bare, *arguments)
    assert code == 2 and f"{bare} left no network" in err and "--fine-tune-steps" in err
    assert not out.exists()


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["study", "create", "Mine", "--preset", "smoke"], 2, ["study_id", "Mine"]),
        (["study", "create", "mine", "--preset", "none"], 3, ["none", "smoke"]),
        (["study", "create", "mine", "--preset", "smoke", "--set", "rounds=9"], 4, ["studies/mine", "another"]),
        (["study", "create", "new", "--preset", "smoke", "--set", "inner.steps=0"], 2, ["inner.steps", "0"]),
        (["study", "show", "none"], 3, ["studies/none"]),
        (["study", "show", "../x"], 2, ["studies/{studies}"]),
        (["prior", "show", "studies/mine/priors/9"], 3, ["priors/9"]),
        (["prior", "show", "latest"], 2, ["latest"]),
        (["jobs", "--study", "none"], 3, ["studies/none"]),
        (["submit", "--study", "mine", "--data", "nothing"], 2, ["nothing", "digits"]),
        (["submit", "--study", "mine", "--data", "none/"], 3, ["none/"]),
        (["submit", "--study", "mine", "--data", "none.zip"], 3, ["none.zip"]),
        (["submit", "--study", "mine", "--data", "https://x/a.zip"], 2, ["https://x/a.zip", "s3://vision/open/"]),
        (["submit", "--study", "mine", "--data", "digits", "--classes", "1"], 2, ["2 classes"]),
        (["submit", "--study", "mine", "--data", "digits", "--derive", "best"], 2, ["best", "top2_pairs"]),
        (["submit", "--study", "mine", "--data", "digits", "--image-size", "17"], 2, ["image_size", "17", "16"]),
        (["submit", "--study", "mine", "--data", "digits", "--request-id", "x"], 2, ["UUID4", "x"]),
        (["submit", "--study", "mine", "--data", "digits", "--version", "5"], 2, ["version 5", "latest is 0"]),
        (["watch", "studies/mine/jobs/none"], 3, ["jobs/none"]),
        (["result", "studies/mine/jobs/none"], 3, ["jobs/none"]),
        (["cancel", "none"], 2, ["studies/{studies}/jobs/{jobs}"]),
        (["upload", "none"], 3, ["none"]),
        (["study", "list", "--token", "wrong"], 8, ["not known", "METASEARCH_TOKEN"]),
        (["serve", "--settings", "none.toml"], 3, ["none.toml"]),
        (["serve", "--listen", "nowhere"], 2, ["HOST:PORT", "nowhere"]),
        (["serve", "--listen", "0.0.0.0:0"], 2, ["loopback", "tls.certificate"]),
        (["serve", "--listen", "127.0.0.1:0", "--tokens", "none.toml"], 3, ["none.toml", "token create"]),
        (["coordinate"], 2, ["--address", "--local"]),
        (["coordinate", "--address", "auto", "--max-workers", "4"], 2, ["max_workers is 4", "set gpus_per_worker"]),
        (["token", "create", "--tenant", "A B"], 2, ["tenant", "A B"]),
        (["token", "create", "--tenant", "a", "--role", "king"], 2, ["role", "viewer"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    metasearch: Run, study: str, client: SearchClient, arguments: list[str], code: int, words: list[str]
) -> None:
    found, out, err = metasearch(*arguments)
    assert found == code, err
    assert out == "" and "Traceback" not in err
    (error,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    for word in words:
        assert word in error
    assert list(client.list_jobs(study)) == []
    assert list(Path().iterdir()) == [], "a mistake leaves nothing behind"


def test_no_token_is_said_to_be_missing(metasearch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METASEARCH_TOKEN")
    code, _, err = metasearch("study", "list")
    assert code == 8 and "--token or METASEARCH_TOKEN" in err


def test_token_of_the_local_service_is_found(
    metasearch: Run, monkeypatch: pytest.MonkeyPatch, gateway: Gateway, tenant: str
) -> None:
    monkeypatch.delenv("METASEARCH_TOKEN")
    Path("runs/service").mkdir(parents=True)
    Path("runs/service/token").write_text(gateway.token(tenant) + "\n")
    assert answer(metasearch("study", "list", "--json")) == []


def test_viewer_is_told_which_role_it_takes(metasearch: Run, gateway: Gateway) -> None:
    token = gateway.token("viewers", "viewer")
    code, _, err = metasearch("study", "create", "mine", "--preset", "smoke", "--token", token)
    assert code == 8 and "role submitter" in err and "ask for a token" in err


def test_token_create_prints_the_token_once_and_stores_its_hash(metasearch: Run, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    code, out, err = metasearch("token", "create", "--tenant", "lab", "--role", "viewer", "--tokens", str(file))
    assert code == 0 and err == ""
    token = out.strip()
    assert token.startswith("msk_") and token not in file.read_text()
    (entry,) = read_tokens(file)
    assert (entry.tenant, entry.role) == ("lab", "viewer")


def test_presets_are_what_the_service_makes_of_them(metasearch: Run) -> None:
    made = answer(metasearch("study", "create", "mine", "--preset", "smoke", "--json"))
    ours = load("smoke", environment={}).model_dump(mode="json")
    assert np.isclose(made["config"]["inner"]["theta"]["lr"], ours["inner"]["theta"]["lr"])
    assert set(made["config"]) == set(ours)
