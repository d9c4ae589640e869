"""Spoilt input by the thousand: run configurations, mixtures, manifests, metrics and what else users and runs write.

    python benchmarks/fuzz.py > fuzz.json            10,000 cases
    python benchmarks/fuzz.py --cases 2000 --seed 7 --kinds mixture schedule

Every case starts from a valid file and is spoilt by the strategies of tests/fuzz/, which `make test` draws fewer of.
It works, or is refused by an error of ours in one line. Prints JSON: how many of each kind worked, and how many were
refused by which class of error. Where anything else escapes, its smallest form is printed on stderr, and the exit
status is 1. The same seed gives the same cases.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says on standard output that it found none

from tests.fuzz.kinds import KINDS, Kind, fresh_folder, outcome


def main() -> int:
    """Draw the cases; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="only these")
    options = parser.parse_args()
    began, counts, escaped = time.monotonic(), {}, {}
    for number, name in enumerate(options.kinds):
        cases = options.cases // len(options.kinds) + (number < options.cases % len(options.kinds))
        with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
            counts[name], failure = run_kind(KINDS[name], Path(folder) / "kind", cases, options.seed)
        print(f"{name}: {dict(counts[name])}", file=sys.stderr, flush=True)
        if failure:
            escaped[name] = failure
            print(f"{failure}\n", file=sys.stderr, flush=True)
    total: Counter[str] = sum(counts.values(), Counter())
    works = total.pop("works", 0)
    facts = {
        "cases": works + total.total(),
        "seed": options.seed,
        "works": works,
        "refused": total.total(),
        "refused_by": dict(total.most_common()),
        "kinds": {name: dict(found.most_common()) for name, found in counts.items()},
        "escaped": escaped,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(facts, indent=2))
    return 1 if escaped else 0


def run_kind(kind: Kind, folder: Path, cases: int, drawn_by: int) -> tuple[Counter[str], str]:
    """How many cases had which outcome; and of one that escaped the smallest form and its traceback, or ""."""
    counts: Counter[str] = Counter()
    fresh_folder(kind, folder)
    last: Any = None

    @seed(drawn_by)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(case=kind.cases)
    def run(case: Any) -> None:
        nonlocal last
        last = case
        counts[outcome(kind, folder, case)] += 1

    try:
        run()
    except Exception as error:
        lines = "".join(traceback.format_exception(error)[-4:])
        return counts, f"{str(last)[:2000]}\n{lines}"
    return counts, ""


if __name__ == "__main__":
    sys.exit(main())
