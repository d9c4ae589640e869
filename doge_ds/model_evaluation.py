"""What `eval/run.py` does: check everything, measure model after model on all ranks, write the results."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, StoreError
from doge_ds.evaluation.collectives import from_all_ranks, from_rank_0
from doge_ds.evaluation.comparison import Measured, as_text, compare
from doge_ds.evaluation.fewshot import FewShotOptions, TaskResult, check_tasks, mean_accuracy, measure_task
from doge_ds.evaluation.finished import FinishedPieces
from doge_ds.evaluation.likelihood import keep_freed_memory
from doge_ds.evaluation.models import (
    check_tokenizer,
    choose_device,
    choose_sequence_length,
    identity,
    load_config,
    load_model,
    load_tokenizer,
)
from doge_ds.evaluation.outputs import VERSION, Output, perplexity_table, tasks_table
from doge_ds.evaluation.perplexity import (
    DomainLosses,
    HeldOutText,
    WindowOptions,
    averages,
    measure_domain,
    summary,
)
from doge_ds.evaluation.tasks import check_datasets, choose_tasks
from doge_ds.model_places import ModelPlace, exported, find_models
from doge_ds.training.launch import finish, read_ranks, start_process_group

DEFAULT_SUITE = "doge6"
WINDOWS_WHERE_AUTO = 16
LIBRARIES = ("doge_ds", "torch", "transformers", "lm_eval")


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; see `eval/run.py --help`."""

    models: list[str]
    output: Path | None
    batch_size: int | str
    seed: int
    device: str
    data: str | None
    domains: list[str] | None
    sequence_length: int | None
    stride: int | None
    document_mask: bool
    suite: str | None
    tasks: list[str]
    num_fewshot: int
    limit: float | None
    data_root: str | None
    include_path: Path | None
    log_samples: bool


def evaluate_models(request: Request) -> None:
    """Check, measure, write and print, on this rank. Raises DogeError where the input is wrong."""
    evaluation = Evaluation(request)
    if evaluation.ranks.world_size > 1:
        start_process_group(evaluation.ranks)
    keep_freed_memory()
    found = [evaluation.measure(place) for place in evaluation.places]
    if evaluation.ranks.rank == 0:
        evaluation.write(found)
    if evaluation.ranks.world_size > 1:
        finish(0)


@dataclass(frozen=True)
class ModelResults:
    """One model's numbers: for its results file, for the comparison, and its tasks' questions and answers."""

    label: str
    results: dict[str, Any]
    measured: Measured
    samples: dict[str, list[dict[str, Any]]]


