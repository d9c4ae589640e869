"""Kill a run 20 times at random moments, start it again each time, and compare it with one that nothing happened to.

    DS_ACCELERATOR=cpu python benchmarks/chaos.py > chaos.json
    DS_ACCELERATOR=cpu python benchmarks/chaos.py --kills 5 --stages proxy --seed 3

For the proxy (ZeRO-2) and the base (ZeRO-3), two ranks each, dropout on: train_proxy.py and train_base.py as they are,
on a small store, 400 steps with a checkpoint every 5. A start is killed by SIGKILL at a moment drawn at random: some
seconds after it began (while it loads, trains or saves), or a few milliseconds after it began to write a checkpoint;
all ranks, or one of them, after which the other ends by itself, or as a launcher would end it. Prints JSON: what was
killed and where the run went on, and how far every number of metrics.jsonl, every final parameter and moment, and the
mixture are from those of the undisturbed run; all of these must be 0. Status 1 where one is not.
"""

import argparse
import json
import math
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.distributed.comparing import metrics_of  # noqa: E402
from tests.distributed.ranks import Ranks  # noqa: E402
from tests.distributed.small_runs import small_store, write_config  # noqa: E402

RANKS = 2
STEPS, CHECKPOINT_EVERY = 400, 5
PROGRAMS = {"proxy": "doge_ds/train_proxy.py", "base": "doge_ds/train_base.py"}
# A start takes 2 to 3 seconds until its first step; 5 to 6 steps take one second.
LONGEST_WAIT = 6.0
LONGEST_WAIT_IN_A_SAVE = 0.03
LAUNCHERS_PATIENCE = 30.0


