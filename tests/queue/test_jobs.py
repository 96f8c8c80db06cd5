"""The registry of kinds, and when a failed attempt is repeated."""

import pytest

from toolcrib.queue.jobs import ClaimedJob, Jobs, Retry


async def handle(context: None, claimed: ClaimedJob) -> None:
    """Stands for any handler."""


def test_pauses_grow_by_the_factor_up_to_the_cap() -> None:
    retry = Retry(first_s=2, factor=4, cap_s=100, jitter=0.2)
    assert [retry.delay_s(n, chance=0.5) for n in (1, 2, 3, 4, 5, 10_000)] == [2, 8, 32, 100, 100, 100]


def test_a_pause_varies_by_its_jitter() -> None:
    retry = Retry(first_s=10, jitter=0.2)
    assert [retry.delay_s(1, chance=c) for c in (0.0, 1.0)] == pytest.approx([8, 12])
    assert all(8 <= retry.delay_s(1) <= 12 for _ in range(100))


def test_a_kind_has_one_handler() -> None:
    jobs: Jobs[None] = Jobs()
    assert jobs.job("thing.do", max_attempts=3)(handle) is handle
    with pytest.raises(ValueError, match=r"thing\.do"):
        jobs.job("thing.do")(handle)


@pytest.mark.parametrize("name", ["thing", "Thing.do", "thing.do.more", "thing.", ".do", "thing do"])
def test_a_kind_is_called_noun_verb(name: str) -> None:
    jobs: Jobs[None] = Jobs()
    with pytest.raises(ValueError, match="noun"):
        jobs.job(name)


def test_registries_join_unless_they_share_a_kind() -> None:
    one, other = Jobs[None](), Jobs[None]()
    one.job("thing.do")(handle)
    other.job("thing.undo", timeout_s=7)(handle)
    one.include(other)
    assert one.kinds["thing.undo"].timeout_s == 7
    with pytest.raises(ValueError, match=r"thing\.undo"):
        one.include(other)
