"""What strangers may try: tokens, names, URLs, archives, floods, TLS. The gateway refuses, and goes on."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import resource
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reference.certificates import Authority, write_pair
from reference.gateway import Gateway, PlayedCoordinator, running, until

from common.errors import ForbiddenError, InvalidInputError, NotFoundError, UnauthenticatedError, UnavailableError
from coordinator.api.auth import create_token, read_tokens
from coordinator.api.client import SearchClient, Tls
from coordinator.api.errors import DETAILS_KEY, FieldError
from coordinator.api.gatekeeper import SERVICE
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.stubs import search_pb2_grpc
from coordinator.api.transfer import packed, upload_header, upload_parts
from workers.data.archives import check_archive, read_archive, read_npz

STUDY = "studies/mine"
JOB = f"{STUDY}/jobs/0"
SPEC = pb.JobSpec(meta_train=pb.MetaTrainSpec())
HEADER = pb.UploadHeader(title="x", suffix=".zip", num_bytes=1, sha256="0" * 64)
REQUESTS: dict[str, Any] = {
    "CreateStudy": pb.CreateStudyRequest(study_id="new", preset="smoke"),
    "GetStudy": pb.GetStudyRequest(name=STUDY),
    "ListStudies": pb.ListStudiesRequest(),
    "CreateJob": pb.CreateJobRequest(parent=STUDY, spec=SPEC),
    "GetJob": pb.GetJobRequest(name=JOB),
    "ListJobs": pb.ListJobsRequest(parent=STUDY),
    "CancelJob": pb.CancelJobRequest(name=JOB),
    "PauseJob": pb.PauseJobRequest(name=JOB),
    "ResumeJob": pb.ResumeJobRequest(name=JOB),
    "WatchJob": pb.WatchJobRequest(name=JOB),
    "GetPrior": pb.GetPriorRequest(name=f"{STUDY}/priors/0"),
    "ListPriors": pb.ListPriorsRequest(parent=STUDY),
    "UploadDataset": pb.UploadDatasetRequest(header=HEADER),
    "GetDataset": pb.GetDatasetRequest(name="datasets/" + "0" * 64),
    "ListDatasets": pb.ListDatasetsRequest(),
    "DownloadArtifact": pb.DownloadArtifactRequest(job=JOB, artifact="result.json"),
    "GetServiceStatus": pb.GetServiceStatusRequest(),
}
NAMELESS = ("List", "Create", "Upload", "GetServiceStatus")
WRITES = ("CreateStudy", "CreateJob", "CancelJob", "PauseJob", "ResumeJob", "UploadDataset")


def call(channel: grpc.Channel, method: str, request: Any, metadata: Any = ()) -> Any:
    """Any call of the protocol, up to its last response."""
    function = getattr(search_pb2_grpc.SearchServiceStub(channel), method)
    given = iter([request]) if method == "UploadDataset" else request
    found = function(given, metadata=metadata, timeout=20)
    return list(found) if method in ("WatchJob", "DownloadArtifact") else found


def code_of(channel: grpc.Channel, method: str, request: Any, metadata: Any = ()) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, request, metadata)
    found: grpc.StatusCode = caught.value.code()
    return found


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.address) as found:
        yield found


# Tokens and roles


def test_requests_are_of_every_call() -> None:
    assert set(REQUESTS) == {method.name for method in pb.DESCRIPTOR.services_by_name["SearchService"].methods}


@pytest.mark.parametrize("method", REQUESTS)
def test_no_call_without_a_valid_token(gateway: Gateway, channel: grpc.Channel, method: str) -> None:
    token = gateway.token("tenant-0")
    for metadata in (
        (),
        bearer("msk_wrong"),
        bearer(""),
        bearer(token[:-1]),
        bearer(hashlib.sha256(token.encode()).hexdigest()),  # what the file holds opens nothing
        (("authorization", token),),
        (("authorization", f"Basic {token}"),),
        (("authorization", ""),),
        (("authorization-bin", token.encode()),),
        (("token", token),),
    ):
        assert code_of(channel, method, REQUESTS[method], metadata) is grpc.StatusCode.UNAUTHENTICATED


def test_refusal_tells_no_secret(gateway: Gateway, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "GetStudy", REQUESTS["GetStudy"], bearer("msk_secret-of-mine"))
    assert "secret-of-mine" not in caught.value.details()
    metadata = dict(caught.value.trailing_metadata())
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(metadata[DETAILS_KEY]).details[0].Unpack(info)
    assert info.reason == "UNAUTHENTICATED"
    assert "secret-of-mine" not in gateway.log.read_text()


@pytest.mark.parametrize("method", REQUESTS)
def test_viewer_reads_and_never_writes(gateway: Gateway, channel: grpc.Channel, method: str) -> None:
    metadata = bearer(gateway.token("viewers", "viewer"))
    try:
        call(channel, method, REQUESTS[method], metadata)
        code = grpc.StatusCode.OK
    except grpc.RpcError as error:
        code = error.code()
    if method in WRITES:
        assert code is grpc.StatusCode.PERMISSION_DENIED
    else:
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)


def test_client_says_which_role_is_missing(gateway: Gateway) -> None:
    with gateway.client("viewers", "viewer") as client, pytest.raises(ForbiddenError, match="role submitter"):
        client.create_study("mine", preset="smoke")


def test_unknown_methods_are_refused(gateway: Gateway, channel: grpc.Channel) -> None:
    for metadata in ((), bearer(gateway.token("tenant-0"))):
        for path in (f"/{SERVICE}/DropEverything", "/other.Service/Get", "/x", "/"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", metadata=metadata, timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_withdrawn_token_stops_working_and_a_broken_file_changes_nothing(own_gateway: Gateway) -> None:
    good = own_gateway.known_token("good")
    bad = own_gateway.known_token("bad")
    text = own_gateway.tokens.read_text()
    own_gateway.tokens.write_text("[[token]\nthis is no TOML")
    until(lambda: "tokens of before stay valid" in _touched(own_gateway, good), "the broken file to be noticed")
    assert own_gateway.knows(good) and own_gateway.knows(bad)
    own_gateway.tokens.unlink()
    until(lambda: _touched(own_gateway, good).count("stay valid") >= 2, "the missing file to be noticed")
    assert own_gateway.knows(good)
    tables = text.split("[[token]]")
    kept = [table for table in tables if hashlib.sha256(bad.encode()).hexdigest() not in table]
    assert len(kept) == len(tables) - 1
    own_gateway.tokens.write_text("[[token]]".join(kept))
    until(lambda: not own_gateway.knows(bad), "the token to be withdrawn")
    assert own_gateway.knows(good)


def _touched(gateway: Gateway, token: str) -> str:
    gateway.knows(token)  # the file is looked at when somebody calls
    return gateway.log.read_text()


def test_tokens_file_is_private_and_holds_hashes(tmp_path: Path) -> None:
    file = tmp_path / "new" / "tokens.toml"
    tokens = [create_token(file, "a", "viewer", 'a "title"\n[[token]]\\'), create_token(file, "b", "admin")]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert all(token not in text and token.removeprefix("msk_") not in text for token in tokens)
    assert len(set(tokens)) == 2 and all(len(token) > 40 for token in tokens)
    entries = read_tokens(file)
    assert [entry.tenant for entry in entries] == ["a", "b"] and entries[0].title == 'a "title"\n[[token]]\\'
    assert [entry.sha256 for entry in entries] == [hashlib.sha256(token.encode()).hexdigest() for token in tokens]


@pytest.mark.parametrize(
    ("tenant", "role"), [("../x", "viewer"), ("A", "viewer"), ("a/b", "viewer"), ("", "viewer"), ("a", "root")]
)
def test_token_of_a_wrong_tenant_or_role_is_not_made(tmp_path: Path, tenant: str, role: str) -> None:
    with pytest.raises(InvalidInputError, match="token"):
        create_token(tmp_path / "tokens.toml", tenant, role)
    assert not (tmp_path / "tokens.toml").exists()


# Tenants


def test_what_another_tenant_has_is_not_there(
    gateway: Gateway,
    channel: grpc.Channel,
    client: SearchClient,
    coordinator: PlayedCoordinator,
    tenant: str,
    other_tenant: str,
    photos: Path,
) -> None:
    client.create_study("mine", preset="smoke")
    coordinator.first_prior(tenant, "mine")
    dataset = client.upload(photos)
    done, queued = client.submit(STUDY, dataset.name), client.submit(STUDY, "digits")
    coordinator.succeed(coordinator.start(tenant, done.name))
    metadata = bearer(gateway.token(other_tenant))
    by_name = {
        "GetStudy": pb.GetStudyRequest(name=STUDY),
        "CreateJob": pb.CreateJobRequest(parent=STUDY, spec=SPEC),
        "GetJob": pb.GetJobRequest(name=queued.name),
        "ListJobs": pb.ListJobsRequest(parent=STUDY),
        "CancelJob": pb.CancelJobRequest(name=queued.name),
        "PauseJob": pb.PauseJobRequest(name=queued.name),
        "ResumeJob": pb.ResumeJobRequest(name=queued.name),
        "WatchJob": pb.WatchJobRequest(name=queued.name),
        "GetPrior": pb.GetPriorRequest(name=f"{STUDY}/priors/latest"),
        "ListPriors": pb.ListPriorsRequest(parent=STUDY),
        "GetDataset": pb.GetDatasetRequest(name=dataset.name),
        "DownloadArtifact": pb.DownloadArtifactRequest(job=done.name, artifact="result.json"),
    }
    of_oneself = {"CreateStudy", "ListStudies", "UploadDataset", "ListDatasets", "GetServiceStatus"}
    assert set(by_name) == set(REQUESTS) - of_oneself
    before = client.get_job(queued.name)
    for own_study in (False, True):  # also where they have a study of the same name
        for method, request in by_name.items():
            if own_study and method in ("GetStudy", "CreateJob", "ListJobs", "ListPriors"):
                continue
            code = code_of(channel, method, request, metadata)
            assert code is grpc.StatusCode.NOT_FOUND, method
        with gateway.client(other_tenant) as other:
            other.create_study("mine", preset="smoke", overrides=["rounds=9"])
            assert [study.config["rounds"] for study in other.list_studies()] == [9]
            assert list(other.list_datasets()) == [] and list(other.list_jobs(STUDY)) == []
            with pytest.raises(NotFoundError, match="datasets/"):
                other.submit(STUDY, dataset.name)
    assert client.get_job(queued.name) == before
    with gateway.client(other_tenant) as other:  # the same bytes are stored for them anew
        assert other.upload(photos).name == dataset.name
        assert other.upload(photos).create_time != dataset.create_time
    stored = [path for path in (gateway.artifacts / "tenants").rglob("*.zip") if path.stem in dataset.name]
    assert {path.parts[-3] for path in stored} >= {tenant, other_tenant}


def test_request_ids_of_tenants_do_not_meet(gateway: Gateway, client: SearchClient, other_tenant: str) -> None:
    import uuid

    request_id = str(uuid.uuid4())
    client.create_study("mine", preset="smoke")
    mine = client.submit(STUDY, "digits", request_id=request_id)
    with gateway.client(other_tenant) as other:
        other.create_study("mine", preset="smoke")
        assert other.submit(STUDY, "digits", steps=9, request_id=request_id).name != mine.name


# Names and URLs

ESCAPES = (
    "studies/..",
    "studies/../mine",
    "studies/mine/../other",
    "studies/%2e%2e",
    "studies/mine\0",
    "studies/mine\n",
    "studies//",
    "/studies/mine",
    "studies/mine/",
    "Studies/mine",
    "studies/" + "a" * 65,
    "studies/mine/jobs/../../x",
    "studies/mine/jobs/a/b",
    "studies/*",
    "",
    "\N{FULLWIDTH FULL STOP}",
    "x" * 100_000,
)


@pytest.mark.parametrize("method", [name for name in REQUESTS if not name.startswith(NAMELESS)])
def test_names_that_lead_elsewhere_are_refused(gateway: Gateway, channel: grpc.Channel, method: str) -> None:
    metadata = bearer(gateway.token("tenant-0"))
    for name in ESCAPES:
        request = type(REQUESTS[method])(**{"job" if method == "DownloadArtifact" else "name": name})
        code = code_of(channel, method, request, metadata)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, name[:80]


@pytest.mark.parametrize("name", ["../x", "..", ".", "a/b", "a_b", "a.b", "a\0", "a ", "-a", "a-", "ä", "a" * 64, "A"])
def test_study_ids_that_lead_elsewhere_are_refused(client: SearchClient, name: str) -> None:
    with pytest.raises(FieldError, match="study_id"):
        client.create_study(name, preset="smoke")


def test_artifact_names_are_only_looked_up(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, gateway: Gateway, channel: grpc.Channel
) -> None:
    client.create_study("mine", preset="smoke")
    job = client.submit(STUDY, "digits")
    coordinator.succeed(coordinator.start(tenant, job.name))
    for name in ("../result.json", "/etc/passwd", "manifest.json", "", ".", "result.json\0", "RESULT.JSON"):
        request = pb.DownloadArtifactRequest(job=job.name, artifact=name)
        assert code_of(channel, "DownloadArtifact", request, client._metadata) is grpc.StatusCode.NOT_FOUND, name


ALLOWED = (
    "s3://vision/open/a.zip",
    "s3://vision/open/deep/er/a.tar.gz",
    "https://data.example/sets/A.NPZ",
)
NOT_ALLOWED = (
    "/etc/passwd.zip",
    "file:///etc/a.zip",
    "s3://vision/a.zip",
    "s3://vision/open.zip",
    "s3://vision/openly/a.zip",
    "s3://vision/open/../secret/a.zip",
    "s3://vision/open/x/..",
    "s3://vision/open/%2e%2e/secret/a.zip",
    "s3://vision/open/%252e%252e/a.zip",
    "s3://vision/open/..;/secret/a.zip",
    "s3://vision/open/.\t./secret/a.zip",
    "s3://vision/open/.\n./secret/a.zip",
    "s3://vision/open/..\\secret\\a.zip",
    "s3://vision/open/a b.zip",
    "s3://vision/open/\x7fa.zip",
    "S3://vision/open/a.zip",
    " s3://vision/open/a.zip",
    "http://data.example/sets/a.zip",
    "https://data.example/sets",
    "https://data.example:443/sets/a.zip",
    "https://data.example.evil.org/sets/a.zip",
    "https://data.example@evil.org/sets/a.zip",
    "https://data.example/sets/@evil.org/a.zip",
    "https://data.example/sets/a.zip?url=http://evil/a.zip",
    "https://data.example/sets/a.zip#/x.zip",
    "https://data.example\\@evil.org/sets/a.zip",
    "simplecache::s3://vision/open/a.zip",
    "s3://vision/open/zip::file:///etc/a.zip",
    "s3://vision/open/\0.zip",
    "s3://vision/open/" + "a" * 2000 + ".zip",
)


def test_urls_below_an_allowed_prefix_only(client: SearchClient) -> None:
    client.create_study("mine", preset="smoke")
    for url in ALLOWED:
        assert client.submit(STUDY, pb.DataSource(url=url)).spec.adapt.data.url == url
    for url in NOT_ALLOWED:
        with pytest.raises(FieldError, match="is not below an allowed prefix") as caught:
            client.submit(STUDY, pb.DataSource(url=url))
        assert caught.value.field == "spec.adapt.data.url", url
    with pytest.raises(FieldError, match=r"must end in one of \.zip"):
        client.submit(STUDY, pb.DataSource(url="s3://vision/open/a.exe"))
    assert len(list(client.list_jobs(STUDY))) == len(ALLOWED)


@pytest.mark.parametrize("override", [f"families.0.data.source='{url}'" for url in ("/etc/passwd", "../x", "x.zip")])
def test_studies_name_no_files_as_sources(client: SearchClient, override: str) -> None:
    with pytest.raises(FieldError, match="allowed URL") as caught:
        client.create_study("mine", preset="smoke", overrides=[override])
    assert caught.value.field == "config.families.0.data.source"
    with pytest.raises(FieldError, match="allowed URL"):
        client.create_study("mine", config={"families": [{"data": {"source": "/etc/passwd"}}]})


@pytest.mark.parametrize("root", ["/etc", "~", ".", "file:///etc/", "s3://vision/open/../x"])
def test_studies_name_no_folders_as_roots(client: SearchClient, root: str) -> None:
    with pytest.raises(FieldError, match="allowed URL") as caught:
        client.create_study("mine", preset="smoke", overrides=[f"families.0.data.root='{root}'"])
    assert caught.value.field == "config.families.0.data.root"


def test_jobs_name_no_files_as_sources(client: SearchClient) -> None:
    client.create_study("mine", preset="smoke")
    for name in ("/etc/passwd", "../a.zip", "a.zip", "DIGITS", "digits\0", "."):
        with pytest.raises(FieldError, match="must be one of glyphs"):
            client.submit(STUDY, pb.DataSource(builtin=name))


# Archives


def png(width: int = 8, height: int = 8) -> bytes:
    """A PNG whose header promises a size; the pixels of a small one are there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(width) for _ in range(height)) if height < 100 else b""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


