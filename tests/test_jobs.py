"""Jobs in other processes: each begins when what it needs is done."""

import time
from functools import partial
from pathlib import Path

import pytest

from minimind_core.book import jobs
from minimind_core.book.jobs import Job, run_jobs


def mark(folder, name, after=()):
    """Leave a file, if those of others are there."""
    for other in after:
        assert (Path(folder) / other).exists(), other
    print(f"made\n{name}")
    (Path(folder) / name).touch()


def slow(folder):
    time.sleep(1.0)
    mark(folder, "slow")


def fail():
    raise ValueError("no")


def test_a_job_begins_when_the_one_before_it_is_done(tmp_path, capfd):
    run_jobs(
        {
            "last": Job(
                partial(mark, tmp_path, "last", ("slow",)), after="slow"
            ),
            "slow": Job(partial(slow, tmp_path)),
            # It needs nobody, so it does not wait for the slow one.
            "beside": Job(partial(mark, tmp_path, "beside")),
        },
        2,
    )
    assert {f.name for f in tmp_path.iterdir()} == {"last", "slow", "beside"}
    told = capfd.readouterr().out.splitlines()
    ends = [line for line in told if "/3 " in line]
    assert [line.split(":")[0] for line in ends] == [
        "1/3 beside", "2/3 slow", "3/3 last",
    ]  # fmt: skip
    assert "  last: made" in told and "  last: last" in told


def test_a_job_that_fails_stops_those_that_have_not_begun(tmp_path):
    with pytest.raises(ValueError, match="no"):
        run_jobs(
            {
                "bad": Job(fail),
                "next": Job(partial(mark, tmp_path, "next"), after="bad"),
            },
            2,
        )
    assert not (tmp_path / "next").exists()


def test_jobs_that_wait_for_nobody_or_for_one_another_are_refused():
    with pytest.raises(ValueError, match="there is no job 'b'"):
        run_jobs({"a": Job(fail, after="b")}, 2)
    with pytest.raises(ValueError, match="in a circle: a, b"):
        run_jobs({"a": Job(fail, after="b"), "b": Job(fail, after="a")}, 2)


def test_lines_of_two_at_a_time_say_whose_they_are(capsys):
    lines = jobs._Lines("binding")
    lines.write("\rstep 1\rstep 2\nsee")
    lines.write("n\n")
    assert capsys.readouterr().out == "  binding: step 2\n  binding: seen\n"
