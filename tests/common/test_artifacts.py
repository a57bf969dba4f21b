"""Stored priors: bitwise the same when read back, never half there, and never silently wrong."""

import errno
import hashlib
import json
import os
import uuid
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from reference.priors import smoke_config, tiny_config, tiny_prior

from common.artifacts import PriorStore, check_same_config
from common.config import StudyConfig
from common.errors import ConflictError, CorruptArtifactError, NotFoundError, UnavailableError
from common.meta.prior import ALPHA, initial_prior
from common.storage import ArtifactFolder


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path):
    if request.param == "folder":
        yield str(tmp_path / "runs" / "one")
        return
    address = f"memory://{uuid.uuid4().hex}/one"
    yield address
    fs, root = fsspec.core.url_to_fs(address)
    if fs.exists(root):
        fs.rm(root, recursive=True)


@pytest.fixture
def store(url):
    return PriorStore(url)


@pytest.fixture
def local(tmp_path):
    return PriorStore(tmp_path / "run")


def prior_of(version, shift=0.0):
    prior = tiny_prior(version=version)
    return replace(prior, vectors={**prior.vectors, "body": prior.vectors["body"] + np.float32(version + shift)})


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Round trips


def test_a_prior_comes_back_bitwise(store):
    prior = replace(initial_prior(smoke_config()), version=12, tau=0.1 + 0.2, alpha_stopped=True)
    manifest = store.save(prior)
    loaded = store.load()
    assert (loaded.version, loaded.tau, loaded.alpha_stopped) == (12, 0.1 + 0.2, True)
    assert set(loaded.vectors) == set(prior.vectors)
    for name, vector in prior.vectors.items():
        assert loaded.vectors[name].dtype == np.float32
        assert loaded.vectors[name].tobytes() == vector.tobytes(), name
    assert loaded.digest() == prior.digest() == manifest.digest


def test_values_that_float32_can_hold_at_its_edges_come_back_bitwise(store):
    edges = np.float32([-0.0, np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal])
    prior = tiny_prior(body=edges)
    store.save(prior)
    assert store.load().vectors["body"].tobytes() == edges.tobytes()


def test_vectors_that_are_not_contiguous_are_stored_by_value(store):
    prior = tiny_prior()
    strided = np.arange(6, dtype=np.float32)[::2]
    store.save(replace(prior, vectors={**prior.vectors, "body": strided}))
    assert store.load().vectors["body"].tolist() == [0.0, 2.0, 4.0]


def test_a_configuration_comes_back_equal(store):
    config = smoke_config("seed=5", "network.heads.32=4")
    assert not store.has_config()
    store.save_config(config)
    assert store.has_config()
    assert store.load_config() == config


def test_the_latest_or_a_named_version_is_loaded(store):
    for version in (1, 2, 10):
        store.save(prior_of(version))
    assert store.versions() == [1, 2, 10]
    assert store.load().version == 10
    assert store.load(2).digest() == prior_of(2).digest()


def test_saving_a_version_again_replaces_it(store):
    store.save(prior_of(1))
    store.save(prior_of(1, shift=0.5))
    assert store.versions() == [1]
    assert store.load().digest() == prior_of(1, shift=0.5).digest()


def test_a_reader_sees_what_another_store_wrote(store, url):
    store.save(prior_of(3))
    assert PriorStore(url).load().digest() == prior_of(3).digest()


def test_the_files_of_a_run_have_fixed_names(local, tmp_path):
    local.save_config(smoke_config())
    local.save(prior_of(12))
    assert files_of(tmp_path / "run") == ["config.json", "priors/00000012.json", "priors/00000012.safetensors"]


# Digests


BASE = tiny_prior()


