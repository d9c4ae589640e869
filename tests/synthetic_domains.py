"""Synthetic text whose relation to a target domain is known, and what a proxy makes of it.

A process is a chain over 70 slots, 7 groups of 10. With probability 0.9 the next slot is one of at most 4 successors in
the same group, else any of the 70; so every slot is equally frequent, and only the order can be learned. A domain has
a word for each slot. In "overlap_n" they are the target's own in n of the 7 groups, and words that no other domain has
in the rest; which n, goes around, so that each group is shared by four of the eight. So n / 7 of its tokens, and of the
target's, are words that both have, and pairs of these are as frequent in one as in the other. "duplicate" is another
draw of the process of "overlap_4", and "noise" draws evenly from all words of all domains.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tests.distributed.ranks import ROOT, Ranks
from tests.stores import make_store

GROUPS = 7
WORDS_PER_GROUP = 10
SLOTS = GROUPS * WORDS_PER_GROUP
SUCCESSORS = (0.4, 0.3, 0.2, 0.1)  # how often each follows, where the group stays
STAY = 0.9
TWIN = "overlap_4"
OVERLAPS = {f"overlap_{level}": level / GROUPS for level in range(GROUPS + 1)}
TRAIN_DOMAINS = [*OVERLAPS, "duplicate", "noise"]
VOCABULARY_SIZE = 1 + SLOTS + WORDS_PER_GROUP * sum(range(GROUPS + 1))  # end-of-text, the target's, all others'

SEQUENCE_LENGTH = 64
SEQUENCES_PER_DOMAIN = 8


def transitions(seed: int) -> np.ndarray:
    """P[slot, next slot], [70, 70]; rows and columns sum to 1."""
    generator = np.random.default_rng([seed, 0])
    matrix = np.full((SLOTS, SLOTS), (1 - STAY) / SLOTS)
    for first in range(0, SLOTS, WORDS_PER_GROUP):
        for probability in SUCCESSORS:
            next_slots = first + generator.permutation(WORDS_PER_GROUP)
            matrix[np.arange(first, first + WORDS_PER_GROUP), next_slots] += STAY * probability
    return matrix


def entropy(seed: int) -> float:
    """Of the next word given the word before it, in nats: what no model's loss on the target can be below."""
    matrix = transitions(seed)
    return float(-(matrix * np.log(matrix)).sum(axis=1).mean())


def vocabulary(name: str) -> np.ndarray:
    """Word of each slot, [70], token ids; end-of-text is 0, the target's words come next."""
    words = 1 + np.arange(SLOTS)
    if name == "target":
        return words
    level = int((TWIN if name == "duplicate" else name).removeprefix("overlap_"))
    below = range(level)
    shared = (sum(below) + np.arange(level)) % GROUPS
    is_own = ~np.isin(np.arange(SLOTS) // WORDS_PER_GROUP, shared)
    first = 1 + SLOTS + WORDS_PER_GROUP * sum(GROUPS - other for other in below)
    words[is_own] = first + np.arange(is_own.sum())
    return words


def make_domains(seed: int, tokens: int) -> dict[str, np.ndarray]:
    """Token ids of all train domains and the target, [tokens] each."""
    cumulative = transitions(seed).cumsum(axis=1)
    domains = {}
    for number, name in enumerate([*TRAIN_DOMAINS, "target"]):
        generator = np.random.default_rng([seed, 1 + number])
        if name == "noise":
            domains[name] = generator.integers(1, VOCABULARY_SIZE, tokens)
        else:
            domains[name] = vocabulary(name)[_walk(cumulative, tokens, generator)]
    return domains


def _walk(cumulative: np.ndarray, tokens: int, generator: np.random.Generator) -> np.ndarray:
    """[tokens] slots: 100 walks, one after the other."""
    length = -(-tokens // 100)
    slots = np.empty((length, 100), dtype=np.int64)
    slots[0] = generator.integers(SLOTS, size=100)
    for place in range(1, length):
        uniform = generator.random((100, 1))
        slots[place] = (cumulative[slots[place - 1]] < uniform).sum(axis=1).clip(max=SLOTS - 1)
    return slots.T.flatten()[:tokens]


def write_store(path: Path, seed: int, steps: int, sequences_per_domain: int = SEQUENCES_PER_DOMAIN) -> None:
    """A store of which a run of so many steps reads no sequence twice, with target `mix` neither."""
    count = (steps + 50) * (sequences_per_domain + sequences_per_domain // 8)  # mix takes one in 11 away for the target
    make_store(path, make_domains(seed, count * SEQUENCE_LENGTH), vocabulary_size=VOCABULARY_SIZE)


@dataclass(frozen=True)
class Outcome:
    """What a proxy learned.

    Attributes:
        weights: mean weight of every train domain over the run.
        losses: of every row, in the last step.
    """

    weights: dict[str, float]
    losses: dict[str, float]

    @property
    def correlation(self) -> float:
        """Spearman's, between overlap and weight, over the eight domains of known overlap."""
        return float(spearmanr(list(OVERLAPS.values()), [self.weights[name] for name in OVERLAPS]).statistic)

    @property
    def duplicate_difference(self) -> float:
        """By how much the larger weight of the pair exceeds the smaller, as a fraction of the smaller."""
        pair = self.weights["duplicate"], self.weights[TWIN]
        return max(pair) / min(pair) - 1

    def over_uniform(self, name: str) -> float:
        """A domain's weight as a multiple of the uniform weight."""
        return self.weights[name] * len(self.weights)

    @property
    def largest_over_uniform(self) -> float:
        return max(self.over_uniform(name) for name in self.weights)


def train_proxy(
    folder: Path,
    store: Path,
    seed: int,
    steps: int,
    doge: dict[str, Any],
    sequences_per_domain: int = SEQUENCES_PER_DOMAIN,
) -> Outcome:
    """Run doge_ds/train_proxy.py on one rank with the rates, schedule, decay and mu of the demo's proxy.

    Args:
        folder: new; gets the configuration and the run directory.
        store: from `write_store`.
        seed: of the run.
        steps: how long it trains, a tenth of it warm-up.
        doge: replaces keys of the demo's section.
        sequences_per_domain: of one step.

    Raises:
        RuntimeError: the program failed; with what it printed.
    """
    demo = json.loads((ROOT / "ds_configs/runs/demo_proxy.json").read_text())
    shape = {"steps": steps, "warmup_steps": steps // 10, "sequences_per_domain": sequences_per_domain}
    config = {
        "model": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2},
        "data": {"path": str(store), "sequence_length": SEQUENCE_LENGTH, "train_domains": TRAIN_DOMAINS},
        "training": {**demo["training"], **shape, "checkpoint_every": steps, "seed": seed},
        "doge": {**demo["doge"], **doge},
        "deepspeed": str(ROOT / "ds_configs/zero2_cpu.json"),
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    arguments = ["--config", str(folder / "config.json"), "--output", str(folder / "run")]
    (status,), printed = Ranks(1, "doge_ds/train_proxy.py", *arguments).finish(timeout=2400)
    if status != 0:
        raise RuntimeError(f"train_proxy.py ended with {status}: {printed[-3000:]}")
    last = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    losses = {key.removeprefix("loss/"): value for key, value in last.items() if key.startswith("loss/")}
    return Outcome(json.loads((folder / "run/mixture.json").read_text())["domains"], losses)
