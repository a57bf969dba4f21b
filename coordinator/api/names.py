"""Resource names, ids and page tokens of requests. Checks all that comes in."""

import re

from coordinator.api.errors import FieldError

ID_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
UUID4_PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
DEFAULT_PAGE, MAX_PAGE = 50, 1000
LATEST = "latest"
ALL_STUDIES = "-"


def study_id(name: str, field: str) -> str:
    """The id in `studies/{study}`.

    Raises:
        FieldError: it is not such a name.
    """
    return _parts(name, field, "studies")[0]


def job_ids(name: str, field: str = "name") -> tuple[str, str]:
    """Study and job of `studies/{study}/jobs/{job}`.

    Raises:
        FieldError: it is not such a name.
    """
    study, job = _parts(name, field, "studies", "jobs")
    return study, job


def prior_ids(name: str) -> tuple[str, int | None]:
    """Study and version of `studies/{study}/priors/{version}`; None for `latest`.

    Raises:
        FieldError: it is not such a name.
    """
    study, version = _parts(name, "name", "studies", "priors")
    if version == LATEST:
        return study, None
    if not version.isdecimal() or len(version) > 8:
        raise FieldError("name", f"must end in a version or {LATEST!r}, got {name!r}")
    return study, int(version)


def dataset_id(name: str, field: str = "name") -> str:
    """The SHA-256 in `datasets/{sha256}`.

    Raises:
        FieldError: it is not such a name.
    """
    (sha256,) = _parts(name, field, "datasets")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise FieldError(field, f"must be datasets/SHA256, got {name!r}")
    return sha256


def checked_id(text: str, field: str) -> str:
    """An id that a user chose.

    Raises:
        FieldError: it has other letters, or is too long.
    """
    if not ID_PATTERN.fullmatch(text):
        raise FieldError(field, f"must be 1 to 63 lower-case letters, digits and inner hyphens, got {text[:80]!r}")
    return text


def _parts(name: str, field: str, *collections: str) -> list[str]:
    pieces = name.split("/")
    form = "/".join(f"{collection}/{{{collection}}}" for collection in collections)
    if len(pieces) != 2 * len(collections) or tuple(pieces[::2]) != collections or not all(pieces):
        raise FieldError(field, f"must have the form {form}, got {name[:200]!r}")
    ids = pieces[1::2]
    for part in ids:
        if not re.fullmatch(r"[a-z0-9-]{1,64}", part):
            raise FieldError(field, f"must have the form {form} with ids of a-z, 0-9 and hyphens, got {name[:200]!r}")
    return ids


def revision(token: str) -> int:
    """The revision that a watch goes on from; 0 at first.

    Raises:
        FieldError: it is not a token that a watch answered with.
    """
    if not token:
        return 0
    if not token.isdecimal() or len(token) > 12:
        raise FieldError(
            "resume_token", f"is not one that this service gave, got {token[:80]!r}; leave it empty to start"
        )
    return int(token)


def page_size(value: int) -> int:
    """The size of a page.

    Raises:
        FieldError: it is negative.
    """
    if value < 0:
        raise FieldError("page_size", f"must be at least 0, got {value}")
    return min(value or DEFAULT_PAGE, MAX_PAGE)


def page_token(value: str) -> str:
    """Where a page starts.

    Raises:
        FieldError: it is not a token that a page ended with.
    """
    if not re.fullmatch(r"[a-z0-9-]{0,80}", value):
        raise FieldError(
            "page_token", f"is not one that this service gave, got {value[:80]!r}; leave it empty to start"
        )
    return value
