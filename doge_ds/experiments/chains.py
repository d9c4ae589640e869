"""From a comparison to its stages: every run configuration resolved and checked, every stage's identity known."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doge_ds.config import BaseConfig, ProxyConfig, load_config
from doge_ds.config_sections import METHODS, BaseTrainingConfig
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, MixtureError, nearest
from doge_ds.experiments.comparison_config import ComparisonConfig, as_settings, load_comparison
from doge_ds.experiments.costs import Costs
from doge_ds.experiments.inputs import (
    held_out_domains,
    model_facts,
    open_store,
    refuse_another_tokenizer,
    saying,
    task_names,
    weights_by_step,
)
from doge_ds.experiments.stages import Kind, ScheduleOf, Stage, identity_of, place_of
from doge_ds.json_files import read_json_object
from doge_ds.mixture import Mixture, choose_mixture, published_names
from doge_ds.mixture_schedule import mean_weights
from doge_ds.mixture_stages import check_parts
from doge_ds.proxy_data import choose_domains
from doge_ds.training.model import model_config

Chain = dict[Kind, Stage]

# Added to the proxy's seed. With the same one a reference on the uniform mixture would read the very sequences that the
# proxy will, and the losses that it is compared with would be those of text that the reference was trained on.
ANOTHER_ORDER = 1_000_003

# A learned mixture is not known before the proxy is trained, and then the base itself looks at how often it reads.
ANY_EPOCHS = "data.max_epochs=1e9"


@dataclass(frozen=True)
class Comparison:
    """One file's stages.

    Attributes:
        name: stem of the file, and of the folder with its summary.
        chains: of every mixture and seed, its stages by kind.
        domains: that bases are evaluated on; without bases, that weights are learned of.
        given: weights of the mixtures that are not learned, the mean over the steps of those that change.
    """

    name: str
    path: Path
    config: ComparisonConfig
    chains: dict[str, dict[int, Chain]]
    domains: list[str]
    given: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, list[str]]:
        """Domains to average over."""
        return self.config.groups or {"all": self.domains}


class Planner:
    """Stages of several comparisons in one folder; the same stage of two of them is one.

    Attributes:
        stages: by identity, each after those that it reads from; of a comparison all of the first seed first.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        self._folder = folder
        self._costs = Costs(ranks)
        self.stages: dict[str, Stage] = {}

    def add(self, path: Path, settings: Sequence[str] = ()) -> Comparison:
        """Read one comparison and check all that can be checked before anything runs.

        Raises:
            DogeError: it, or a run configuration, store, mixture, domain or task that it names, cannot be used.
        """
        config = load_comparison(path, settings)
        builder = _Builder(path, config, self)
        with saying(str(path)):
            builder.check_evaluation()
        builder.check_groups()
        chains: dict[str, dict[int, Chain]] = {name: {} for name in config.mixtures}
        for seed in config.seeds:
            for name in config.mixtures:
                with saying(f"{path}: mixtures.{name}"):
                    chains[name][seed] = builder.chain(name, seed)
        return Comparison(path.stem, path, config, chains, builder.domains, builder.given)

    def stage(self, kind: Kind, label: str, seed: int, identity: str, **parts: Any) -> Stage:
        """The stage of this identity, which may be there already."""
        if identity not in self.stages:
            directory = place_of(self._folder, kind, label, seed, identity)
            self.stages[identity] = Stage(kind, label, seed, identity, directory, **parts)
        return self.stages[identity]

    @property
    def costs(self) -> Costs:
        return self._costs


