"""The jobs of a tenant that have not ended, of all studies, by the indexes that hold them."""

from coordinator.jobs import Job
from coordinator.store.ledger import Ledger, Stored
from coordinator.store.records import Page, job_key, read_job

_INDEXES = ("active", "queue", "paused")


def unfinished(ledger: Ledger, tenant: str, limit: int, token: str) -> Page:
    """Jobs that run, then the queue in its order, then paused ones.

    It costs what it returns, however many jobs have ended. A job that changes its state between two pages may be met
    twice, or not at all.

    Args:
        ledger: of the job store.
        tenant: whose jobs.
        limit: the most to return.
        token: of the page before; empty at first. Other words begin at the beginning.
    """
    index, _, place = token.partition("-")
    found: list[Stored] = []
    for name in _INDEXES[_INDEXES.index(index) :] if index in _INDEXES else _INDEXES:
        prefix = f"{name}/{tenant}/"
        after = prefix + place.replace("-", "/") if name == index else ""
        found += ledger.scan(prefix, after, limit + 1 - len(found))
        if len(found) > limit:
            break
    shown = found[:limit]
    return Page(_jobs(ledger, tenant, shown), _token(shown[-1], tenant) if len(found) > limit else "")


def _jobs(ledger: Ledger, tenant: str, entries: list[Stored]) -> list[Job]:
    keys = [job_key(tenant, entry.record["study"], entry.key.rpartition("/")[2]) for entry in entries]
    jobs = [read_job(stored) for stored in (ledger.get(*keys) if keys else ()) if stored is not None]
    return [job for job in jobs if not job.state.is_terminal]


def _token(entry: Stored, tenant: str) -> str:
    """The key without the tenant, in the letters of page tokens."""
    name, _, place = entry.key.partition(f"/{tenant}/")
    return f"{name}-{place}".replace("/", "-")
