"""Our errors as gRPC status with details, and back."""

import grpc
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common.errors import (
    AdaptationError,
    AlreadyExistsError,
    ConflictError,
    CorruptArtifactError,
    ForbiddenError,
    InvalidInputError,
    MetaSearchError,
    NotFoundError,
    QuotaError,
    UnauthenticatedError,
    UnavailableError,
)

DOMAIN = "metasearch"
DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_BYTES = 1200


class FieldError(InvalidInputError):
    """A field of a request is wrong.

    Attributes:
        field: its path.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.description = message


# The first class that fits counts.
_CODES: tuple[tuple[type[MetaSearchError], int, str], ...] = (
    (QuotaError, code_pb2.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    (AlreadyExistsError, code_pb2.ALREADY_EXISTS, "ALREADY_EXISTS"),
    (UnauthenticatedError, code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (ForbiddenError, code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (InvalidInputError, code_pb2.INVALID_ARGUMENT, "INVALID_INPUT"),
    (NotFoundError, code_pb2.NOT_FOUND, "NOT_FOUND"),
    (ConflictError, code_pb2.FAILED_PRECONDITION, "CONFLICT"),
    (UnavailableError, code_pb2.UNAVAILABLE, "UNAVAILABLE"),
    (AdaptationError, code_pb2.ABORTED, "ADAPTATION_FAILED"),
    (CorruptArtifactError, code_pb2.DATA_LOSS, "CORRUPT_ARTIFACT"),
)
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: MetaSearchError) -> status_pb2.Status:
    """The status that says `error`."""
    code, reason = next(
        ((code, reason) for kind, code, reason in _CODES if isinstance(error, kind)), (code_pb2.INTERNAL, "INTERNAL")
    )
    status = status_pb2.Status(code=code, message=_short(str(error)))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if isinstance(error, FieldError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field[:200], description=_short(error.description)
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_s = {code_pb2.RESOURCE_EXHAUSTED: 10, code_pb2.UNAVAILABLE: 1}.get(code)
    if retry_s is not None:
        delay = duration_pb2.Duration(seconds=retry_s)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _short(text: str) -> str:
    """Cut so that the status, written twice, and its details fit into the trailers, of which peers take 8 KiB."""
    return text.encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore")


def grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    """The status code as gRPC's own enumeration."""
    return _STATUS[status.code]


def from_rpc_error(error: grpc.RpcError) -> MetaSearchError:
    """What a failed call says, as the error that the service raised."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad) and bad.field_violations:
                    return FieldError(bad.field_violations[0].field, bad.field_violations[0].description)
    number = code.value[0]
    kind = next((kind for kind, found, _ in _CODES if found == number), None)
    if kind is not None and kind is not AdaptationError:
        return kind(message)
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return UnavailableError(f"the service did not answer in time: {message}")
    return UnavailableError(f"the service failed: {code.name}: {message}")
