"""What reading the base model's batches costs, beside other libraries that mix domains.

    python -m venv RIVALS
    RIVALS/bin/pip install torch==2.13.0 mosaicml-streaming==0.13.0 litdata==0.2.76 megatron-core==0.16.1
    python benchmarks/loader.py --rivals RIVALS/bin/python

Sides, each in a process of its own, all on the same random tokens (7 domains, weights of SlimPajama, 140 million tokens
in proportion to the weights) and in turns of a second while the others are stopped; see loader_sides.py for how each
is used. Prints JSON: of each side and window length

    tokens_a_second     median of the turns, quartiles, and seconds of CPU (all threads) a second
    first_batch         seconds from building everything to the first batch: the very first time, and once what the
                        library keeps on disk is there (median); imports are not counted
    resume              the same at sample 10 million, from the state that the library keeps; bytes of the state as JSON
    resident            bytes after 1,000 batches beyond those after the imports; of these, pages of files
    prefix_error        largest distance of a domain's count from its share over the first 100,000 samples: at the ends
                        of batches, which is all that a step sees, and at any sample as they stand in the batches

and of each turn our tokens a second over those of the fastest other side. Every batch of the first 100,000 samples is
held against the store: its rows must be windows of it. Progress goes to stderr, and at the end a table.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.loader_sides import DOCUMENT, SHARES, SIDES  # noqa: E402
from tests.stores import make_store  # noqa: E402

OURS = "doge_ds"
APART = ["mosaicml-streaming", "litdata", "megatron-core"]  # pin other versions of what we need
# No library shall ask the network for anything; one thread each, as launchers start ranks.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LITDATA_DISABLE_VERSION_CHECK": "1"}


def main() -> None:
    """Measure everything and print it."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="loader_") as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "store").exists():
            make_store(folder / "store", {name: _tokens(name, options) for name in SHARES}, vocabulary_size=50257)
        results = {
            name: {length: measure_alone(name, length, folder, options) for length in options.lengths}
            for name in options.sides
        }
        for length in options.lengths:
            for name, found in measure_in_turns(length, folder, options).items():
                results[name][length] |= found
    facts = {
        "benchmark": "loader",
        "tokens": options.tokens,
        "turns": options.turns,
        "seconds_a_turn": options.seconds,
        "cores": os.cpu_count(),
        "versions": _versions(options),
    }
    ratios = {length: _ratios(results, length) for length in options.lengths}
    print(json.dumps({**facts, "sides": results, "ours/best": ratios}, indent=2))
    print(table(results, options.lengths), file=sys.stderr)


class Worker:
    """A process of loader_worker.py. It is stopped while it has nothing to do, also its threads."""

    def __init__(self, name: str, length: int, folder: Path, options: argparse.Namespace) -> None:
        self._name = name
        self._log = (folder / f"{name} {length}.log").open("a")
        python = options.rivals if name in APART else sys.executable
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks/loader_worker.py"), name, str(folder), str(length)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | ENVIRONMENT,
        )

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """One command's result. Raises RuntimeError where the process ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        print(json.dumps({"do": do, **more}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended: see {self._log.name}")
        self._process.send_signal(signal.SIGSTOP)
        found: dict[str, Any] = json.loads(line)
        print(self._name, do, line.strip(), file=sys.stderr, flush=True)
        return found

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def measure_alone(name: str, length: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All but the speed: first batch and resume in fresh processes, memory, prefix error."""
    with Worker(name, length, folder, options) as worker:
        worker.ask("prepare")
    with Worker(name, length, folder, options) as worker:
        very_first = worker.ask("first")["seconds"]
        resident = worker.ask("memory")
    with Worker(name, length, folder, options) as worker:
        state_bytes = worker.ask("state")["bytes"]
    found = {"first_batch": {"very_first": very_first}, "resident": resident, "resume": {"state_bytes": state_bytes}}
    for key, resume in (("first_batch", False), ("resume", True)):
        if resume and state_bytes is None:
            continue
        seconds = []
        for _ in range(options.repeats):
            with Worker(name, length, folder, options) as worker:
                seconds.append(worker.ask("first", resume=resume)["seconds"])
        found[key] |= {"median": statistics.median(seconds), "all": seconds}
    if length == options.lengths[0]:
        with Worker(name, length, folder, options) as worker:
            found["prefix_error"] = worker.ask("check", samples=options.samples)
    return found