class _Builder:
    """The stages of one comparison."""

    def __init__(self, path: Path, config: ComparisonConfig, planner: Planner) -> None:
        self._path, self._config, self._planner = path, config, planner
        self._proxy = path.parent / config.proxy if config.proxy else None
        self._base = path.parent / config.base if config.base else None
        self.given: dict[str, dict[str, float]] = {}
        self.domains: list[str] = []
        self._measured_on: TokenStore | None = None

    def check_evaluation(self) -> None:
        """Raises DogeError where the bases could not be evaluated as asked for."""
        if self._base is None:
            assert self._proxy is not None
            proxy = load_config(ProxyConfig, self._proxy, self._proxy_settings({}))
            self.domains, _ = choose_domains(proxy, open_store(proxy.data.path))
            return
        wanted = self._config.evaluation
        base = load_config(BaseConfig, self._base, as_settings(self._config.base_settings))
        self._measured_on = store = open_store(wanted.data or base.data.path)
        self.domains = held_out_domains(store, wanted.domains)
        if names := task_names(wanted):
            from doge_ds.evaluation.tasks import check_datasets, choose_tasks  # lm-eval takes seconds to load

            check_datasets(choose_tasks(names, None), Path(wanted.data_root) if wanted.data_root else None, None)

    def check_groups(self) -> None:
        """Raises ConfigError where a group has a domain that is not evaluated."""
        for group, names in self._config.groups.items():
            for name in names:
                if name not in self.domains:
                    problem = f"{name!r} is not among the evaluated domains"
                    raise ConfigError(f"{self._path}: groups.{group}", problem, nearest(name, self.domains))

    def chain(self, name: str, seed: int) -> Chain:
        """All stages of one mixture and seed."""
        found: Chain = {}
        if self._config.mixtures[name].proxy is not None:
            proxy = self._proxy_config(name, seed)
            if proxy.needs_reference and proxy.reference is None:
                found["reference"] = self._reference(name, seed, proxy)
            elif "reference_mixture" in self._config.mixtures[name].model_fields_set:
                why = "one is named" if proxy.needs_reference else f"method {proxy.method} needs none"
                problem = f"is of no use where no reference model is trained: {why}"
                raise ConfigError("reference_mixture", problem, "leave it out")
            found["proxy"] = self._learn(name, seed, proxy, found.get("reference"))
        elif name not in self.given:
            self.given[name] = self._given_weights(name)
        if self._config.has_base(name):
            found["base"] = self._train(name, seed, found.get("proxy"))
            found["eval"] = self._measure(name, seed, found["base"])
        return found

    def _given_weights(self, name: str) -> dict[str, float]:
        """Of a mixture that is not learned, over the train domains of its base, or else of the proxies."""
        entry = self._config.mixtures[name]
        given = self._mixture_argument(entry.mixture or "")
        if self._base:
            base = load_config(BaseConfig, self._base, as_settings(self._config.base_settings, entry.base))
            stages = weights_by_step(base, open_store(base.data.path), given, self._path)
            return mean_weights([(start, weights) for start, weights in stages], base.training.steps)
        assert self._proxy is not None
        proxy = load_config(ProxyConfig, self._proxy, self._proxy_settings({}))
        store = open_store(proxy.data.path)
        tokens = {domain: store.record(domain, "train").tokens for domain in choose_domains(proxy, store)[0]}
        return choose_mixture(given, tokens).domains

    def _proxy_settings(self, entry: Mapping[str, Any], seed: int | None = None) -> list[str]:
        """`--set` of a proxy. Sections of methods that it does not have are emptied: one file serves all."""
        assert self._proxy is not None
        layers: list[Mapping[str, Any]] = [self._config.proxy_settings, entry]
        in_file = read_json_object(self._proxy).get("method", "doge")
        method = next((layer["method"] for layer in reversed(layers) if "method" in layer), in_file)
        if isinstance(method, str) and method in METHODS:
            layers.insert(1, {name: {} for name in METHODS if name != method})
        return as_settings(*layers, {} if seed is None else {"training.seed": seed})

    def _settings_of(self, name: str, seed: int) -> list[str]:
        return self._proxy_settings(self._config.mixtures[name].proxy or {}, seed)

    def _proxy_config(self, name: str, seed: int) -> ProxyConfig:
        assert self._proxy is not None
        return load_config(ProxyConfig, self._proxy, self._settings_of(name, seed))

    def _reference(self, name: str, seed: int, proxy: ProxyConfig) -> Stage:
        """DoReMi's reference model: a base like the proxy, on a mixture that is given."""
        store = open_store(proxy.data.path)
        domains, _ = choose_domains(proxy, store)
        config = reference_config(proxy, domains, self._planner.costs.ranks)
        mixture = self._mixture_argument(self._config.mixtures[name].reference_mixture)
        flops = self._planner.costs.of_configuration("reference", config.model_dump(mode="json"), mixture)
        weights = weights_by_step(config, store, mixture, self._path)
        return self._planner.stage(
            "reference",
            name,
            seed,
            identity_of("reference", config, store=store.facts(), mixture=weights, **model_facts(config)),
            arguments=() if is_file(mixture) else ("--mixture", mixture),
            weights=weights if is_file(mixture) else None,
            config=config.model_dump(mode="json"),
            flops=flops,
        )

    def _learn(self, name: str, seed: int, proxy: ProxyConfig, reference: Stage | None) -> Stage:
        assert self._proxy is not None
        store, untrained = open_store(proxy.data.path), {}
        if reference:
            tokenizer, length = store.manifest.tokenizer, proxy.data.sequence_length
            sizes = (tokenizer.vocabulary_size, tokenizer.end_of_text_id, length)
            model = model_config(proxy.model, *sizes, tokenizer_sha256=tokenizer.sha256)
            untrained = {f"{proxy.method}.reference": model}
        flops = self._planner.costs.of_run(self._proxy, self._settings_of(name, seed), None, untrained)
        before = (reference.identity,) if reference else ()
        return self._planner.stage(
            "proxy",
            name,
            seed,
            identity_of("proxy", proxy, store=store.facts(), upstream=before, **model_facts(proxy)),
            arguments=("--reference", str(reference.directory / "hf")) if reference else (),
            after=before,
            config=proxy.model_dump(mode="json"),
            flops=flops,
        )

    def _train(self, name: str, seed: int, proxy: Stage | None) -> Stage:
        """The base, on the mixture that is given, or on that of a proxy."""
        assert self._base is not None
        entry = self._config.mixtures[name]
        settings = as_settings(self._config.base_settings, entry.base, {"training.seed": seed})
        config = load_config(BaseConfig, self._base, settings)
        store, schedule, weights = open_store(config.data.path), None, None
        facts: dict[str, Any] = {"store": store.facts(), **model_facts(config)}
        if proxy is None:
            given = self._mixture_argument(entry.mixture or "")
            flops = self._planner.costs.of_run(self._base, settings, given)
            facts["mixture"] = weights_by_step(config, store, given, self._path)
            weights = facts["mixture"] if is_file(given) else None
        else:
            flops = self._planner.costs.of_run(self._base, [*settings, ANY_EPOCHS], "uniform")
            self._check_domains(name, seed, config, store)
            facts |= {"mixture": {"parts": entry.stages}, "upstream": [proxy.identity]}
            given = str(proxy.directory / "mixture.json")
            if entry.stages:
                check_parts(self._proxy_config(name, seed), entry.stages, config.training.steps)
                schedule = ScheduleOf(proxy.directory, entry.stages, config.training.steps)
        return self._planner.stage(
            "base",
            name,
            seed,
            identity_of("base", config, **facts),
            arguments=() if schedule or weights else ("--mixture", given),
            weights=weights,
            after=(proxy.identity,) if proxy else (),
            config=config.model_dump(mode="json"),
            schedule=schedule,
            flops=flops,
        )

    def _check_domains(self, name: str, seed: int, base: BaseConfig, store: TokenStore) -> None:
        """Refuse now what the base would refuse of the mixture when the proxy has been trained."""
        proxy = self._proxy_config(name, seed)
        learned, _ = choose_domains(proxy, open_store(proxy.data.path))
        where = "data.train_domains of the base: the mixture that the proxy will learn"
        try:
            Mixture.uniform(learned).over(base.data.train_domains or store.domains, where)
        except MixtureError as error:
            remedy = "let proxy and base have the same data.train_domains"
            raise MixtureError(error.args[0], error.args[1], remedy) from None

    def _measure(self, name: str, seed: int, base: Stage) -> Stage:
        store, wanted = self._measured_on, self._config.evaluation
        assert store is not None
        assert base.config is not None
        refuse_another_tokenizer(open_store(base.config["data"]["path"]), store)
        words = ["--model", str(base.directory / "hf"), "--data", str(store.path)]
        words += ["--domains", *wanted.domains] if wanted.domains else []
        asked: dict[str, Any] = {"domains": self.domains}
        if task_names(wanted):
            tasks = wanted.model_dump(include={"suite", "tasks", "num_fewshot", "limit", "data_root"})
            asked |= tasks
            for key, value in tasks.items():
                if value is not None and value != []:
                    words += [f"--{key}", *(value if isinstance(value, list) else [str(value)])]
        identity = identity_of("eval", None, store=store.facts(), options=asked, upstream=[base.identity])
        return self._planner.stage("eval", name, seed, identity, arguments=tuple(words), after=(base.identity,))

    def _mixture_argument(self, mixture: str) -> str:
        """What `--mixture` takes: words and published names as they are, files from the comparison's folder on."""
        if not is_file(mixture):
            return mixture
        path = self._path.parent / mixture
        return str(path) if os.path.exists(path) or "/" in mixture or mixture.endswith(".json") else mixture


