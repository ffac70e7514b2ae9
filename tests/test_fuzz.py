"""Spoilt files are refused or decoded, and nothing else comes of them."""

import os
import time

from hostile.fuzz import fuzz


def test_no_spoilt_file_makes_anything_but_a_refusal(tmp_path):
    """`make fuzz` goes on for as long as it is told; here it is long enough to meet each format."""
    seed = int(os.environ.get("FUZZ_SEED", time.time()))
    outcomes, failures = fuzz(float(os.environ.get("FUZZ_SECONDS", "20")), seed, tmp_path)
    assert not failures, f"seed {seed}: {failures[0]}"
    assert sum(count for outcome, count in outcomes.items() if "refused" in outcome) > 0
    assert sum(count for outcome, count in outcomes.items() if "decoded" in outcome) > 0
