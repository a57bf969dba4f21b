"""Clients that know nothing of our code: by reflection, from another language, and health probes."""

import json
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from reference.gateway import Gateway, until

from coordinator.api.client import SearchClient

SERVICE = "metasearch.v1.SearchService"
PROTO = Path(__file__).parents[2] / "coordinator" / "api" / "proto"
NPM_PACKAGES = ("@grpc/grpc-js@^1.12", "@grpc/proto-loader@^0.7", "grpc-reflection-js@^0.3")

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.address) as found:
        yield found


class WithToken(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._metadata = [("authorization", f"Bearer {token}")]

    def _details(self, details: Any) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), *self._metadata])

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._details(details), request)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(self._details(details), requests)


# Health


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_needs_no_token(channel: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    until(lambda: stub.Check(request).status == SERVING, "the first look at the store")
    watch = stub.Watch(request)
    assert next(watch).status == SERVING
    watch.cancel()


def test_health_of_an_unknown_service(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="none"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_follows_the_store(own_gateway: Gateway) -> None:
    client = SearchClient(own_gateway.address, own_gateway.known_token("nobody"), patience_s=0.0, timeout_s=30.0)
    client.create_study("mine", preset="smoke")
    with grpc.insecure_channel(own_gateway.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        until(lambda: next(watch).status == SERVING, "a first look at the store")
        blocker = sqlite3.connect(own_gateway.store_path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        assert next(watch).status == NOT_SERVING
        blocker.execute("ROLLBACK")
        blocker.close()
        assert next(watch).status == SERVING
        assert client.get_study("studies/mine").name == "studies/mine"
        own_gateway.terminate()
        assert next(watch).status == NOT_SERVING
    client.close()
    assert "not serving" in own_gateway.log.read_text() and "serving again" in own_gateway.log.read_text()


# Reflection


def test_call_built_from_reflection_alone(gateway: Gateway, client: SearchClient, tenant: str) -> None:
    client.create_study("mine", preset="smoke")
    with grpc.insecure_channel(gateway.address) as plain:
        channel = grpc.intercept_channel(plain, WithToken(gateway.token(tenant)))
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
        pool = DescriptorPool(database)
        method = pool.FindServiceByName(SERVICE).FindMethodByName("GetStudy")
        request_type = message_factory.GetMessageClass(method.input_type)
        response_type = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{SERVICE}/GetStudy",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
        found = json_format.MessageToDict(call(request_type(name="studies/mine")))
    assert found["study"]["name"] == "studies/mine" and found["study"]["config"]["rounds"] == 3


def test_reflection_is_not_for_everyone(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# Node.js

NODE_CLIENT = """
const grpc = require("@grpc/grpc-js"), loader = require("@grpc/proto-loader");
const [address, protos, token, requestId] = process.argv.slice(2);
const {metasearch} = grpc.loadPackageDefinition(loader.loadSync("metasearch/v1/search.proto",
    {includeDirs: [protos], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true}));
const client = new metasearch.v1.SearchService(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
if (token) metadata.set("authorization", `Bearer ${token}`);
const call = (method, request) => new Promise((resolve, reject) =>
    client[method](request, metadata, (error, response) => error ? reject(error) : resolve(response)));
(async () => {
  try {
    const {study} = await call("GetStudy", {name: "studies/mine"});
    const request = {parent: "studies/mine", request_id: requestId,
                     spec: {adapt: {data: {builtin: "digits"}, classes: ["1", "7"], steps: 3}}};
    const first = await call("CreateJob", request), second = await call("CreateJob", request);
    const watched = await new Promise((resolve, reject) => {
      const stream = client.WatchJob({name: first.job.name}, metadata);
      stream.once("data", response => { resolve(response); stream.cancel(); });
      stream.on("error", error => reject(error));
    });
    let refused = {};
    try { await call("CreateJob", {...request, request_id: "x"}); }
    catch (error) {
      const details = error.metadata.get("grpc-status-details-bin");
      refused = {code: grpc.status[error.code], hasDetails: details.length > 0};
    }
    console.log(JSON.stringify({study: study.name, first: first.job, second: second.job.name,
                                watched: watched.job.state, refused}));
  } catch (error) { console.log(JSON.stringify({code: grpc.status[error.code], details: error.details})); }
  client.close();
})();
"""

NODE_REFLECTION = """
const grpc = require("@grpc/grpc-js"), {Client} = require("grpc-reflection-js");
const [address, token] = process.argv.slice(2);
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${token}`);
(async () => {
  const client = new Client(address, grpc.credentials.createInsecure(), {}, metadata);
  const services = await client.listServices();
  const root = await client.fileContainingSymbol("metasearch.v1.SearchService");
  const methods = Object.keys(root.lookupService("metasearch.v1.SearchService").methods);
  console.log(JSON.stringify({services, methods}));
  process.exit(0);
})().catch(error => { console.log(JSON.stringify({error: String(error)})); process.exit(1); });
"""


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages, and the scripts."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true}')
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", *NPM_PACKAGES]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
    (folder / "client.js").write_text(NODE_CLIENT)
    (folder / "reflection.js").write_text(NODE_REFLECTION)
    return folder


def run_node(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    command = ["node", script, *arguments]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert found.stdout, found.stderr
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer


@pytest.mark.npm
def test_node_client_reads_a_study_submits_and_watches(
    node: Path, gateway: Gateway, client: SearchClient, tenant: str
) -> None:
    client.create_study("mine", preset="smoke")
    request_id = str(uuid.uuid4())
    found = run_node(node, "client.js", gateway.address, str(PROTO), gateway.token(tenant), request_id)
    assert found["study"] == "studies/mine"
    assert found["first"]["state"] == "JOB_STATE_QUEUED" and found["watched"] == "JOB_STATE_QUEUED"
    assert found["first"]["spec"]["adapt"]["classes"] == ["1", "7"]
    assert found["second"] == found["first"]["name"]
    assert found["refused"] == {"code": "INVALID_ARGUMENT", "hasDetails": True}
    assert [job.name for job in client.list_jobs("studies/mine")] == [found["second"]]


@pytest.mark.npm
def test_node_client_without_a_token_is_refused(node: Path, gateway: Gateway) -> None:
    found = run_node(node, "client.js", gateway.address, str(PROTO), "", "")
    assert found["code"] == "UNAUTHENTICATED" and "metasearch token create" in found["details"]


@pytest.mark.npm
def test_node_client_learns_the_protocol_by_reflection(node: Path, gateway: Gateway, tenant: str) -> None:
    found = run_node(node, "reflection.js", gateway.address, gateway.token(tenant))
    assert SERVICE in found["services"]
    assert len(found["methods"]) == 17 and "WatchJob" in found["methods"]