GOOD = {"cat/1.png": png(), "dog/1.png": png(9, 9)}


def zipped(members: dict[str, bytes], **attributes: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (GOOD | members).items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name in members:
                for attribute, value in attributes.items():
                    setattr(info, attribute, value)
            archive.writestr(info, data)
    return file.getvalue()


def tarred(*infos: tarfile.TarInfo | bytes, good: bool = True) -> bytes:
    """A tar of headers and raw blocks, after two good images."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in GOOD.items() if good else ():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in infos:
            if isinstance(info, bytes):
                archive.fileobj.write(info)  # type: ignore[union-attr]
            else:
                archive.fileobj.write(info.tobuf())  # type: ignore[union-attr]
    return file.getvalue()


def info_of(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def sized(kind: bytes, size: int) -> bytes:
    """A raw header with any size, even a negative one, in base 256."""
    block = bytearray(info_of("cat/x.png", kind).tobuf())
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def npz(images: bytes, labels: bytes = b"", also: dict[str, bytes] | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"images.npy": images, "labels.npy": labels, **(also or {})}.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(header: str | bytes, version: int = 1, length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little") + text


def array(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values), allow_pickle=True)
    return file.getvalue()


def encrypted(archive: bytes) -> bytes:
    """The same zip with the flag of encryption in its directory."""
    return archive.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0")


class Exploit:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/metasearch-was-here",)


def promised(shape: str, descr: str = "'|u1'") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")


LABELS = array([0, 1])
ARCHIVES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zip: absolute": (".zip", lambda: zipped({"/etc/x.png": png()})),
    "zip: upwards": (".zip", lambda: zipped({"cat/../../x.png": png()})),
    "zip: upwards by backslash": (".zip", lambda: zipped({"cat\\..\\..\\x.png": png()})),
    "zip: drive": (".zip", lambda: zipped({"C:/x.png": png()})),
    "zip: link": (".zip", lambda: zipped({"cat/l.png": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16)),
    "zip: device": (".zip", lambda: zipped({"cat/d.png": b""}, external_attr=(stat.S_IFCHR | 0o777) << 16)),
    "zip: bomb": (".zip", lambda: zipped({f"cat/{index}.bmp": bytes(200 << 20) for index in range(2)})),
    "zip: member too large": (".zip", lambda: zipped({"cat/x.bmp": bytes(257 << 20)})),
    "zip: archive within": (".zip", lambda: zipped({"cat/inner.zip": zipped({})}).replace(b"1.png", b"1.txt")),
    "zip: garbage": (".zip", lambda: os.urandom(5000)),
    "zip: a tar": (".zip", lambda: tarred()),
    "tar: a zip": (".tar", lambda: zipped({})),
    "tar: garbage": (".tar.gz", lambda: os.urandom(5000)),
    "tar: absolute": (".tar", lambda: tarred(info_of("/etc/x.png"))),
    "tar: upwards": (".tar", lambda: tarred(info_of("cat/../../x.png"))),
    "tar: symlink": (".tar", lambda: tarred(info_of("cat/x.png", tarfile.SYMTYPE, link="/etc/passwd"))),
    "tar: link to a link": (".tar", lambda: tarred(info_of("cat", tarfile.SYMTYPE, link="/"), info_of("cat/x.png"))),
    "tar: hard link": (".tar", lambda: tarred(info_of("cat/x.png", tarfile.LNKTYPE, link="cat/1.png"))),
    "tar: device": (".tar", lambda: tarred(info_of("cat/x.png", tarfile.CHRTYPE))),
    "tar: block device": (".tar", lambda: tarred(info_of("cat/x.png", tarfile.BLKTYPE))),
    "tar: pipe": (".tar", lambda: tarred(info_of("cat/x.png", tarfile.FIFOTYPE))),
    "tar: unknown kind": (".tar", lambda: tarred(info_of("cat/x.png", b"Z"))),
    "tar: sparse": (".tar", lambda: tarred(info_of("cat/x.png", tarfile.GNUTYPE_SPARSE))),
    "tar: bomb": (".tgz", lambda: gzip.compress(tarred(sized(b"0", 1 << 40)))),
    "tar: many large": (
        ".tgz",
        lambda: gzip.compress(tarred(*[part for _ in range(2) for part in (sized(b"0", 200 << 20), bytes(200 << 20))])),
    ),
    "tar: many empty": (".tgz", lambda: gzip.compress(tarred(info_of("cat/x.png").tobuf() * 300_000))),
    "tar: negative": (".tar", lambda: tarred(sized(b"0", -1024))),
    "tar: negative long name": (".tar", lambda: tarred(sized(b"L", -1024))),
    "tar: long name of 400 MB": (".tgz", lambda: gzip.compress(tarred(sized(b"L", 400 << 20), bytes(400 << 20)))),
    "tar: attributes of 400 MB": (".tgz", lambda: gzip.compress(tarred(sized(b"x", 400 << 20), bytes(400 << 20)))),
    "tar: names of names": (".tar", lambda: tarred(*[sized(b"L", 1) + b"a" + bytes(511)] * 1500)),
    "npz: pickled": (".npz", lambda: npz(array(np.array([Exploit()], object)), LABELS)),
    "npz: pickled labels": (".npz", lambda: npz(array(np.zeros((2, 4, 4), np.uint8)), array(np.array([{}], object)))),
    "npz: pickle beside": (".npz", lambda: npz(array([0]), LABELS, also={"images": pickle.dumps(Exploit())})),
    "npz: 1e12 bytes": (".npz", lambda: npz(promised("(1000000, 1000, 1000)"), LABELS)),
    "npz: beyond floats": (".npz", lambda: npz(promised("(1" + "0" * 400 + ",)"), LABELS)),
    "npz: negative": (".npz", lambda: npz(promised("(-1, 8, 8)"), LABELS)),
    "npz: header of 2 GB": (".npz", lambda: npz(npy(b"{" + bytes(200 << 20), 2, 2 << 30), LABELS)),
    "npz: no header": (".npz", lambda: npz(npy(b"", 1, 60_000), LABELS)),
    "npz: unknown version": (".npz", lambda: npz(npy("{}", 9), LABELS)),
    "npz: open brackets": (".npz", lambda: npz(npy("(" * 9_000), LABELS)),
    "npz: minus signs": (".npz", lambda: npz(npy("-" * 9_000 + "1"), LABELS)),
    "npz: code": (".npz", lambda: npz(promised("__import__('os').getcwd()"), LABELS)),
    "npz: half a text": (".npz", lambda: npz(npy('{"descr: """'), LABELS)),
    "npz: no labels": (".npz", lambda: zipped({"images.npy": array([0])})),
    "npz: encrypted": (".npz", lambda: encrypted(npz(array([0]), LABELS))),
    "npz: bomb": (".npz", lambda: npz(array(np.zeros((2, 20_000, 10_000), np.uint8)), LABELS)),
}  # fmt: skip