def is_file(mixture: str) -> bool:
    """Whether `--mixture` means a file, which may change while stages wait, and not a word or a published name."""
    return mixture not in ("uniform", "natural", *published_names())


def reference_config(proxy: ProxyConfig, train_domains: Sequence[str], ranks: int) -> BaseConfig:
    """A base run like the proxy: the same model, data, steps and optimizer, as many sequences a step, another order.

    The DeepSpeed configuration is the proxy's with ZeRO-3 in place of ZeRO-2, which is what train_base.py runs under.
    """
    training = proxy.training.model_dump(exclude={"sequences_per_domain"})
    each = proxy.training.sequences_per_domain
    training["seed"] = (proxy.training.seed + ANOTHER_ORDER) % 2**63
    training["global_batch_size"] = len(train_domains) * each
    training["micro_batch_size"] = proxy.training.micro_batch_size or max(1, each // ranks)
    zero = proxy.deepspeed.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError("deepspeed.zero_optimization", f"{zero!r} is no section", "see ds_configs/zero2.json")
    return BaseConfig(
        model=proxy.model,
        data=proxy.data.model_copy(update={"train_domains": list(train_domains)}),
        training=BaseTrainingConfig(**training),
        deepspeed={**proxy.deepspeed, "zero_optimization": {**zero, "stage": 3}},
    )
