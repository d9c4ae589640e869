"""The whole pipeline on text that every installation has: `make demo`.

    python -m doge_ds.demo

Trains a proxy on Python code, C++ headers, docstrings, YAML and licences with the weights aimed at a sixth domain that
is never trained on, project descriptions in prose; then a base model on the uniform and one on the learned mixture,
with the same seed and the same order of sequences inside each domain; then measures both on held-out text, and on
few-shot questions that show the machinery and measure nothing; and writes runs/demo/report.html about all three. Every
stage is a command that is printed before it runs; stages that are finished already are not run again.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from doge_ds.json_files import write_json

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs/demo")
TARGET = "descriptions"
BASES = ("uniform", "doge")
TASKS = (
    "tests/fixtures/tasks_measuring_nothing"  # in place of six datasets of the hub, which a demo should not download
)


def main() -> int:
    """Run the stages, print the table, write runs/demo/summary.json; the exit status."""
    os.chdir(ROOT)
    store = FOLDER / "store"
    seconds = {}
    if (FOLDER / "summary.json").exists():
        seconds = json.loads((FOLDER / "summary.json").read_text())["seconds"]
    for name, result, made_from, command in stages(store):
        if is_newer(result, made_from):
            print(f"\n{name}: already there, {result}", flush=True)
            continue
        print(f"\n{name}:\n  {shlex.join(command)}", flush=True)
        began = time.monotonic()
        status = subprocess.run(command, env=_environment(), check=False).returncode
        if status != 0:
            print(f"error: {name} ended with status {status}; `make demo` goes on from here", file=sys.stderr)
            return status
        seconds[name] = round(time.monotonic() - began, 1)
    summary = summarize(seconds)
    write_json(FOLDER / "summary.json", summary)
    print(f"\n{table(summary)}\n\n{summary['note']}")
    print(f"\nwritten: {FOLDER / 'summary.json'}\nopen in a browser: {FOLDER / 'report.html'}")
    return 0


def is_newer(result: Path, made_from: list[Path]) -> bool:
    """Whether a stage's result is there and was made after what it is made from."""
    return result.exists() and all(result.stat().st_mtime >= path.stat().st_mtime for path in made_from)


def stages(store: Path) -> list[tuple[str, Path, list[Path], list[str]]]:
    """(name, what it leaves when it is finished, what that is made from, command) of each stage, in order."""
    programs = Path(sys.executable).parent
    ranks = min(2, os.cpu_count() or 1)
    launch = [str(programs / "deepspeed"), "--log_level", "error", "--num_accelerators", str(ranks)]
    prepare = [str(programs / "doge-ds"), "prepare", "--input", "environment", "--output", str(store)]
    prepare += ["--train_tokenizer", "6000", "--valid_fraction", "0.03"]
    learn = ["--config", "ds_configs/runs/demo_proxy.json"]
    mixtures = {"uniform": "uniform", "doge": str(FOLDER / "proxy/mixture.json")}
    found: list[tuple[str, Path, list[Path], list[str]]] = [
        (
            "prepare text",
            store / "manifest.json",
            [],
            prepare,
        ),
        (
            "learn the domain weights",
            FOLDER / "proxy/mixture.json",
            [store / "manifest.json"],
            [*launch, "doge_ds/train_proxy.py", *learn, "--output", str(FOLDER / "proxy")],
        ),
    ]
    for name in BASES:
        run = FOLDER / f"base_{name}"
        train = [*launch, "doge_ds/train_base.py", "--config", "ds_configs/runs/demo_base.json"]
        train += ["--mixture", mixtures[name], "--output", str(run)]
        found.append((f"train on the {name} mixture", run / "hf/config.json", [found[1][1]], train))
    for name in BASES:
        run = FOLDER / f"base_{name}"
        measure = [sys.executable, "eval/run.py", "--model", str(run / "hf"), "--data", str(store)]
        measure += ["--output", str(run / "results.json"), "--suite", "doge6", "--data_root", TASKS]
        found.append((f"measure the {name} model", run / "results.json", [run / "hf/config.json"], measure))
    report, runs = FOLDER / "report.html", [FOLDER / "proxy", *(FOLDER / f"base_{name}" for name in BASES)]
    write = [str(programs / "doge-ds"), "report", *map(str, runs), "-o", str(report)]
    found.append(("write the report", report, [result for _, result, _, _ in found[1:]], write))
    return found


def summarize(seconds: dict[str, float]) -> dict[str, Any]:
    """Weights and perplexities side by side, as they stand in the stages' own files."""
    weights = json.loads((FOLDER / "proxy/mixture.json").read_text())["domains"]
    results = {name: json.loads((FOLDER / f"base_{name}/results.json").read_text()) for name in BASES}
    domains = {}
    for domain in results["uniform"]["perplexity"]["domains"]:
        uniform, doge = (results[name]["perplexity"]["domains"][domain] for name in BASES)
        domains[domain] = {
            "weight": weights.get(domain),
            "is_target": domain == TARGET,
            "perplexity_uniform": uniform["perplexity"],
            "perplexity_doge": doge["perplexity"],
            "difference": _difference(doge["perplexity"], uniform["perplexity"]),
            "log_perplexity_difference": _difference(doge["log_perplexity"], uniform["log_perplexity"]),
        }
    return {
        "domains": domains,
        "seconds": seconds,
        "note": "One seed at this size is an illustration, not a result. The few-shot questions are a fixture and "
        "measure nothing.",
    }


def table(summary: dict[str, Any]) -> str:
    """The summary for the terminal: train domains by learned weight, then the target."""
    rows = sorted(summary["domains"].items(), key=lambda item: (item[1]["is_target"], -(item[1]["weight"] or 0)))
    lines = [f"{'domain':<14}  {'weight':>8}  {'uniform':>10}  {'DoGE':>10}  {'difference':>10}"]
    for name, row in rows:
        weight = "target" if row["is_target"] else f"{row['weight']:.3f}"
        cells = [_cell(row["perplexity_uniform"]), _cell(row["perplexity_doge"]), _cell(row["difference"], "+.2f")]
        lines.append("  ".join([f"{name:<14}", f"{weight:>8}", *(f"{cell:>10}" for cell in cells)]))
    return "\n".join(["held-out perplexity of two base models", *lines])


def _difference(value: float | None, other: float | None) -> float | None:
    """None where a model diverged or cost more than a number can hold: its results have null there."""
    return None if value is None or other is None else value - other


def _cell(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _environment() -> dict[str, str]:
    """CPU everywhere, and one thread for each core of a rank: ranks with more threads than that fight for the cores."""
    cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // min(2, cores))))
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; `make demo` goes on from here", file=sys.stderr)
        sys.exit(130)