def main() -> None:
    """Run everything and print."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        found = {stage: run_stage(Path(folder), stage, options) for stage in options.stages}
    json.dump(
        {"benchmark": "chaos", "ranks": RANKS, "steps": STEPS, "seed": options.seed, **found}, sys.stdout, indent=1
    )
    print()
    is_equal = all(not any(stage["differences"].values()) for stage in found.values())
    sys.exit(0 if is_equal and all(stage["times_killed"] == options.kills for stage in found.values()) else 1)


def run_stage(folder: Path, stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run undisturbed, one killed again and again, and what is different."""
    began = time.perf_counter()
    store = folder / "store"
    if not store.exists():
        small_store(store)
    training = {"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, "keep_checkpoints": 3}
    config = write_config(folder / f"{stage}.json", store, stage, training=training, data={"max_epochs": 1e6})
    arguments = ["--config", str(config), *(["--mixture", "uniform"] if stage == "base" else [])]
    runs = {kind: folder / f"{stage}_{kind}" for kind in ("undisturbed", "disturbed")}
    statuses, printed = Ranks(RANKS, PROGRAMS[stage], *arguments, "--output", str(runs["undisturbed"])).finish(1200)
    if any(statuses):
        raise SystemExit(printed)
    draw = random.Random(f"{options.seed} {stage}")
    kills = []
    for _ in tqdm(range(options.kills), desc=f"{stage}: kills", file=sys.stderr):
        ranks = Ranks(RANKS, PROGRAMS[stage], *arguments, "--output", str(runs["disturbed"]))
        if (kill := kill_somewhere(ranks, runs["disturbed"], draw)) is None:
            break
        kills.append(kill)
    statuses, printed = Ranks(RANKS, PROGRAMS[stage], *arguments, "--output", str(runs["disturbed"])).finish(1200)
    if any(statuses):
        raise SystemExit(printed)
    starts = [json.loads(line) for line in (runs["disturbed"] / "starts.jsonl").read_text().splitlines()]
    return {
        "kills": kills,
        "times_killed": len(kills),
        "went_on_after_step": [start["after_step"] for start in starts],
        "differences": differences(runs["undisturbed"], runs["disturbed"]),
        "seconds": round(time.perf_counter() - began, 1),
    }


def kill_somewhere(ranks: Ranks, run: Path, draw: random.Random) -> dict[str, Any] | None:
    """Kill at a random moment; what was killed when, or None where the run came to its end before."""
    in_a_save, whom = draw.random() < 0.4, draw.choice(["all", *range(RANKS)])
    wait = draw.uniform(0, LONGEST_WAIT_IN_A_SAVE if in_a_save else LONGEST_WAIT)
    began = time.monotonic()
    if in_a_save:
        time.sleep(draw.uniform(0, LONGEST_WAIT))
        while not any((run / "checkpoints").glob("step*.tmp")) and ranks.processes[0].poll() is None:
            time.sleep(0.0005)
    time.sleep(wait)
    if any(process.poll() is not None for process in ranks.processes):
        statuses, printed = ranks.finish()
        if any(statuses):
            raise SystemExit(printed)  # it ended by itself, and not well
        return None
    after = round(time.monotonic() - began, 3)
    for process in ranks.processes if whom == "all" else [ranks.processes[int(whom)]]:
        process.send_signal(signal.SIGKILL)
    unfinished = len(list((run / "checkpoints").glob("step*.tmp")))
    ended_by_themselves = wait_for_the_end(ranks)
    statuses, _ = ranks.finish(10)
    done = len(metrics_of(run)) if (run / "metrics.jsonl").exists() and not _is_cut(run) else None
    return {
        "after_seconds": after,
        "ranks": whom,
        "statuses": statuses,
        "others_ended_by_themselves": ended_by_themselves if whom != "all" else None,
        "meant_to_hit_a_save": in_a_save,
        "unfinished_checkpoints": unfinished,
        "logged_steps": done,
    }


def wait_for_the_end(ranks: Ranks) -> bool:
    """Whether what is left ends by itself. Ranks that have not met yet wait for each other for half an hour; deepspeed,
    torchrun and srun end what is left of a run long before, and so does this."""
    until = time.monotonic() + LAUNCHERS_PATIENCE
    while any(process.poll() is None for process in ranks.processes):
        if time.monotonic() > until:
            for process in ranks.processes:
                process.send_signal(signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


def _is_cut(run: Path) -> bool:
    """Whether the kill came in the middle of a line."""
    return not (run / "metrics.jsonl").read_text().endswith("\n")


def differences(one: Path, other: Path) -> dict[str, float]:
    """Of all that was computed, the largest absolute difference; missing and repeated steps."""
    found: dict[str, float] = {"metrics": distance(metrics_of(one), metrics_of(other))}
    steps = [line["step"] for line in metrics_of(other)]
    found["missing_or_repeated_steps"] = len(set(range(1, STEPS + 1)) ^ set(steps)) + len(steps) - len(set(steps))
    tensors = 0.0
    for file in sorted((one / f"checkpoints/step{STEPS:08d}").glob("*.pt")):
        states = (torch.load(path, weights_only=False) for path in (file, other / file.relative_to(one)))
        tensors = max(tensors, distance(*states))
    found["final_parameters_and_moments"] = tensors
    if (one / "mixture.json").exists():
        mixtures = (json.loads((run / "mixture.json").read_text())["domains"] for run in (one, other))
        found["mixture"] = distance(*mixtures)
    return found


def distance(one: Any, other: Any) -> float:
    """The largest absolute difference of numbers in two nested structures; infinite where these differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape:
            return float("inf")
        return _of_numbers(float((one.double() - other.double()).abs().max())) if one.numel() else 0.0
    if isinstance(one, dict) and isinstance(other, dict):
        same = one.keys() == other.keys()
        return max((distance(one[key], other[key]) for key in one), default=0.0) if same else float("inf")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return float("inf")
        return max((distance(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, bool | int | float) and isinstance(other, bool | int | float):
        return _of_numbers(abs(float(one) - float(other)))
    return 0.0 if type(one) is type(other) else float("inf")


def _of_numbers(difference: float) -> float:
    """NaN, which `max` may swallow, as infinite."""
    return float("inf") if math.isnan(difference) else difference


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each stage")
    parser.add_argument("--stages", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
