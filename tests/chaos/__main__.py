"""Runs the chaos suite at full size, prints what came of it, and keeps the logs if anything is wrong.

PYTHONPATH=tests python -m chaos [--images 200] [--videos 10] [--rounds 3] [--seed N] [--fsync always]
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from chaos.cluster import Shape, Stuck
from chaos.run import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--videos", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="times that every trouble strikes")
    parser.add_argument("--seed", type=int, help="of an earlier run, to have its work and troubles again")
    parser.add_argument("--fsync", choices=("always", "everysec"), default="always", help="Redis's appendfsync")
    parser.add_argument("--keep", action="store_true", help="keep the logs in any case")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.randrange(1_000_000)
    plan = Plan(
        images=asked.images,
        videos=asked.videos,
        seed=seed,
        rounds=asked.rounds,
        shape=Shape(apis=2, pools=(2, 1), fsync=asked.fsync),
    )
    root = Path(tempfile.mkdtemp(prefix="quietframe-chaos-"))
    print(f"seed {seed}, logs in {root / 'logs'}", flush=True)
    wrong = True
    try:
        tally = run(plan, root, lambda text: print(text, flush=True))
        print(f"\n{tally.table()}\n")
        wrong = bool(tally.violations)
        for violation in tally.violations:
            print(f"WRONG: {violation}")
    except Stuck as err:
        print(f"WRONG: {err}")
    finally:
        if wrong:
            print(f"The logs are in {root / 'logs'}. The same again: make chaos CHAOS='--seed {seed}'")
        elif not asked.keep:
            shutil.rmtree(root)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