@pytest.mark.parametrize(
    "changed",
    [
        replace(BASE, version=1),
        replace(BASE, tau=np.nextafter(BASE.tau, 2.0).item()),
        replace(BASE, alpha_stopped=True),
        replace(BASE, vectors={**BASE.vectors, "body": np.nextafter(BASE.vectors["body"], np.float32(9))}),
        replace(BASE, vectors={**BASE.vectors, ALPHA: BASE.vectors[ALPHA][::-1]}),
        replace(BASE, vectors={**BASE.vectors, "head/64": np.zeros(0, np.float32)}),
        replace(BASE, vectors={name: vector for name, vector in BASE.vectors.items() if name != "head/32"}),
        replace(
            BASE,
            vectors={**BASE.vectors, "head/16": BASE.vectors["head/32"], "head/32": BASE.vectors["head/16"]},
        ),
        replace(BASE, vectors={**BASE.vectors, "body": BASE.vectors["body"].reshape(3, 1)}),
    ],
    ids=[
        "version",
        "last bit of tau",
        "alpha_stopped",
        "last bit of a weight",
        "order of alpha",
        "an empty vector more",
        "a vector less",
        "vectors swapped",
        "shape",
    ],
)
def test_every_field_changes_the_digest(changed):
    assert changed.digest() != BASE.digest()


def test_the_digest_tells_zeros_of_different_sign_apart():
    digests = {tiny_prior(body=np.float32([zero, 1, 2])).digest() for zero in (0.0, -0.0)}
    assert len(digests) == 2


def test_the_digest_depends_neither_on_the_order_of_names_nor_on_memory_layout():
    shuffled = dict(reversed(BASE.vectors.items()))
    strided = np.repeat(BASE.vectors["body"], 2)[::2]
    assert replace(BASE, vectors={**shuffled, "body": strided}).digest() == BASE.digest()


# Housekeeping