class Evaluation:
    """A request that was checked, and how each model of it is measured.

    Attributes:
        ranks: this process among the others.
        places: the models, in the order asked for.
    """

    def __init__(self, request: Request) -> None:
        """Check all that can be checked before a model's weights are read and other ranks are waited for.

        Raises:
            DogeError: something asked for is not there, does not fit, or cannot be written.
        """
        self._request = request
        self.ranks = read_ranks()
        self._is_first = self.ranks.rank == 0
        self._device = choose_device(request.device, self.ranks.local_rank)
        self._texts = self._choose_texts()
        names = [*([request.suite] if request.suite else []), *request.tasks]
        if not names and self._store is None:
            names = [DEFAULT_SUITE]
        self._tasks = choose_tasks(names, request.include_path)
        self._few_shot = FewShotOptions(
            num_fewshot=request.num_fewshot,
            limit=request.limit,
            batch_size=request.batch_size,
            seed=request.seed,
            include_path=request.include_path,
            data_root=Path(request.data_root) if request.data_root else None,
            log_samples=request.log_samples,
        )
        check_datasets(self._tasks, self._few_shot.data_root, request.include_path)
        self.places = find_models(request.models)
        default = self.places[0].results if len(self.places) == 1 else Path("comparison")
        self._output = Output(request.output or default, len(self.places))
        self._pieces = FinishedPieces(self._output.unfinished)
        for place in self.places:
            if place.folder is not None:
                self._choose_windows(place.name, place.folder)
                if self._tasks:
                    load_tokenizer(place.folder)
        check_tasks(self._tasks, self._few_shot)

    def measure(self, place: ModelPlace) -> ModelResults:
        """Measure one model (collective). What was finished before is not measured again."""
        if place.folder is None:
            place = from_rank_0(exported(place, self._pieces.folder) if self._is_first else place, self._world_size)
        assert place.folder is not None
        model = _LazyModel(place.folder, self._device)
        results: dict[str, Any] = {"version": VERSION, "model": place.name}
        domains: dict[str, DomainLosses] = {}
        tasks: dict[str, TaskResult] = {}
        if windows := self._choose_windows(place.name, place.folder):
            domains = self._measure_domains(model, windows)
            results |= self._perplexity(domains, windows)
        if self._tasks:
            tasks = self._measure_tasks(model)
            asked = ("num_fewshot", "limit", "seed", "data_root")
            results["few_shot"] = {key: vars(self._request)[key] for key in asked}
            results["tasks"] = {name: task.summary() for name, task in tasks.items()}
            results["mean_accuracy"] = mean_accuracy(tasks)
        results["versions"] = {name: version(name) for name in LIBRARIES}
        answers = {name: task.correct for name, task in tasks.items()}
        samples = {name: task.samples for name, task in tasks.items() if task.samples is not None}
        return ModelResults(place.label, results, Measured(place.label, domains, answers), samples)

    def write(self, found: Sequence[ModelResults]) -> None:
        """Write and print everything (rank 0)."""
        for model in found:
            file = self._output.write_results(model.label, model.results)
            for task, samples in model.samples.items():
                self._output.write_samples(model.label, task, samples)
        if len(found) == 1:
            results = found[0].results
            tables = [perplexity_table(results["perplexity"])] if "perplexity" in results else []
            tables += [tasks_table(results)] if "tasks" in results else []
            print("\n\n".join(tables))
        else:
            rows = compare([model.measured for model in found], self._request.seed)
            self._output.write_comparison([model.label for model in found], rows)
            print(as_text(rows))
            file = self._output.path
        print(f"written: {file}")
        self._pieces.remove()

    @property
    def _world_size(self) -> int:
        return self.ranks.world_size

    def _choose_texts(self) -> dict[str, HeldOutText]:
        """The held-out text of each domain: of those named, or of all that have any.

        Raises:
            ConfigError: domains are named and no store.
            StoreError: no store, or a named domain is not in it or has no held-out text, or no domain has any.
        """
        names, self._store = self._request.domains, None
        if self._request.data is None:
            if names:
                raise ConfigError("--domains", "is given without a store", "name it with --data")
            return {}
        self._store = store = TokenStore(self._request.data)
        records = {name: store.record(name, "valid") for name in names or store.domains}
        found = [name for name, record in records.items() if record.tokens and record.bytes]
        for name in records:
            if name not in found and names:
                raise StoreError(f"{store.path}: {name}", "has no held-out tokens", "name other --domains")
        if not found:
            raise StoreError(
                str(store.path), "has no held-out tokens in any domain", "prepare it with a held-out share"
            )
        for name in records:
            if name not in found and self._is_first:
                print(f"{name} has no held-out tokens and is left out", file=sys.stderr)
        return {name: HeldOutText(store.tokens(name, "valid"), records[name].bytes) for name in found}

    def _choose_windows(self, name: str, folder: str) -> WindowOptions | None:
        """How the text is cut for this model; None without a text. Raises DogeError where it is no model, or it does
        not fit the store."""
        config, request = load_config(name, folder), self._request
        if self._store is None:
            return None
        tokenizer = self._store.manifest.tokenizer
        warning = check_tokenizer(name, config, tokenizer.vocabulary_size, tokenizer.sha256)
        if warning and self._is_first:
            print(warning, file=sys.stderr)
        length = choose_sequence_length(config, request.sequence_length)
        return WindowOptions(length, request.stride, request.document_mask)

    def _measure_domains(self, model: "_LazyModel", windows: WindowOptions) -> dict[str, DomainLosses]:
        """Windows of each domain; each domain's are spread over the ranks."""
        assert self._store is not None
        size = self._request.batch_size
        batch_size = size if isinstance(size, int) else WINDOWS_WHERE_AUTO
        store, world_size = self._store, self._world_size
        keys = {
            name: {"model": model.identity, "text": store.record(name, "valid").sha256, **asdict(windows)}
            for name in self._texts
        }
        done = from_rank_0(
            {name: self._pieces.domain(key) for name, key in keys.items()} if self._is_first else {}, world_size
        )
        left = sum(len(text.tokens) for name, text in self._texts.items() if done[name] is None)
        is_watched = sys.stderr.isatty()
        found = {}
        with tqdm(
            total=left,
            unit=" tokens",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=1.0 if is_watched else 10.0,  # seconds; a job's log keeps every line
            disable=not (left and self._is_first),
        ) as bar:
            for name, text in self._texts.items():
                losses = done[name]
                if losses is None:
                    bar.set_postfix_str(name, refresh=is_watched)
                    losses = measure_domain(
                        model.weights,
                        text,
                        store.manifest.tokenizer.end_of_text_id,
                        windows,
                        batch_size,
                        self._device,
                        (self.ranks.rank, world_size),
                        progress=lambda tokens: bar.update(tokens * world_size),
                        name=name,
                    )
                    if self._is_first:
                        self._pieces.add_domain(keys[name], losses)
                found[name] = losses
        return found

    def _perplexity(self, losses: dict[str, DomainLosses], windows: WindowOptions) -> dict[str, Any]:
        """The part of results.json that is about the store's text."""
        assert self._store is not None
        domains = {name: summary(losses[name], text, self._request.seed) for name, text in self._texts.items()}
        return {
            "data": {"path": str(self._store.path), "fingerprint": self._store.fingerprint()},
            **asdict(windows),
            "perplexity": {"domains": {name: asdict(domain) for name, domain in domains.items()}, **averages(domains)},
        }

    def _measure_tasks(self, model: "_LazyModel") -> dict[str, TaskResult]:
        """Each task by one rank, in turn, as one rank alone would do it."""
        options = self._few_shot
        keys = {name: {"model": model.identity, "task": name, **asdict(options)} for name in self._tasks}
        done = from_rank_0(
            {name: self._pieces.task(key) for name, key in keys.items()} if self._is_first else {}, self._world_size
        )
        left = [name for name in self._tasks if done[name] is None]
        for number, name in enumerate(left):
            if number % self._world_size == self.ranks.rank:
                print(f"{name} ({number + 1} of {len(left)} tasks)", file=sys.stderr, flush=True)
                result = measure_task(model.weights, model.tokenizer, name, options, self._device)
                self._pieces.add_task(keys[name], asdict(result))
                done[name] = asdict(result)
        for of_rank in from_all_ranks({name: done[name] for name in left if done[name]}, self._world_size):
            done |= of_rank
        return {name: TaskResult(**found) for name in self._tasks if (found := done[name])}


class _LazyModel:
    """A model whose weights are read when something is left to be measured."""

    def __init__(self, folder: str, device: str) -> None:
        self._folder, self._device = folder, device

    @cached_property
    def identity(self) -> list[Any]:
        return identity(self._folder)

    @cached_property
    def weights(self) -> Any:
        return load_model(self._folder).to(self._device).eval()

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self._folder)
