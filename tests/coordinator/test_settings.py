"""Settings of the service: file < environment < flags, and every mistake by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import InvalidInputError, NotFoundError, UnavailableError
from coordinator.settings import ServiceSettings, load_settings, open_ledger
from coordinator.store.records import Quota


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_stay_on_this_machine() -> None:
    settings = load_settings(environment={})
    assert settings == ServiceSettings()
    assert settings.listen.startswith("127.0.0.1:") and settings.store.startswith("sqlite:")
    assert not settings.insecure and settings.allowed_urls == ()


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.toml",
        'store = "sqlite:file"\nartifacts = "file"\nlisten = "file:1"\n[quota]\nmax_queued = 7\nmax_running = 8\n'
        "[quotas.lab]\nweight = 2.5\n",
    )
    environment = {
        "METASEARCH_SERVICE_ARTIFACTS": "environment",
        "METASEARCH_SERVICE_LISTEN": "environment:1",
        "METASEARCH_SERVICE_QUOTA__MAX_QUEUED": "9",
        "METASEARCH_SERVICE_TLS__CERTIFICATE": "/cert.pem",
        "METASEARCH_SERVICE_ALLOWED_URLS": "s3://a/, https://b/c/,",
        "METASEARCH_SERVICE_DRAIN_S": "2.5",
        "OTHER": "x",
    }
    settings = load_settings(file, {"listen": "flag:1", "store": None}, environment)
    assert (settings.store, settings.artifacts, settings.listen) == ("sqlite:file", "environment", "flag:1")
    assert (settings.quota.max_queued, settings.quota.max_running, settings.drain_s) == (9, 8, 2.5)
    assert settings.tls.certificate == Path("/cert.pem")
    assert settings.allowed_urls == ("s3://a/", "https://b/c/")
    assert settings.quota_of("lab").weight == 2.5
    assert settings.quota_of("other") == settings.quota != Quota()


def test_secret_comes_from_the_file_that_a_variable_names(tmp_path: Path) -> None:
    secret = written(tmp_path / "store_url", "redis://metasearch:p@ss@redis:6379/0\n")
    file = written(tmp_path / "a.toml", "store = 'sqlite:x'")
    assert load_settings(file, environment={"METASEARCH_SERVICE_STORE_FILE": str(secret)}).store == (
        "redis://metasearch:p@ss@redis:6379/0"
    )
    nested = {"METASEARCH_SERVICE_TLS__KEY_FILE": str(written(tmp_path / "key", "/etc/key.pem"))}
    assert load_settings(environment=nested).tls.key == Path("/etc/key.pem")


def test_json_is_what_the_settings_dump(tmp_path: Path) -> None:
    settings = ServiceSettings(listen="127.0.0.1:0", allowed_urls=("s3://a/",), quotas={"lab": Quota(max_queued=3)})
    file = written(tmp_path / "a.json", settings.model_dump_json())
    assert load_settings(file, environment={}) == settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lissen = 'x'", ["lissen"]),
        ("drain_s = 0", ["drain_s", "0"]),
        ("[quota]\nmax_queued = -1", ["quota.max_queued", "-1"]),
        ("[quotas.lab]\nweight = 0", ["quotas.lab.weight", "0"]),
        ("allowed_urls = ['s3://bucket']", ["allowed_urls", "s3://bucket", "slash"]),
        ("allowed_urls = ['/etc/']", ["allowed_urls", "/etc/", "scheme"]),
        ("max_upload_bytes = 0", ["max_upload_bytes", "0"]),
        ("listen = ", ["a.toml", "cannot be read"]),
        ("drain_s = 0\nbeat_s = -1", ["drain_s", "beat_s"]),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_settings(written(tmp_path / "a.toml", text), environment={})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"METASEARCH_SERVICE_STORE__PATH": "x"}, ["METASEARCH_SERVICE_STORE__PATH", "store"]),
        ({"METASEARCH_SERVICE_DRAIN_S": "soon"}, ["drain_s", "soon"]),
        ({"METASEARCH_SERVICE_LISTN": "x"}, ["listn"]),
        ({"METASEARCH_SERVICE_ALLOWED_URLS": "s3://a/,b"}, ["allowed_urls", "'b'"]),
        ({"METASEARCH_SERVICE_STORE_FILE": "/none"}, ["METASEARCH_SERVICE_STORE_FILE", "/none", "cannot be read"]),
        (
            {"METASEARCH_SERVICE_STORE_FILE": "/none", "METASEARCH_SERVICE_STORE": "sqlite:x"},
            ["METASEARCH_SERVICE_STORE_FILE", "both set", "leave one out"],
        ),
    ],
)
def test_wrong_variable_is_named(tmp_path: Path, environment: dict[str, str], words: list[str]) -> None:
    file = written(tmp_path / "a.toml", "store = 'sqlite:x'")
    with pytest.raises(InvalidInputError) as caught:
        load_settings(file, environment=environment)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("content", ["[1]", "1", "null", '"x"', "{", "\x00"])
def test_json_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidInputError, match=r"a\.json"):
        load_settings(written(tmp_path / "a.json", content), environment={})


def test_file_that_is_missing_or_unreadable(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.toml"):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_settings(tmp_path)
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_settings(tmp_path / "a.toml")


def test_settings_are_frozen_and_survive_json() -> None:
    settings = ServiceSettings()
    with pytest.raises(ValueError):
        settings.listen = "x"  # type: ignore[misc]
    assert ServiceSettings.model_validate(json.loads(settings.model_dump_json())) == settings


@pytest.mark.parametrize("store", ["", "sqlite:", "postgres://x", "jobs.sqlite"])
def test_store_of_no_known_kind_is_refused(store: str) -> None:
    with pytest.raises(InvalidInputError, match="sqlite:PATH or redis"):
        open_ledger(store)


def test_store_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError, match="folder of the job store"):
        open_ledger(f"sqlite:{tmp_path / 'file' / 'jobs.sqlite'}")
    (tmp_path / "not.sqlite").write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(UnavailableError, match=r"not\.sqlite"):
        open_ledger(f"sqlite:{tmp_path / 'not.sqlite'}")
    with pytest.raises(UnavailableError):
        open_ledger("redis://127.0.0.1:1/0")


def test_sqlite_is_made_where_missing(tmp_path: Path) -> None:
    ledger: Any = open_ledger(f"sqlite:{tmp_path / 'new' / 'jobs.sqlite'}")
    ledger.ping()
    ledger.close()
    assert (tmp_path / "new" / "jobs.sqlite").exists()
