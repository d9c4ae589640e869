"""How fast `doge-ds prepare` is with 1 and 2 workers, and how much memory its processes take while it reads a lot.

    python benchmarks/prepare.py                       MB/s, in turns
    python benchmarks/prepare.py --memory --megabytes 2000 --workers 2

Text is made of 50,000 words with the frequencies of Zipf's law, a JSON line for each document of 200 to 4,000 words;
the tokenizer is a sentencepiece one of 8,000 tokens trained on 5 MB of it. Each run is the command as users type it, in
processes of its own. Prints JSON: MB of text a second, whole command with start and merge; with --memory the resident
megabytes of every process, largest and every few seconds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from doge_ds.data.preparing.tokenizer_training import train_sentencepiece  # noqa: E402

VOCABULARY = 50_000


def main() -> None:
    """Make the text, run, print."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="prepare_", dir=options.folder) as name:
        folder = Path(name)
        size = write_text(folder / "text.jsonl", options.megabytes)
        sample = " ".join(json.loads(line)["text"] for line in _first_lines(folder / "text.jsonl", 5_000_000))
        train_sentencepiece([sample], 8000, folder / "tokenizer")
        results = measure_memory(folder, options) if options.memory else measure_speed(folder, size, options)
    facts = {"benchmark": "prepare", "megabytes": size / 1e6, "cores": os.cpu_count()}
    print(json.dumps({**facts, **results}, indent=2))


def write_text(file: Path, megabytes: int) -> int:
    """Bytes of text written."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = draw.integers(2, 12, VOCABULARY)
    words = np.array(["".join(draw.choice(letters, length)) for length in lengths], dtype=object)
    frequencies = 1 / np.arange(1, VOCABULARY + 1)
    cumulative = np.cumsum(frequencies / frequencies.sum())
    size = 0
    with file.open("w") as stream:
        while size < megabytes * 1e6:
            chosen = np.searchsorted(cumulative, draw.random(int(draw.integers(200, 4000))))
            text = " ".join(words[chosen.clip(max=VOCABULARY - 1)])
            size += len(text)
            stream.write(json.dumps({"text": text}) + "\n")
    return size


def _first_lines(file: Path, size: int) -> Iterator[str]:
    with file.open() as stream:
        for line in stream:
            yield line
            size -= len(line)
            if size < 0:
                return


def start(folder: Path, workers: int) -> "subprocess.Popen[bytes]":
    """The command, in a session of its own."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    command = [sys.executable, "-m", "doge_ds.cli", "prepare", "--input", f"text={folder / 'text.jsonl'}"]
    command += ["--output", str(folder / "store"), "--tokenizer", str(folder / "tokenizer"), "--workers", str(workers)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def measure_speed(folder: Path, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Turns of 1 and 2 workers."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.turns):
        for workers, found in rates.items():
            began = time.perf_counter()
            if start(folder, workers).wait():
                raise RuntimeError("prepare failed")
            found.append(size / 1e6 / (time.perf_counter() - began))
    medians = {f"{workers} workers": statistics.median(found) for workers, found in rates.items()}
    return {"median_megabytes_a_second": medians, "megabytes_a_second": rates}


def measure_memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Resident megabytes of the parent and of its workers, sampled."""
    process = start(folder, options.workers)
    began = time.perf_counter()
    curve: list[tuple[float, list[int]]] = []
    while process.poll() is None:
        sizes = sorted(_resident_of_session(process.pid), reverse=True)
        curve.append((round(time.perf_counter() - began, 1), sizes))
        time.sleep(options.every)
    if process.returncode:
        raise RuntimeError("prepare failed")
    largest = max(size for _, sizes in curve for size in sizes)
    some = curve[:: max(1, len(curve) // 20)]
    return {"workers": options.workers, "largest_resident_megabytes": largest, "curve_seconds_and_megabytes": some}


def _resident_of_session(session: int) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(") ")[2].split()[3]) == session:
                yield int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1_000_000
        except OSError:
            continue


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100, help="of text")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--workers", type=int, default=2, help="with --memory")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between samples of memory")
    parser.add_argument("--folder", help="where text and stores are written for the time being")
    return parser.parse_args()


if __name__ == "__main__":
    main()
