"""HyperOpt's searcher, which trials may fail without a measurement. Needs the package hyperopt."""

from typing import Any

from ray.tune.search.hyperopt import HyperOptSearch


class FailingHyperOptSearch(HyperOptSearch):
    """Tune's own raises where a trial ends without the metric."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See `Searcher.on_trial_complete`."""
        is_failed = error or result is None or self.metric not in result
        super().on_trial_complete(trial_id, None if is_failed else result, is_failed)