@pytest.mark.parametrize(("keep_last", "left"), [(1, [4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_prune_keeps_the_last_versions(store, keep_last, left):
    for version in (1, 2, 3, 4):
        store.save(prior_of(version))
    store.prune(keep_last)
    assert store.versions() == left
    assert store.folder.names("priors", ".safetensors") == [f"{version:08d}" for version in left]


def test_discard_after_removes_later_versions_only(store):
    for version in (1, 2, 3, 4):
        store.save(prior_of(version))
    store.discard_after(2)
    assert store.versions() == [1, 2]
    assert store.folder.names("priors", ".safetensors") == ["00000001", "00000002"]
    store.discard_after(7)
    assert store.versions() == [1, 2]


def test_removing_what_is_not_there_is_no_error(store):
    store.folder.remove("priors/00000009.json")
    store.prune(3)
    assert store.versions() == []


# What is not there


def test_an_empty_folder_holds_no_prior_and_no_study(store):
    with pytest.raises(NotFoundError, match="holds no prior"):
        store.load()
    with pytest.raises(NotFoundError, match="holds no study; start one with metasearch train"):
        store.load_config()
    with pytest.raises(NotFoundError, match=r"no file .*absent"):
        store.folder.read("absent")


def test_an_unknown_version_is_not_found_and_the_known_ones_are_named(store):
    for version in (1, 3):
        store.save(prior_of(version))
    with pytest.raises(NotFoundError, match="no prior version 2; it has 1, 3"):
        store.load(2)


def test_files_that_are_no_manifests_are_no_versions(local, tmp_path):
    local.save(prior_of(1))
    (tmp_path / "run" / "priors" / "notes.json").write_text("{}")
    (tmp_path / "run" / "priors" / "00000002.json.part").write_text("{}")
    assert local.versions() == [1]


def test_tensors_without_a_manifest_are_no_version(local, tmp_path):
    local.save(prior_of(1))
    local.save(prior_of(2))
    (tmp_path / "run" / "priors" / "00000002.json").unlink()
    assert local.load().version == 1


# What is corrupt


def edit(name, change):
    def apply(store):
        store.folder.write(f"priors/{name}", change(store.folder.read(f"priors/{name}")))

    return apply


def edit_manifest(**fields):
    def change(data):
        return json.dumps({**json.loads(data), **fields}).encode()

    return edit("00000002.json", change)


def flip_bit(place):
    def change(data):
        changed = bytearray(data)
        changed[place] ^= 1
        return bytes(changed)

    return edit("00000002.safetensors", change)


def copy_of_version_1(store):
    store.folder.write("priors/00000002.json", store.folder.read("priors/00000001.json"))
    store.folder.write("priors/00000002.safetensors", store.folder.read("priors/00000001.safetensors"))


CORRUPTIONS = {
    "truncated tensors": (edit("00000002.safetensors", lambda data: data[:-1]), "bytes, its manifest says"),
    "empty tensors": (edit("00000002.safetensors", lambda data: b""), "has 0 bytes"),
    "tensors with more at the end": (edit("00000002.safetensors", lambda data: data + b"\0"), "bytes, its manifest"),
    "a flipped bit in the last weight": (flip_bit(-1), "SHA-256"),
    "a flipped bit in the header": (flip_bit(9), "SHA-256"),
    "no tensors": (lambda store: store.folder.remove("priors/00000002.safetensors"), "is missing"),
    "an empty manifest": (edit("00000002.json", lambda data: b""), "is not a manifest"),
    "a truncated manifest": (edit("00000002.json", lambda data: data[:-5]), "is not a manifest"),
    "a manifest that is no text": (edit("00000002.json", lambda data: b"\xff\xfe"), "is not a manifest"),
    "a manifest with another field": (edit_manifest(note="hello"), "is not a manifest"),
    "a manifest of another version": (edit_manifest(version=7), "was altered"),
    "another tau": (edit_manifest(tau=(0.25).hex()), "was altered"),
    "a tau that is no number": (edit_manifest(tau="warm"), "hexadecimal"),
    "a tau beyond floating point": (edit_manifest(tau="0x1p+2000"), "too large"),
    "a manifest of another format": (edit_manifest(format=2), "has format 2, this program reads 1"),
    "another alpha_stopped": (edit_manifest(alpha_stopped=True), "was altered"),
    "another digest": (edit_manifest(digest="0" * 64), "was altered"),
    "another hash": (edit_manifest(sha256="0" * 64), "SHA-256"),
    "the files of another version": (copy_of_version_1, "was altered"),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corruption_is_found_and_the_newest_intact_version_named(store, case):
    damage, reason = CORRUPTIONS[case]
    for version in (0, 1, 2):
        store.save(prior_of(version))
    damage(store)
    with pytest.raises(CorruptArtifactError) as error:
        store.load()
    message = str(error.value)
    assert message.startswith("prior version 2 is corrupt: ")
    assert reason in message
    assert message.endswith("use --from-version 1, which is intact")
    assert store.load(1).digest() == prior_of(1).digest()


def test_tensors_that_are_not_safetensors_are_corrupt_even_with_a_manifest_that_fits(store):
    store.save(prior_of(1))
    manifest = store.save(prior_of(2))
    data = b"not safetensors"
    store.folder.write("priors/00000002.safetensors", data)
    fitting = manifest.model_copy(update={"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    store.folder.write("priors/00000002.json", fitting.model_dump_json().encode())
    with pytest.raises(CorruptArtifactError, match=r"00000002\.safetensors: .*use --from-version 1"):
        store.load()


def test_corrupt_earlier_versions_are_not_offered(store):
    for version in (1, 2, 3):
        store.save(prior_of(version))
    for version in (2, 3):
        store.folder.remove(f"priors/0000000{version}.safetensors")
    with pytest.raises(CorruptArtifactError, match="use --from-version 1, which"):
        store.load()
    with pytest.raises(CorruptArtifactError, match=r"version 2 is corrupt.* use --from-version 1, which"):
        store.load(2)


def test_a_later_intact_version_is_not_offered_for_an_earlier_one(store):
    for version in (1, 2):
        store.save(prior_of(version))
    store.folder.remove("priors/00000001.safetensors")
    with pytest.raises(CorruptArtifactError, match="no earlier version is intact"):
        store.load(1)


@pytest.mark.parametrize(
    "data",
    [b"", b'{"rounds": 3', b"\xff\xfe", b"[1, 2]", b'{"rounds": 0}', b'{"rouns": 3}'],
    ids=["empty", "truncated", "no text", "a list", "a wrong value", "an unknown field"],
)
def test_a_file_that_is_no_configuration_is_corrupt(store, data):
    store.folder.write("config.json", data)
    with pytest.raises(CorruptArtifactError, match=r"config\.json is not a configuration: "):
        store.load_config()


# Writing


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod"])
def test_a_write_that_fails_leaves_nothing_behind_and_the_old_content_in_place(local, tmp_path, monkeypatch, broken):
    local.save_config(smoke_config())
    local.save(prior_of(1))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(broken, full)
        for write in (lambda: local.save(prior_of(2)), lambda: local.save_config(smoke_config("seed=1"))):
            with pytest.raises(UnavailableError, match=r"cannot write .*No space left.*check space and permissions"):
                write()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert local.load().digest() == prior_of(1).digest()


def test_an_interrupted_write_leaves_nothing_behind(local, tmp_path, monkeypatch):
    local.save(prior_of(1))
    before = files_of(tmp_path / "run")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            local.save(prior_of(2))
    assert files_of(tmp_path / "run") == before


def test_a_version_whose_manifest_could_not_be_written_does_not_exist(store, monkeypatch):
    store.save(prior_of(1))
    write = store.folder.write

    def write_tensors_only(name, data):
        if name.endswith(".json"):
            raise UnavailableError("no space")
        write(name, data)

    monkeypatch.setattr(store.folder, "write", write_tensors_only)
    with pytest.raises(UnavailableError):
        store.save(prior_of(2))
    assert store.versions() == [1]
    assert store.load().version == 1


def test_readers_see_the_old_file_until_the_new_one_is_complete(local, tmp_path, monkeypatch):
    local.folder.write("note", b"old")
    seen = []
    real_fsync = os.fsync

    def look(descriptor):
        seen.append(local.folder.read("note"))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    local.folder.write("note", b"new")
    assert seen == [b"old", b"new"], "first the file's content is made safe, then its name"


def test_a_folder_that_is_a_file_refuses_writes(tmp_path):
    (tmp_path / "taken").write_text("a file")
    store = PriorStore(tmp_path / "taken")
    with pytest.raises(UnavailableError, match="cannot write"):
        store.save_config(smoke_config())
    with pytest.raises(UnavailableError, match="cannot write"):
        store.save(prior_of(1))


def test_a_storage_that_refuses_is_unavailable(url, monkeypatch):
    folder = ArtifactFolder(url)
    folder.write("note", b"here")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    fs = fsspec.core.url_to_fs(url)[0]
    for operation in ("cat_file", "pipe_file"):
        monkeypatch.setattr(type(fs), operation, refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UnavailableError, match=r"cannot read .*note: .*Permission denied"):
        folder.read("note")
    with pytest.raises(UnavailableError, match=r"cannot write .*note: .*Permission denied"):
        folder.write("note", b"new")


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("exists", lambda folder: folder.exists("note")),
        ("ls", lambda folder: folder.names("", ".json")),
        ("rm_file", lambda folder: folder.remove("note")),
    ],
)
def test_a_storage_that_refuses_to_list_or_remove_is_unavailable(url, monkeypatch, operation, call):
    folder = ArtifactFolder(url)
    folder.write("note", b"here")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(fsspec.core.url_to_fs(url)[0]), operation, refuse)
    with pytest.raises(UnavailableError, match="Permission denied"):
        call(folder)


# Configurations of one study


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=4", "seed = 0, now it is 4"),
        ("rounds=9", "rounds = 3, now it is 9"),
        ("inner.theta.lr=0.25", r"inner\.theta\.lr = 0\.1, now it is 0\.25"),
        ("outer.rule=median", r"outer\.rule = 'mean', now it is 'median'"),
        ("network.heads.32=4", r"network\.heads\.32 = None, now it is 4"),
    ],
)
def test_another_configuration_is_refused_by_the_field_that_differs(override, message):
    with pytest.raises(ConflictError, match=f"started with {message}; resume without it, or start a new run"):
        check_same_config(smoke_config(), smoke_config(override))


def test_another_number_of_families_is_refused():
    one = smoke_config()
    two = StudyConfig.model_validate({**one.model_dump(), "families": [*one.families, *one.families]})
    with pytest.raises(ConflictError, match="started with families = "):
        check_same_config(one, two)


def test_workers_and_checkpoints_may_change():
    changed = smoke_config(
        "cluster.num_workers=7", "cluster.task_timeout_s=5.0", "checkpoint.every_rounds=2", "checkpoint.keep_last=9"
    )
    check_same_config(smoke_config(), changed)


def test_an_equal_configuration_passes_after_a_round_trip(store):
    store.save_config(tiny_config(rule="median"))
    check_same_config(store.load_config(), tiny_config(rule="median"))
