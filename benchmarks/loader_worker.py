"""One side of benchmarks/loader.py in a process of its own: commands from stdin, results to stdout, a JSON line each.

{"do": "prepare"}             write the tokens in this library's own format
{"do": "state"}               what it keeps to continue at sample 10 million, into a file: bytes of it as JSON
{"do": "first"}               build all and get the first batch, or with "resume" the one at sample 10 million: seconds
{"do": "memory"}              resident bytes after 1,000 batches beyond those after the imports; of these in files
{"do": "turn", "seconds": 1}  go on for so long: tokens, seconds, seconds of CPU in all threads
{"do": "check", "samples": n} are these windows of the store? largest prefix error over the domains
"""

import itertools
import json
import os
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.loader_sides import BATCH, SIDES, WEIGHTS, Side

MEMORY_BATCHES = 1000


class Worker:
    """Carries out commands; `batches` go on from one to the next."""

    def __init__(self, side: Side, state_file: Path) -> None:
        self._side = side
        self._state_file = state_file
        self._resident = resident_bytes()
        self._batches: Iterator[torch.Tensor] = iter(())

    def prepare(self, _: dict[str, Any]) -> dict[str, Any]:
        self._side.prepare()
        return {}

    def state(self, _: dict[str, Any]) -> dict[str, Any]:
        state = self._side.state()
        if state is None:
            return {"bytes": None}
        self._state_file.parent.mkdir(parents=True, exist_ok=True)
        self._state_file.write_bytes(pickle.dumps(state))  # one library has numbers as keys
        return {"bytes": len(json.dumps(state))}

    def first(self, command: dict[str, Any]) -> dict[str, Any]:
        state = pickle.loads(self._state_file.read_bytes()) if command.get("resume") else None
        began = time.perf_counter()
        self._batches = self._side.batches(state)
        next(self._batches)
        return {"seconds": time.perf_counter() - began}

    def memory(self, _: dict[str, Any]) -> dict[str, Any]:
        for _batch in itertools.islice(self._batches, MEMORY_BATCHES - 1):
            pass
        found = resident_bytes()
        return {kind: found[kind] - self._resident[kind] for kind in found}

    def turn(self, command: dict[str, Any]) -> dict[str, Any]:
        tokens, cpu, began = 0, time.process_time(), time.perf_counter()
        for batch in self._batches:
            tokens += batch.numel()
            if (seconds := time.perf_counter() - began) >= command["seconds"]:
                break
        return {"tokens": tokens, "seconds": seconds, "cpu_seconds": time.process_time() - cpu}

    def check(self, command: dict[str, Any]) -> dict[str, Any]:
        index = WindowIndex(self._side)
        self._batches = self._side.batches(None)
        found: list[np.ndarray] = []
        while sum(map(len, found)) < command["samples"]:
            batch = next(self._batches)
            if batch.dtype != torch.int64 or not batch.is_contiguous() or batch.shape[1:] != (self._side.length,):
                raise TypeError(f"a batch is {batch.dtype} {list(batch.shape)}")
            found.append(index.domains(batch.numpy()))
        errors = prefix_errors(np.concatenate(found)[: command["samples"]])
        return {"anywhere": float(errors.max()), "at_batch_ends": float(errors[:, BATCH - 1 :: BATCH].max())}


class WindowIndex:
    """Finds windows by a 64-bit hash of all their tokens: which domain has this one?"""

    def __init__(self, side: Side) -> None:
        generator = np.random.default_rng(0)
        self._factors = generator.integers(0, 2**64, side.length, dtype=np.uint64) | np.uint64(1)
        hashes = [
            np.concatenate([self._hash(part) for part in np.array_split(windows, -(-len(windows) // 4096))])
            for windows in map(side.windows, WEIGHTS)
        ]
        together = np.concatenate(hashes)
        order = np.argsort(together)
        self._hashes = together[order]
        self._domains = np.repeat(np.arange(len(hashes)), [len(part) for part in hashes])[order]

    def domains(self, batch: np.ndarray) -> np.ndarray:
        """[n], the domain of each of [n, length]. Raises ValueError for what is no window of the store."""
        wanted = self._hash(batch)
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        if strange := int((self._hashes[places] != wanted).sum()):
            raise ValueError(f"{strange} of {len(batch)} are no windows of the store")
        return self._domains[places]

    def _hash(self, windows: np.ndarray) -> np.ndarray:
        return (windows.astype(np.uint64) * self._factors).sum(axis=1)


def prefix_errors(domains: np.ndarray) -> np.ndarray:
    """[domains, prefixes]: how far the count is from n times the domain's weight, after each sample."""
    counts = np.cumsum(domains == np.arange(len(WEIGHTS))[:, np.newaxis], axis=1)
    return np.abs(counts - np.outer(list(WEIGHTS.values()), np.arange(1, len(domains) + 1)))


def resident_bytes() -> dict[str, int]:
    """Of this process: all of it, and the part that is pages of files, which other processes share."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {kind: int(fields[field].split()[0]) for kind, field in (("bytes", "VmRSS"), ("of_files", "RssFile"))}
    return {kind: 1024 * number for kind, number in kilobytes.items()}


def main() -> None:
    """Serve until stdin ends."""
    name, folder, length = sys.argv[1:]
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    torch.set_num_threads(1)  # as launchers start ranks
    worker = Worker(SIDES[name](Path(folder), int(length)), Path(folder) / "states" / f"{name} {length}")
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(worker, command["do"])(command)), file=results, flush=True)


if __name__ == "__main__":
    main()
