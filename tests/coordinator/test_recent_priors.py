"""Which priors are kept."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.recent_priors import RecentPriors


def test_what_was_not_asked_for_the_longest_goes_first():
    priors: RecentPriors[str] = RecentPriors(most_bytes=30)
    for digest in "abc":
        priors.add(digest, digest.upper(), 10)
    assert priors.get("a") == "A"
    priors.add("d", "D", 10)
    assert [priors.get(digest) for digest in "abcd"] == ["A", None, "C", "D"]


def test_one_that_is_too_large_is_kept_alone():
    priors: RecentPriors[str] = RecentPriors(most_bytes=30)
    priors.add("a", "A", 10)
    priors.add("b", "B", 31)
    assert (priors.get("a"), priors.get("b")) == (None, "B")
    priors.add("c", "C", 30)
    assert (priors.get("b"), priors.get("c")) == (None, "C")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40), st.booleans()), max_size=40))
def test_no_more_is_kept_than_fits_and_nothing_is_let_go_without_need(steps: list[tuple[str, int, bool]]) -> None:
    priors: RecentPriors[int] = RecentPriors(most_bytes=50)
    naive: list[tuple[str, int]] = []
    """The last that was asked for at the end."""
    for digest, size, is_new in steps:
        kept = dict(naive)
        if is_new:
            priors.add(digest, size, size)
            naive = [each for each in naive if each[0] != digest] + [(digest, size)]
            while sum(size for _, size in naive) > 50 and len(naive) > 1:
                naive.pop(0)
        else:
            assert priors.get(digest) == kept.get(digest)
            if digest in kept:
                naive.sort(key=lambda each: each[0] == digest)
