"""Is every accepted job done once and well when all that can break does break? The suite of `make chaos`, small."""

import sys

import pytest
from chaos.run import Plan, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by /proc and pidfd")


def test_whatever_breaks_no_accepted_job_is_lost_or_done_twice_and_results_are_those_of_a_quiet_run(tmp_path):
    tally = run(Plan(images=25, videos=3, seed=7), tmp_path, print)
    print(tally.table())
    assert tally.violations == [], f"seed {tally.seed}; the logs are in {tmp_path / 'logs'}"
