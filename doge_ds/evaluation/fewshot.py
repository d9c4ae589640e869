"""Few-shot accuracy on one task, through lm-eval, whose numbers these are."""

import io
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_ds.errors import ConfigError, ModelError, first_line
from doge_ds.evaluation.tasks import definition_for, task_manager


@dataclass(frozen=True)
class FewShotOptions:
    """How tasks are run.

    Attributes:
        num_fewshot: solved examples before each question; a task whose definition says 0 keeps 0.
        limit: only the first so many questions of a task, or below 1 that part of them; None for all.
        batch_size: sequences at a time, or "auto" for as many as fit; changes no result but for rounding.
        seed: of Python, numpy, torch and the choice of examples.
        include_path: a folder with task definitions of the user's own.
        data_root: the datasets, ROOT/<organisation>/<name>; None for the hub or its cache.
        log_samples: keep every question with the model's likelihoods.
    """

    num_fewshot: int = 5
    limit: float | None = None
    batch_size: int | str = 16
    seed: int = 1234
    include_path: Path | None = None
    data_root: Path | None = None
    log_samples: bool = False


@dataclass(frozen=True)
class TaskResult:
    """What a model got in one task. All of it is JSON.

    Attributes:
        metrics: the task's own by name, like acc, acc_norm, each with its `_stderr`; None where lm-eval has none.
        num_fewshot: examples that there really were.
        questions: that were asked.
        version: of the task's definition.
        correct: of each question 1.0 if `acc` counts it as right, else 0.0; empty for a task without `acc`.
        samples: each question, where they were asked for.
    """

    metrics: dict[str, float | None]
    num_fewshot: int
    questions: int
    version: Any
    correct: list[float]
    samples: list[dict[str, Any]] | None = None

    def summary(self) -> dict[str, Any]:
        """For results.json: all but what there is of every question."""
        facts = {"num_fewshot": self.num_fewshot, "questions": self.questions, "version": self.version}
        return {**self.metrics, **facts}


def check_tasks(tasks: Iterable[str], options: FewShotOptions) -> None:
    """Load every task with its questions, so that one that cannot be ends an evaluation before it begins.

    Raises:
        ConfigError: a task cannot be loaded.
    """
    for task in tasks:
        with _quiet():
            _load(task, options)


def measure_task(model: Any, tokenizer: Any, task: str, options: FewShotOptions, device: str) -> TaskResult:
    """Run one task; on this rank alone, whatever other ranks do.

    Args:
        model: a transformers causal language model, on `device`.
        tokenizer: its own.
        task: a name that `choose_tasks` has returned.

    Raises:
        ConfigError: its dataset cannot be loaded, or it has fewer examples than asked for.
        ModelError: a likelihood is not a number.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    limit = options.limit if options.limit is None or options.limit < 1 else int(options.limit)
    # simple_evaluate hands its batch size only to a model that it creates itself; one that it is given has its own.
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size, device=device)
    with _as_only_rank(), _quiet():
        loaded = _load(task, options)
        try:
            found = lm_eval.simple_evaluate(
                wrapped,
                tasks=loaded,
                num_fewshot=options.num_fewshot,
                limit=limit,
                log_samples=True,
                task_manager=task_manager(options.include_path),
                random_seed=options.seed,
                numpy_random_seed=options.seed,
                torch_random_seed=options.seed,
                fewshot_random_seed=options.seed,
            )
        except ValueError as error:  # above all more examples than there are
            remedy = "lower --num_fewshot, or check its dataset"
            raise ConfigError(f"--tasks {task}", f"cannot be run ({first_line(error)})", remedy) from error
    return _result(task, found, options.log_samples)


def mean_accuracy(results: Mapping[str, TaskResult]) -> float | None:
    """The mean of `acc` over the tasks that have one; None where none has."""
    found = [acc for result in results.values() if (acc := result.metrics.get("acc")) is not None]
    return math.fsum(found) / len(found) if found else None


def _load(task: str, options: FewShotOptions) -> list[Any]:
    """The task with its questions, as lm-eval's object. Raises ConfigError."""
    manager = task_manager(options.include_path)
    try:
        loaded = manager.load([definition_for(task, options.data_root, options.include_path)])
    except Exception as error:  # a dozen kinds: no network, a dataset that is a program, no such split or column
        problem = f"cannot be loaded ({type(error).__name__}: {first_line(error)})"
        remedy = f"bring its dataset with eval/prefetch.py --tasks {task} --to DIR and give --data_root DIR"
        raise ConfigError(f"--tasks {task}", problem, remedy) from error
    return list(loaded["tasks"].values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors only, and no bars in a log file, where they are one endless line."""
    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with bars, redirect_stdout(sys.stderr):  # what is printed of batch size auto; the tables go to standard output
        yield


@contextmanager
def _as_only_rank() -> Iterator[None]:
    """lm-eval returns results to the process with LOCAL_RANK 0 alone, and every rank runs tasks of its own."""
    before = os.environ.get("LOCAL_RANK")
    if before is not None:
        os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _result(task: str, found: Any, keeps_samples: bool) -> TaskResult:
    samples = found["samples"][task]  # of a task with several filters, each question once a filter
    for sample in samples:
        for response in sample["filtered_resps"]:
            value = response[0] if isinstance(response, list | tuple) else response
            if isinstance(value, float) and not math.isfinite(value):
                problem = f"gives a likelihood of {value}"
                raise ModelError(f"the model on {task}", problem, "its weights are damaged: export or train again")
    metrics = {}
    for key, value in found["results"][task].items():
        name, _, chosen = key.partition(",")
        if chosen:  # metric,filter; the others are names
            metrics[name if chosen == "none" else key] = float(value) if isinstance(value, int | float) else None
    return TaskResult(
        metrics,
        found["n-shot"][task],
        found["n-samples"][task]["effective"],
        found["versions"].get(task),
        [float(sample["acc"]) for sample in samples if "acc" in sample and sample["filter"] == samples[0]["filter"]],
        json.loads(json.dumps(samples, default=str)) if keeps_samples else None,
    )
