"""How a client reaches the service: address, token, TLS, and what is tried again."""

import json
import os
import random
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import grpc

from common.errors import NotFoundError
from coordinator.api.errors import from_rpc_error
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.stubs import search_pb2_grpc

ADDRESS_VARIABLE = "METASEARCH_ADDRESS"
TOKEN_VARIABLE = "METASEARCH_TOKEN"
CA_VARIABLE = "METASEARCH_CA"
DEFAULT_ADDRESS = "127.0.0.1:7171"
TERMINAL_STATES = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})

_SERVICE = "metasearch.v1.SearchService"
_IDEMPOTENT = (
    *(
        "CreateStudy",
        "GetStudy",
        "ListStudies",
        "CreateJob",
        "GetJob",
        "ListJobs",
        "CancelJob",
        "PauseJob",
        "ResumeJob",
    ),
    *("GetPrior", "ListPriors", "GetDataset", "ListDatasets", "GetServiceStatus"),
)
_RETRY_POLICY = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": method} for method in _IDEMPOTENT],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = (
    ("grpc.service_config", json.dumps(_RETRY_POLICY)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_MAX_WAIT_S = 2.0


@dataclass(frozen=True)
class Tls:
    """How to talk TLS.

    Attributes:
        ca: PEM of the authority that signed the service's certificate; the system's where None.
        certificate: PEM of the client's own, for mutual TLS.
        key: of that.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


class Connection:
    """A client of the service: where it finds it, and who it is there.

    Args:
        address: HOST:PORT; `METASEARCH_ADDRESS` where not given.
        token: API token; `METASEARCH_TOKEN` where not given.
        tls: None talks plain text, as on the loopback; `METASEARCH_CA` names a PEM file.
        timeout_s: of a single call.
        patience_s: how long calls that are safe to repeat are repeated while the service does not answer.

    Raises:
        NotFoundError: there is no file that `METASEARCH_CA` names.
    """

    _grpc: ModuleType
    """`grpc`, or `grpc.aio`."""

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = 10.0,
        patience_s: float = 30.0,
    ) -> None:
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        found = token or os.environ.get(TOKEN_VARIABLE)
        self._metadata = (("authorization", f"Bearer {found}"),) if found else ()
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        if tls is None and os.environ.get(CA_VARIABLE):
            ca = Path(os.environ[CA_VARIABLE])
            if not ca.is_file():
                raise NotFoundError(f"{CA_VARIABLE} names {ca}, which is not there")
            tls = Tls(ca.read_bytes())
        if tls is None:
            self._channel = self._grpc.insecure_channel(self.address, options=OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
            self._channel = self._grpc.secure_channel(self.address, credentials, options=OPTIONS)
        self._stub = search_pb2_grpc.SearchServiceStub(self._channel)  # type: ignore[no-untyped-call]


# A gateway that stops sometimes says CANCELLED. A caller that cancels its own call gets no RpcError.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
UNANSWERED = (*BROKEN, grpc.StatusCode.DEADLINE_EXCEEDED)


class Patience:
    """How long to go on trying, and how long to wait in between: longer each time, and never in step with others."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.renew()

    def renew(self) -> None:
        """The service has answered."""
        self._until_s = time.monotonic() + self._patience_s
        self._next_s = 0.05

    def bear(self, error: grpc.RpcError, codes: Collection[grpc.StatusCode]) -> float:
        """What `wait_s` says, after an error.

        Raises:
            MetaSearchError: the error of the call, where its code is none of `codes` or the patience is over.
        """
        if error.code() not in codes or time.monotonic() >= self._until_s:
            raise from_rpc_error(error) from None
        return self.wait_s()

    def wait_s(self) -> float:
        """Seconds to wait before the next try."""
        wait_s = self._next_s * random.uniform(0.5, 1.0)  # jitter alone; nothing is computed from it
        self._next_s = min(2 * self._next_s, _MAX_WAIT_S)
        return wait_s
