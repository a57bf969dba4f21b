"""Parts of the real coordinator whose work is charged to the simulated clock."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from common.intake import Intake
from common.meta.prior import Prior
from coordinator.priors import StudyPriors
from coordinator.simulation.costs import Costs, Sizes
from coordinator.simulation.events import Clock
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Add, Expect, Ledger, Stored, Transaction
from coordinator.store.records import PriorPointer


class ChargedLedger:
    """The coordinator's view of a ledger; users' own processes have the ledger itself."""

    def __init__(self, ledger: Ledger, clock: Clock, costs: Costs) -> None:
        self._ledger = ledger
        self._clock = clock
        self._costs = costs
        self.num_commits = 0

    def commit(self, transaction: Transaction) -> Expect | Add | None:
        """See `Ledger.commit`."""
        self._charge(1)
        return self._ledger.commit(transaction)

    def submit(self, transactions: Sequence[Transaction]) -> Future[list[Expect | Add | None]]:
        """See `Ledger.submit`."""
        self._charge(len(transactions))
        return self._ledger.submit(transactions)

    def get(self, *keys: str) -> list[Stored | None]:
        """See `Ledger.get`."""
        self._clock.charge("store", self._costs.read_s + self._costs.read_per_record_s * len(keys))
        return self._ledger.get(*keys)

    def scan(self, prefix: str, after: str = "", limit: int = 1000, reverse: bool = False) -> list[Stored]:
        """See `Ledger.scan`."""
        found = self._ledger.scan(prefix, after, limit, reverse)
        self._clock.charge("store", self._costs.read_s + self._costs.read_per_record_s * len(found))
        return found

    def counter(self, name: str) -> int:
        """See `Ledger.counter`."""
        self._clock.charge("store", self._costs.read_s)
        return self._ledger.counter(name)

    def subscribe(self, listener: Callable[[str | None], None]) -> Callable[[], None]:
        """See `Ledger.subscribe`."""
        return self._ledger.subscribe(listener)

    def ping(self) -> None:
        """See `Ledger.ping`."""
        self._ledger.ping()

    def close(self) -> None:
        """See `Ledger.close`."""
        self._ledger.close()

    def _charge(self, num_commits: int) -> None:
        self.num_commits += num_commits
        self._clock.charge("store", self._costs.commit_s * num_commits)


class ChargedPriors(StudyPriors):
    """Priors that are small here and as large as `sizes` says to the clock."""

    def __init__(
        self, store: JobStore, artifacts: str, now_s: Callable[[], float], clock: Clock, costs: Costs, sizes: Sizes
    ) -> None:
        super().__init__(store, artifacts, now_s)
        self._clock = clock
        self._costs = costs
        self._sizes = sizes

    def save(
        self,
        tenant: str,
        study: str,
        prior: Prior,
        made_by: str,
        metrics: Mapping[str, float],
        intake: Intake | None = None,
    ) -> PriorPointer:
        """See `StudyPriors.save`; the outer step was just before."""
        self._clock.charge("outer step", self._costs.step_s_per_byte * self._sizes.prior_bytes)
        return super().save(tenant, study, prior, made_by, metrics, intake)

    def _keep(self, prior: Prior) -> None:
        """A version was written, or read."""
        self._clock.charge("priors", self._costs.save_s + self._costs.save_s_per_byte * self._sizes.prior_bytes)
        self._priors.add(prior.digest(), prior, self._sizes.prior_bytes)


class InTheForeground(ThreadPoolExecutor):
    """Does at once what it is given, on the caller's thread: no simulation depends on threads."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """See `Executor.submit`."""
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future
