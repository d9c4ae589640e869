"""What held-out perplexity costs beside lm-eval's rolling log-likelihood and the loop that one writes by hand.

    OMP_NUM_THREADS=2 python benchmarks/perplexity.py
    python benchmarks/perplexity.py --vocabularies 50257 --layers 12 --width 768 --length 1024

Three sides, each in a process of its own, measure the same text with the same model in the same windows at the same
batch size, in turns, while the others are stopped; perplexity_worker.py says how each is used. Totals must agree to
1e-5, or the benchmark fails. Prints JSON: of each vocabulary and side

    tokens_a_second     median of the turns and quartiles
    peak_bytes          the most that the process ever held, and what it had held before its first turn

and of each turn our tokens a second over those of each other side and of the faster one. A table goes to stderr.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("doge_ds", "lm_eval", "plain")
OURS, *OTHERS = SIDES
# No library shall ask the network for anything.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    """Measure everything and print it."""
    options = _options()
    facts = {
        "benchmark": "perplexity",
        "layers": options.layers,
        "width": options.width,
        "tokens_of_context": options.length,
        "batch_size": options.batch_size,
        "windows_a_turn": options.windows,
        "turns": options.turns,
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "transformers", "lm_eval", "numpy")},
    }
    results = {str(vocabulary): measure(vocabulary, options) for vocabulary in options.vocabularies}
    print(json.dumps({**facts, "vocabularies": results}, indent=2))
    print(table(results), file=sys.stderr)


class Worker:
    """A process of perplexity_worker.py. It is stopped while it has nothing to do, also its threads."""

    def __init__(self, side: str, settings: dict[str, int]) -> None:
        self._side = side
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks/perplexity_worker.py"), side, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # progress bars
            text=True,
            env=os.environ | ENVIRONMENT,
        )

    def ask(self, what: str) -> dict[str, Any]:
        """One command's result. Raises RuntimeError where the process ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        print(what, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._side} ended: run benchmarks/perplexity_worker.py by hand to see why")
        self._process.send_signal(signal.SIGSTOP)
        print(self._side, what, line.strip(), file=sys.stderr, flush=True)
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(vocabulary: int, options: argparse.Namespace) -> dict[str, Any]:
    """All sides at one size of the vocabulary; the first turn of each is not counted."""
    names = ("layers", "width", "length", "batch_size", "windows")
    settings = {"vocabulary": vocabulary, **{name: getattr(options, name) for name in names}}
    workers: dict[str, Worker] = {}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    try:
        for name in SIDES:
            workers[name] = Worker(name, settings)
            turns[name].append(workers[name].ask("turn"))
        for turn in range(options.turns):
            for place in range(len(SIDES)):
                name = SIDES[(turn + place) % len(SIDES)]  # each comes first, second and last alike
                turns[name].append(workers[name].ask("turn"))
        memory = {name: worker.ask("memory") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.end()
    _check_totals(turns)
    speeds = {name: [turn["tokens"] / turn["seconds"] for turn in found[1:]] for name, found in turns.items()}
    sides = {
        name: {
            "tokens_a_second": {**_middle(speeds[name]), "all": speeds[name]},
            "nats_a_token": turns[name][0]["nats"] / turns[name][0]["tokens"],
            **memory[name],
        }
        for name in SIDES
    }
    best = [max(turn) for turn in zip(*(speeds[name] for name in OTHERS), strict=True)]
    over = {"the_faster": best, **{name: speeds[name] for name in OTHERS}}
    ratios = {
        name: _middle([one / other for one, other in zip(speeds[OURS], found, strict=True)])
        for name, found in over.items()
    }
    peaks = {name: memory[OURS]["peak_bytes"] / memory[name]["peak_bytes"] for name in OTHERS}
    return {"sides": sides, "ours_over": ratios, "our_peak_over": peaks}


def _check_totals(turns: dict[str, list[dict[str, Any]]]) -> None:
    """Raises ValueError where two sides, or two turns of one, do not say the same."""
    totals = {turn["nats"] for found in turns.values() for turn in found}
    if not max(totals) - min(totals) <= 1e-5 * min(totals):
        raise ValueError(f"the sides' nats differ: { {name: found[0]['nats'] for name, found in turns.items()} }")


def _middle(numbers: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(numbers), "quartiles": statistics.quantiles(numbers, n=4)}


def table(results: dict[str, Any]) -> str:
    """The results in Markdown, one line a side."""
    lines = ["| vocabulary | | tokens/s | ours is faster by | peak memory, MB |", "|---" * 5 + "|"]
    for vocabulary, found in results.items():
        for name, side in found["sides"].items():
            ratio = found["ours_over"].get(name)
            cells = [vocabulary, name, f"{side['tokens_a_second']['median']:,.0f}"]
            cells.append(
                f"{ratio['median']:.2f} ({ratio['quartiles'][0]:.2f} to {ratio['quartiles'][2]:.2f})" if ratio else ""
            )
            cells.append(f"{side['peak_bytes'] / 1e6:,.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[8000, 50257])
    parser.add_argument("--layers", type=int, default=6, help="of a GPT-2")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--length", type=int, default=512, help="tokens that the model gets of a window")
    parser.add_argument("--batch_size", type=int, default=8, help="windows at a time")
    parser.add_argument("--windows", type=int, default=16, help="of a turn")
    parser.add_argument("--turns", type=int, default=12, help="of each side, one more to warm up")
    return parser.parse_args()


if __name__ == "__main__":
    main()
