"""Which tasks a version of the prior took in: what makes chance repeatable, and every task count once. No torch.

Tasks are numbered in the order in which they are drawn: round after round, and family after family within a round.
"""

from collections.abc import Iterable

from pydantic import Field

from common.values import Frozen


class DoneTasks(Frozen):
    """The tasks that have had their effect, or never will. However many, they are a number and a few exceptions."""

    below: int = Field(0, ge=0)
    """All tasks with a lower number are done."""
    above: tuple[int, ...] = ()
    """Done besides, ascending; higher than `below`, which is not done."""

    @property
    def end(self) -> int:
        """No task from this number on is done."""
        return self.above[-1] + 1 if self.above else self.below

    @property
    def gaps(self) -> tuple[int, ...]:
        """Tasks before `end` that are not done, ascending."""
        done = set(self.above)
        return tuple(number for number in range(self.below, self.end) if number not in done)

    def plus(self, numbers: Iterable[int]) -> "DoneTasks":
        """With more tasks done, none of which was done before."""
        above, below = {*self.above, *numbers}, self.below
        while below in above:
            above.remove(below)
            below += 1
        return DoneTasks(below=below, above=tuple(sorted(above)))


class Intake(Frozen):
    """What made a version of the prior out of the earlier ones, where the schedule leaves it to chance.

    A task's update follows from its number and the version that it began from; a version from the updates that it took
    in. So the intakes of all versions, with configuration and data, give the same priors again, bit for bit.
    """

    accepted: tuple[tuple[int, int], ...]
    """Number of each task whose update entered, and the version that it began from; by number."""
    rejected: tuple[int, ...] = ()
    """Tasks whose result was refused since the version before."""
    done: DoneTasks | None = None
    """In buffered mode, all tasks that no later version may take in."""
