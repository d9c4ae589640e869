"""Small run directories in the documented format (docs/formats.md), without a training run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

STORE, TOKENIZER = "0123456789abcdef", "fedcba98" * 8
MODEL = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2}


def names(count: int) -> list[str]:
    return [f"domain_{number:03d}" for number in range(count)]


def make_proxy(
    path: Path,
    domains: Sequence[str] = ("python", "prose", "yaml"),
    target: str | list[str] = "mix",
    steps: int = 40,
    logged: Sequence[int] = (10, 20, 30, 40),
    store: str = STORE,
    tokenizer: str = TOKENIZER,
) -> Path:
    """A proxy run; finished when its last step is logged. Weight of domain i is in proportion to 1 + i * step."""
    path.mkdir(parents=True)
    named = target if isinstance(target, list) else []
    rows = [*domains, *(name for name in named if name not in domains), *(["<mix>"] if target == "mix" else [])]
    write(path / "run.json", {"program": "train_proxy", "ranks": 2, "store": store, "tokenizer_sha256": tokenizer})
    training = {"steps": steps, "learning_rate": 0.01, "sequences_per_domain": 4}
    data = {"path": "store", "sequence_length": 16}
    config = {"model": MODEL, "data": data, "deepspeed": {}, "training": training, "doge": {"target": target}}
    write(path / "config.json", config)
    generator = np.random.default_rng(0)
    lines, total = [], np.zeros(len(domains))
    for count, step in enumerate(logged, start=1):
        weights = 1.0 + step * np.arange(len(domains))
        weights /= weights.sum()
        total += weights
        gradients = generator.normal(size=(len(rows), 30)) + 0.5
        losses = 8 - step / steps + generator.normal(size=len(rows)) / 10
        line: dict[str, Any] = {"step": step, "loss": float(losses[: len(domains)].mean())}
        line |= {f"loss/{name}": float(loss) for name, loss in zip(rows, losses, strict=True)}
        line |= {f"weight/{name}": float(weight) for name, weight in zip(domains, weights, strict=True)}
        line |= {f"mean_weight/{name}": float(weight) for name, weight in zip(domains, total / count, strict=True)}
        line |= {f"score/{name}": 1.5 for name in domains} | {f"gradient_norm/{name}": 2.5 for name in rows}
        line |= {"gram": (gradients @ gradients.T).tolist(), "learning_rate": 0.01 * (1 - step / steps / 2)}
        lines.append(line | _progress(step))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if logged and logged[-1] == steps:
        mean = dict(zip(domains, (total / len(logged)).tolist(), strict=True))
        source = {"method": "doge", "step": steps, "accepted_steps": steps - 1, "config_sha256": "abc123"}
        write(path / "mixture.json", {"version": 1, "domains": mean, "kind": "mean", "source": source})
    return path


def make_base(
    path: Path,
    mixture: dict[str, float],
    perplexities: dict[str, float | None] | None = None,
    steps: int = 40,
    logged: Sequence[int] = (20, 40),
    store: str = STORE,
    measured_on: str = STORE,
    results: str = "results.json",
) -> Path:
    """A base run; finished when its last step is logged; with held-out perplexities where they are given."""
    path.mkdir(parents=True)
    facts = {"program": "train_base", "ranks": 2, "mixture": mixture, "store": store, "tokenizer_sha256": TOKENIZER}
    write(path / "run.json", facts)
    training = {"steps": steps, "learning_rate": 0.01, "global_batch_size": 4}
    data = {"path": "store", "sequence_length": 16}
    write(path / "config.json", {"model": MODEL, "data": data, "deepspeed": {}, "training": training})
    lines = []
    for step in logged:
        line: dict[str, Any] = {"step": step, "loss": 8 - step / steps}
        line |= {f"loss/{name}": 8 - step / steps + number / 7 for number, name in enumerate(mixture)}
        line |= {f"achieved_share/{name}": round(step * weight) / step for name, weight in mixture.items()}
        line |= {f"wanted_share/{name}": weight for name, weight in mixture.items()}
        lines.append(line | {"learning_rate": 0.01} | _progress(step))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if logged and logged[-1] == steps:
        (path / "hf").mkdir()
    if perplexities is not None:
        write(path / results, results_of(perplexities, measured_on))
    return path


def results_of(perplexities: dict[str, float | None], measured_on: str = STORE) -> dict[str, Any]:
    """What eval/run.py writes; a perplexity of None stands for one of 800 nats."""
    logs = {name: 800.0 if value is None else math.log(value) for name, value in perplexities.items()}
    mean = sum(logs.values()) / len(logs)
    known = [value for value in perplexities.values() if value is not None]
    return {
        "version": 1,
        "model": "hf",
        "data": {"path": "store", "fingerprint": measured_on},
        "sequence_length": 16,
        "versions": {},
        "perplexity": {
            "domains": {
                name: {
                    "log_perplexity": logs[name],
                    "perplexity": value,
                    "bits_per_byte": logs[name] / 3,
                    "tokens": 50,
                    "bytes": 150,
                }
                for name, value in perplexities.items()
            },
            "average_log_perplexity": mean,
            "average_perplexity": sum(known) / len(known) if len(known) == len(logs) else None,
            "geometric_perplexity": math.exp(mean) if mean < 709 else None,
        },
    }


def diverged(domains: Sequence[str]) -> dict[str, Any]:
    """results.json of a model whose every likelihood is NaN, which JSON has no word for."""
    results = results_of(dict.fromkeys(domains, 1.0))
    keys = ("log_perplexity", "perplexity", "bits_per_byte")
    found = {name: {**result, **dict.fromkeys(keys)} for name, result in results["perplexity"]["domains"].items()}
    return {**results, "perplexity": {**dict.fromkeys(results["perplexity"]), "domains": found}}


def write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


def edit_metrics(path: Path, line: int, **changes: Any) -> None:
    """Change values in one line (from 0) of RUN/metrics.jsonl."""
    lines = [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]
    lines[line] |= changes
    (path / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in lines))


def _progress(step: int) -> dict[str, Any]:
    return {"applied": True, "tokens": 100 * step, "tokens_per_second": 50.0, "seconds": 2.0 * step}
