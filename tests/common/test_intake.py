"""Which tasks are done, as a number and a few exceptions."""

from hypothesis import given
from hypothesis import strategies as st

from common.intake import DoneTasks, Intake


def test_done_tasks_close_up_to_one_number() -> None:
    done = DoneTasks().plus([1, 3, 4])
    assert (done.below, done.above, done.end, done.gaps) == (0, (1, 3, 4), 5, (0, 2))
    done = done.plus([0])
    assert (done.below, done.above, done.end, done.gaps) == (2, (3, 4), 5, (2,))
    done = done.plus([2])
    assert (done.below, done.above, done.end, done.gaps) == (5, (), 5, ())


@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=3))
def test_nothing_is_forgotten_in_any_order(order: list[int], cuts: list[int]) -> None:
    done = DoneTasks()
    ends = [*sorted(cuts), len(order)]
    start = 0
    for end in ends:
        done = done.plus(order[start:end])
        start = end
        so_far = set(order[:end])
        assert set(range(done.below)) | set(done.above) == so_far
        assert set(done.gaps) == set(range(done.end)) - so_far
    assert done == DoneTasks(below=12)


def test_an_intake_reads_back_equal() -> None:
    intake = Intake(accepted=((3, 1), (5, 2)), rejected=(4,), done=DoneTasks(below=3, above=(4, 5)))
    assert Intake.model_validate_json(intake.model_dump_json()) == intake