def measure_in_turns(length: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of all sides; the first turn of each is not counted."""
    workers = {name: Worker(name, length, folder, options) for name in options.sides}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    try:
        for worker in workers.values():
            worker.ask("first")
        for turn in range(options.turns + 1):
            for name, worker in workers.items():
                found = worker.ask("turn", seconds=options.seconds)
                if turn > 0:
                    turns[name].append(found)
    finally:
        for worker in workers.values():
            worker.__exit__()
    return {name: _speed(found) for name, found in turns.items()}


def _speed(turns: list[dict[str, float]]) -> dict[str, Any]:
    speeds = [turn["tokens"] / turn["seconds"] for turn in turns]
    return {
        "tokens_a_second": {
            "median": statistics.median(speeds),
            "quartiles": statistics.quantiles(speeds, n=4),
            "cpu_seconds_a_second": statistics.median(turn["cpu_seconds"] / turn["seconds"] for turn in turns),
            "tokens_a_cpu_second": statistics.median(turn["tokens"] / turn["cpu_seconds"] for turn in turns),
            "all": speeds,
        }
    }


def _ratios(results: dict[str, Any], length: int) -> dict[str, Any] | None:
    """Our tokens a second over the best of the others, turn by turn."""
    speeds = {name: found[length]["tokens_a_second"]["all"] for name, found in results.items()}
    if OURS not in speeds or len(speeds) < 2:
        return None
    ours = speeds.pop(OURS)
    best = [max(turn) for turn in zip(*speeds.values(), strict=True)]
    ratios = [one / other for one, other in zip(ours, best, strict=True)]
    return {"median": statistics.median(ratios), "quartiles": statistics.quantiles(ratios, n=4)}


def table(results: dict[str, Any], lengths: list[int]) -> str:
    """The results in Markdown, one line a side."""
    first = lengths[0]
    heads = [f"million tokens/s at {length} (a CPU second)" for length in lengths]
    heads += ["first batch, s (the very first)", "resume, s", "state, bytes", "resident, MB (of files)"]
    heads.append("prefix error at batch ends (anywhere)")
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, of_lengths in results.items():
        found = of_lengths[first]
        speeds = [of_lengths[length]["tokens_a_second"] for length in lengths]
        cells = [f"{speed['median'] / 1e6:.1f} ({speed['tokens_a_cpu_second'] / 1e6:.1f})" for speed in speeds]
        starts, resume, resident = found["first_batch"], found["resume"], found["resident"]
        cells.append(f"{starts['median']:.3f} ({starts['very_first']:.3f})")
        cells.append(f"{resume['median']:.3f}" if "median" in resume else "")
        cells.append(str(resume["state_bytes"] or ""))
        cells.append(f"{resident['bytes'] / 1e6:.0f} ({resident['of_files'] / 1e6:.0f})")
        error = found["prefix_error"]
        cells.append(f"{error['at_batch_ends']:.2f} ({error['anywhere']:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tokens(name: str, options: argparse.Namespace) -> np.ndarray:
    """Random token ids: no library looks at them."""
    documents = round(options.tokens * SHARES[name] / sum(SHARES.values()) / DOCUMENT)
    generator = np.random.default_rng(list(name.encode()))
    return generator.integers(0, 50257, documents * DOCUMENT, dtype=np.uint16)


def _versions(options: argparse.Namespace) -> dict[str, Any]:
    """Of the libraries, and of numpy and torch in both environments."""
    program = (
        "import importlib.metadata as m, json, sys; print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    command = [options.rivals, "-c", program, *APART, "numpy", "torch"]
    apart = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {"rivals": apart, **{name: version(name) for name in ("datasets", "numpy", "torch")}}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", default=sys.executable, help="the Python that has these: " + ", ".join(APART))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES), metavar="SIDE")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048], help="tokens of a window")
    parser.add_argument("--turns", type=int, default=15, help="of each side, one more to warm up")
    parser.add_argument("--seconds", type=float, default=1, help="of a turn")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for first batch and resume")
    parser.add_argument("--samples", type=int, default=100_000, help="whose shares are checked")
    parser.add_argument("--tokens", type=int, default=140_000_000, help="of the store")
    parser.add_argument("--folder", type=Path, help="keep the store and all formats here, for another time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
