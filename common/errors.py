"""Every error this project raises on purpose.

MetaSearchError
 ├── InvalidInputError     what the caller passed is wrong; the message names the field, the value and the remedy
 ├── NotFoundError         a named thing does not exist
 ├── ConflictError         right in itself, but not in the present state (another version, an existing run)
 │    └── AlreadyExistsError   something else goes by that name
 ├── UnavailableError      a resource is missing or did not answer; trying again later may succeed
 │    ├── DataUnavailableError the images that a job names
 │    └── QuotaError           a tenant's limit is reached
 ├── UnauthenticatedError  no valid token came with a call
 ├── ForbiddenError        the token's role does not allow the call
 ├── AdaptationError       a learning task could not be adapted to (diverged, ran out of memory, killed too often)
 └── CorruptArtifactError  a stored artifact is truncated or altered
"""

from typing import ClassVar


class MetaSearchError(Exception):
    """Base class; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class InvalidInputError(MetaSearchError):
    """What the caller passed is wrong."""

    exit_code = 2


class NotFoundError(MetaSearchError):
    """A named thing does not exist."""

    exit_code = 3


class ConflictError(MetaSearchError):
    """Right in itself, but not in the present state."""

    exit_code = 4


class AlreadyExistsError(ConflictError):
    """Something else goes by that name or request id."""


class UnavailableError(MetaSearchError):
    """A resource is missing or did not answer."""

    exit_code = 5


class DataUnavailableError(UnavailableError):
    """The images that a job names cannot be had now. Each try counts, as the reason may well be the job's own."""


class QuotaError(UnavailableError):
    """A tenant's limit is reached; trying again later may succeed."""


class UnauthenticatedError(MetaSearchError):
    """No valid token came with a call."""

    exit_code = 8


class ForbiddenError(MetaSearchError):
    """The token's role does not allow the call."""

    exit_code = 8


class AdaptationError(MetaSearchError):
    """A learning task could not be adapted to."""

    exit_code = 6


class CorruptArtifactError(MetaSearchError):
    """A stored artifact is truncated or altered."""

    exit_code = 7


INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it