@pytest.fixture(scope="module")
def watched_gateway(gateway: Gateway) -> Iterator[Gateway]:
    """The gateway; its memory is looked at after all archives."""
    before, files = gateway.rss_bytes(), gateway.num_files()
    yield gateway
    assert gateway.rss_bytes() - before < 150 << 20, "memory stays with the gateway"
    assert gateway.num_files() - files < 60


@pytest.mark.parametrize("kind", ARCHIVES)
def test_evil_archive_is_refused_at_upload(
    watched_gateway: Gateway, client: SearchClient, tmp_path: Path, kind: str
) -> None:
    suffix, make = ARCHIVES[kind]
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(make())
    assert path.stat().st_size < 8 << 20
    with pytest.raises(FieldError, match=rf"^chunk: evil{suffix.replace('.', '[.]')}"):
        client.upload(path)
    assert list(client.list_datasets()) == []
    assert watched_gateway.rss_bytes("VmHWM") < 700 << 20, "never much memory at once"
    assert not Path("/tmp/metasearch-was-here").exists()
    with pytest.raises(InvalidInputError):  # workers refuse it too, wherever it came from
        list(read_npz(path, 8) if suffix == ".npz" else read_archive(path, 8))


def test_good_archives_are_still_taken(client: SearchClient, tmp_path: Path) -> None:
    long = "cat/" + "very-" * 60 + "long.png"
    for name, mode, form in (
        ("pax.tar", "w", tarfile.PAX_FORMAT),
        ("gnu.tgz", "w:gz", tarfile.GNU_FORMAT),
        ("xz.tar.xz", "w:xz", tarfile.PAX_FORMAT),
    ):
        with tarfile.open(tmp_path / name, mode, format=form) as archive:  # type: ignore[call-overload]
            for member, data in (GOOD | {long: png()}).items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        client.upload(tmp_path / name)
        classes = list(read_archive(tmp_path / name, 8))
        assert [(found.name, len(found.images)) for found in classes] == [("cat", 2), ("dog", 1)]
    assert len(list(client.list_datasets())) == 3


def test_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"cat/huge.png": png(50_000, 50_000)}))
    check_archive(path)  # headers of images are for the workers
    code = (
        "import resource, sys; from pathlib import Path; from workers.data.archives import read_archive\n"
        "from common.errors import InvalidInputError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    list(read_archive(Path(sys.argv[1]), 8))\n"
        "except InvalidInputError as error:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    growth_kib, _, message = found.partition(" ")
    assert "huge.png has more than" in message
    assert int(growth_kib) < 50 << 10


# Floods


@contextlib.contextmanager
def many_files(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, number), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_message_beyond_the_limit_is_refused(gateway: Gateway, channel: grpc.Channel, client: SearchClient) -> None:
    request = pb.CreateStudyRequest(study_id="mine", preset="smoke", overrides=["x" * (10 << 20)])
    assert code_of(channel, "CreateStudy", request, client._metadata) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.create_study("mine", preset="smoke").name == STUDY


def test_bytes_that_are_no_message_are_refused(gateway: Gateway, channel: grpc.Channel, client: SearchClient) -> None:
    for data in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a" * 4000):
        for method in ("CreateStudy", "CreateJob", "GetJob"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{SERVICE}/{method}")(data, metadata=client._metadata, timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNKNOWN  # gRPC's own answer
    deep = pb.CreateStudyRequest(study_id="mine")
    value = deep.config.fields["a"]
    for _ in range(60):
        value = value.list_value.values.add()
    value.number_value = 1
    with pytest.raises(grpc.RpcError):
        call(channel, "CreateStudy", deep, client._metadata)
    assert list(client.list_studies()) == []


def test_gateway_outlives_a_flood(
    gateway: Gateway, coordinator: PlayedCoordinator, client: SearchClient, tenant: str, photos: Path
) -> None:
    client.create_study("mine", preset="smoke")
    before = (gateway.rss_bytes(), gateway.num_files())
    job = client.submit(STUDY, "digits", classes=[f"class-{number}-{'x' * 200}" for number in range(500)])
    with packed(photos) as (file, title):
        parts = list(upload_parts(file, upload_header(file, title)))
    stop = threading.Event()

    def half() -> Iterator[pb.UploadDatasetRequest]:
        yield parts[0]
        stop.wait(60)

    with contextlib.ExitStack() as stack:
        stack.enter_context(many_files(4096))
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), 30)) for _ in range(1000)]
        for index, connection in enumerate(idle[:100]):  # some speak another language
            with contextlib.suppress(OSError):
                connection.sendall(os.urandom(300) if index % 2 else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        channels = [
            stack.enter_context(grpc.insecure_channel(gateway.address, options=[("grpc.use_local_subchannel_pool", 1)]))
            for _ in range(10)
        ]
        stubs = [search_pb2_grpc.SearchServiceStub(channel) for channel in channels]
        uploads = [stub.UploadDataset.future(half(), metadata=client._metadata) for stub in stubs]
        watches = [stub.WatchJob(pb.WatchJobRequest(name=job.name), metadata=client._metadata) for stub in stubs]
        for watch in watches:
            next(watch)  # and no more is read
        running = coordinator.start(tenant, job.name)
        for done in range(100):  # 10 MB for each of them
            coordinator.progress(running, done, 100, 0.5)
            assert client.get_job(job.name).progress.done == done, "others are served"
        assert client.upload(photos).title == "photos"
        during = gateway.rss_bytes()
        for call_under_way in (*watches, *uploads):
            call_under_way.cancel()
        stop.set()
    until(lambda: gateway.num_files() - before[1] < 30, "the gateway to close its handles")
    assert during - before[0] < 300 << 20
    until(lambda: gateway.rss_bytes() - before[0] < 100 << 20, "the gateway to give memory back")
    assert client.get_job(job.name).state == pb.JOB_STATE_RUNNING
    until(lambda: not list(gateway.scratch.iterdir()), "halves of uploads to be removed")


# TLS


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("ours")


def studies(gateway: Gateway, tls: Tls | None) -> list[pb.Study]:
    with SearchClient(gateway.address, gateway.token("nobody", "viewer"), tls, 5.0, 0.0) as client:
        return list(client.list_studies())


def served_serial(gateway: Gateway, authority: Authority) -> int:
    import ssl

    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", gateway.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def test_tls_with_certificates_that_are_replaced_while_it_runs(tmp_path: Path, authority: Authority) -> None:
    first, second = authority.issue("first"), authority.issue("second")
    serials = [x509.load_pem_x509_certificate(pair[0]).serial_number for pair in (first, second)]
    folder = tmp_path / "tls"
    with running(tmp_path / "gateway", tls=write_pair(folder, first), drain_s=1.0) as gateway:
        assert studies(gateway, Tls(authority.pem)) == []
        with pytest.raises(UnavailableError):
            studies(gateway, None)  # plain text
        with pytest.raises(UnavailableError):
            studies(gateway, Tls(Authority("theirs").pem))
        assert served_serial(gateway, authority) == serials[0]
        (folder / "cert.pem").write_bytes(second[0])  # does not fit the key
        assert served_serial(gateway, authority) == serials[0]
        (folder / "cert.pem").write_bytes(b"garbage")
        assert served_serial(gateway, authority) == serials[0]
        (folder / "cert.pem").unlink()
        assert served_serial(gateway, authority) == serials[0]
        assert studies(gateway, Tls(authority.pem)) == []
        write_pair(folder, second)
        until(lambda: served_serial(gateway, authority) == serials[1], "the new certificate")
        assert studies(gateway, Tls(authority.pem)) == []


def test_mutual_tls(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    tls = write_pair(tmp_path / "tls", authority.issue("server")) | {"client_ca": str(tmp_path / "ca.pem")}
    with running(tmp_path / "gateway", tls=tls, drain_s=1.0) as gateway:
        assert studies(gateway, Tls(authority.pem, *authority.issue("client"))) == []
        with pytest.raises(UnavailableError):
            studies(gateway, Tls(authority.pem))
        with pytest.raises(UnavailableError):
            studies(gateway, Tls(authority.pem, *Authority("theirs").issue("client")))
        with (
            SearchClient(gateway.address, None, Tls(authority.pem, *authority.issue("client")), 5.0, 0.0) as client,
            pytest.raises(UnauthenticatedError),  # a certificate replaces no token
        ):
            list(client.list_studies())
        (tmp_path / "ca.pem").write_bytes(b"garbage")
        assert studies(gateway, Tls(authority.pem, *authority.issue("client"))) == []
        with pytest.raises(UnavailableError):
            studies(gateway, Tls(authority.pem))


def test_probes_need_no_tls_and_find_nothing_but_health(tmp_path: Path, authority: Authority) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    tls = write_pair(tmp_path / "tls", authority.issue("server"))
    with (
        running(tmp_path / "gateway", tls=tls, health_listen=address, drain_s=1.0) as gateway,
        grpc.insecure_channel(address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
        until(lambda: next(watch).status == serving, "a first look at the store")
        blocker = sqlite3.connect(gateway.store_path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        assert next(watch).status == not_serving
        assert health.Check(health_pb2.HealthCheckRequest(service="liveness")).status == serving
        blocker.close()
        with pytest.raises(grpc.RpcError) as caught:
            search_pb2_grpc.SearchServiceStub(channel).ListStudies(pb.ListStudiesRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert studies(gateway, Tls(authority.pem)) == []


def test_client_takes_the_authority_from_the_environment(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METASEARCH_CA", str(tmp_path / "none.pem"))
    with pytest.raises(NotFoundError, match=r"METASEARCH_CA names .*none\.pem"):
        SearchClient("127.0.0.1:1")


async def _serve(settings: Any) -> None:
    import asyncio
    import logging

    from coordinator.api.gateway import serve

    stop = asyncio.Event()
    await serve(settings, logging.getLogger("test"), lambda port: stop.set(), stop)


def test_a_gateway_whose_starter_is_gone_ends_its_server(tmp_path: Path) -> None:
    import asyncio
    import gc
    import logging

    from coordinator.api.gateway import serve
    from coordinator.settings import ServiceSettings

    def report(port: int) -> None:
        raise BrokenPipeError("nobody reads")

    async def run() -> None:
        await serve(settings, logging.getLogger("test"), report, asyncio.Event())

    create_token(tmp_path / "tokens.toml", "lab", "viewer", "")
    settings = ServiceSettings(
        store=f"sqlite:{tmp_path / 'jobs.sqlite'}",
        artifacts=str(tmp_path / "artifacts"),
        tokens=tmp_path / "tokens.toml",
        listen="127.0.0.1:0",
    )
    with pytest.raises(BrokenPipeError):
        asyncio.run(run())
    gc.collect()  # a server that still ran would complain now, and keep this process from ending


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "example.org", "127.0.0.1.example.org"])
def test_plain_text_beyond_the_loopback_is_refused(tmp_path: Path, host: str) -> None:
    import asyncio

    from coordinator.settings import ServiceSettings

    create_token(tmp_path / "tokens.toml", "a", "viewer")
    settings = ServiceSettings(
        listen=f"{host}:0", tokens=tmp_path / "tokens.toml", store=f"sqlite:{tmp_path / 'jobs.sqlite'}"
    )
    with pytest.raises(InvalidInputError, match=r"beyond the loopback: set tls\.certificate"):
        asyncio.run(_serve(settings))
    assert not (tmp_path / "jobs.sqlite").exists()


def test_gateway_says_what_keeps_it_from_starting(tmp_path: Path, authority: Authority, gateway: Gateway) -> None:
    import asyncio

    from coordinator.settings import ServiceSettings, TlsSettings

    base = ServiceSettings(
        listen="127.0.0.1:0",
        tokens=tmp_path / "tokens.toml",
        store=f"sqlite:{tmp_path / 'jobs.sqlite'}",
        artifacts=str(tmp_path / "artifacts"),
    )
    pair = write_pair(tmp_path / "tls", authority.issue("server"))
    other = write_pair(tmp_path / "other", authority.issue("other"))

    def refusal(kind: type[Exception], **changes: Any) -> str:
        with pytest.raises(kind) as caught:
            asyncio.run(_serve(base.model_copy(update=changes)))
        return str(caught.value)

    assert "metasearch token create" in refusal(NotFoundError)
    create_token(tmp_path / "tokens.toml", "a", "viewer")
    for listen in ("127.0.0.1", "x", ":7171", "127.0.0.1:99999", "127.0.0.1:-1", "unix:/tmp/x"):
        assert "HOST:PORT" in refusal(InvalidInputError, listen=listen)
        assert "health_listen must be HOST:PORT" in refusal(InvalidInputError, health_listen=listen)
    assert "cannot listen" in refusal(UnavailableError, listen=gateway.address)
    assert "health_listen: cannot listen" in refusal(UnavailableError, health_listen=gateway.address)
    certificate, key = Path(pair["certificate"]), Path(other["key"])
    assert "both" in refusal(InvalidInputError, tls=TlsSettings(certificate=certificate))
    assert "key.pem cannot be used" in refusal(InvalidInputError, tls=TlsSettings(certificate=certificate, key=key))
    assert "none.pem" in refusal(
        InvalidInputError, tls=TlsSettings(certificate=tmp_path / "none.pem", key=Path(pair["key"]))
    )
    (tmp_path / "ca.pem").write_text("garbage")
    settings = TlsSettings(certificate=certificate, key=Path(pair["key"]), client_ca=tmp_path / "ca.pem")
    assert "ca.pem" in refusal(InvalidInputError, tls=settings)
    asyncio.run(_serve(base))  # and nothing else does
