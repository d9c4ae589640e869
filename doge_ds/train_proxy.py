"""Learn domain weights with a small proxy model under ZeRO-2.

    deepspeed doge_ds/train_proxy.py --config ds_configs/runs/demo_proxy.json
    deepspeed doge_ds/train_proxy.py --config X.json --set training.steps=100 doge.mu=0.05 --output runs/short

Each step takes the same number of sequences of every domain, computes one gradient per domain, and moves the domain
weights towards the domains whose gradients point where the target's does. The mean of the weights over the run is the
mixture, RUN/mixture.json. Started again by the same command, an unfinished run continues from its latest checkpoint.

Exit status: 0 finished, 2 the input is wrong, 75 saved and not finished (SIGTERM, SIGINT or SIGUSR1), else failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doge_ds.command_line import RunArguments, read_run_arguments
from doge_ds.config import ProxyConfig, load_config
from doge_ds.data.loader import ProxyLoader
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, DivergedError, nearest
from doge_ds.mixture import mixture_from_weights, read_mixture
from doge_ds.plan import DomainNeed, plan_table, refuse_too_many_epochs
from doge_ds.reweight.doge import DomainWeights, Proposal
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.domain_gradients import DomainGradients, StepSummary
from doge_ds.training.engine import Checkpoints, cut_into_micro_batches, start_engine
from doge_ds.training.launch import Ranks, finish, quieten_libraries, read_ranks, run_program, start_process_group
from doge_ds.training.model import build_model, flops_per_token, model_config, parameter_count
from doge_ds.training.monitor import monitor_settings
from doge_ds.training.run import Run, RunDirectory, config_hash
from doge_ds.training.throughput import Throughput


@dataclass(frozen=True)
class ProxyJob:
    """Everything that was checked before other ranks are waited for."""

    config: ProxyConfig
    store: TokenStore
    ranks: Ranks
    train_domains: list[str]
    loader: ProxyLoader
    model: Any
    deepspeed_config: dict[str, Any]
    monitors: dict[str, Any]
    directory: RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """One rank of the proxy run; the exit status."""
    quieten_libraries()
    job = check(read_run_arguments(__doc__ or "", arguments))
    if not job.directory.is_finished:
        start_process_group(job.ranks)
        if not train(job):
            return finish(75)
    if job.ranks.rank == 0:
        _print_result(job)
    return finish(0)


def check(options: RunArguments) -> ProxyJob:
    """Read and check every input. Raises DogeError, on every rank alike; changes nothing."""
    ranks = read_ranks()
    config = load_config(ProxyConfig, options.config, options.settings)
    data, training = config.data, config.training
    store = TokenStore(data.path)
    train_domains, target_domains = choose_domains(config, store)
    micro_batch_size, _ = cut_into_micro_batches(
        "sequences_per_domain", training.sequences_per_domain, training.micro_batch_size, ranks.world_size
    )
    tokenizer = store.manifest.tokenizer
    model = model_config(config.model, tokenizer.vocabulary_size, tokenizer.end_of_text_id, data.sequence_length)
    deepspeed_config = complete_deepspeed_config(
        config.deepspeed, training, stage=2, micro_batch_size=micro_batch_size, accumulation_steps=1, ranks=ranks
    )
    loader = ProxyLoader(
        store,
        train_domains,
        target_domains,
        mix=config.doge.target == "mix",
        sequences_per_domain=training.sequences_per_domain,
        micro_batch_size=micro_batch_size,
        sequence_length=data.sequence_length,
        seed=training.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    monitors = monitor_settings(config.deepspeed, options.output)
    facts = {"program": "train_proxy", "ranks": ranks.world_size, **store.facts()}
    directory = RunDirectory(options.output, config, facts, result="mixture.json", resume=options.resume)
    job = ProxyJob(config, store, ranks, train_domains, loader, model, deepspeed_config, monitors, directory)
    refuse_too_many_epochs(_needs(job), data.max_epochs)
    return job


def choose_domains(config: ProxyConfig, store: TokenStore) -> tuple[list[str], list[str]]:
    """Domains to train on, and the targets where they are named.

    Raises:
        ConfigError: a train or target domain that the store lacks, or none to train on.
    """
    targets = config.doge.target if isinstance(config.doge.target, list) else []
    train = config.data.train_domains or [name for name in store.domains if name not in targets]
    for key, names in (("doge.target", targets), ("data.train_domains", train)):
        for name in names:
            if name not in store.domains:
                raise ConfigError(key, f"{name!r} is not in {store.path}", nearest(name, store.domains))
    if not train:
        raise ConfigError("data.train_domains", "every domain of the store is a target", "name the domains to train on")
    return train, targets


def train(job: ProxyJob) -> bool:
    """The proxy loop; whether it came to its end (or was asked to stop, and saved)."""
    config, loader, directory = job.config, job.loader, job.directory
    if is_speaker := job.ranks.rank == 0:
        _print_plan(job)
    model = build_model(job.model, job.deepspeed_config, config.training, config.model.get("pretrained"))
    engine = start_engine(model, job.deepspeed_config, config.training)
    gradients = DomainGradients(engine, loader.row_names, len(job.train_domains), config.training.seed)
    weights = DomainWeights(job.train_domains, loader.row_names, config.doge)
    if is_speaker:  # not before DeepSpeed has accepted its configuration
        directory.create()
    checkpoints = Checkpoints(directory.checkpoints, config.training)
    first_step = _resume(job, checkpoints.load(engine), weights)
    throughput = Throughput(
        job.ranks.world_size, flops_per_token(job.model, config.data.sequence_length), config.training.peak_tflops
    )
    run = Run(directory, first_step, config.training, job.monitors, throughput, is_speaker)
    tokens = len(loader.row_names) * config.training.sequences_per_domain * config.data.sequence_length

    for step in run.steps():
        for row, micro_batches in loader.domain_batches(step):
            gradients.collect(step, row, micro_batches)
        summary = gradients.reduce(stop=run.stop_requested)
        learning_rate = engine.get_lr()[0]
        proposal = weights.propose(summary.gram, learning_rate)
        gradients.apply(proposal.coefficients)
        engine.step()
        if engine.was_step_applied():
            weights.accept(proposal)
        values: dict[str, Any] = {"loss": float(summary.losses[: len(job.train_domains)].mean())}
        if run.is_logged(step):
            values |= step_metrics(weights, proposal, summary, loader.row_names)
            values |= {"learning_rate": learning_rate, "applied": engine.was_step_applied()}
        run.log(step, tokens, values, shown=_shown(weights))
        if checkpoints.is_due(step) or summary.stop:
            checkpoints.save(engine, step + 1, {"data": loader.state(step + 1), "weights": weights.state_dict()})
        if summary.stop and step + 1 < config.training.steps:
            run.report_stop(step)
            return False

    if is_speaker:
        _write_mixture(job, weights)
    return True


def _resume(job: ProxyJob, state: dict[str, Any] | None, weights: DomainWeights) -> int:
    """Take over a checkpoint's state, where there is one; the steps that it has behind it."""
    if state is None:
        return 0
    job.loader.check_state(state["data"])
    weights.load_state_dict(state["weights"])
    return int(state["step"])


def step_metrics(
    weights: DomainWeights, proposal: Proposal, summary: StepSummary, row_names: Sequence[str]
) -> dict[str, Any]:
    """What metrics.jsonl says of one step beside its mean loss and learning rate."""
    train_domains = weights.train_domains
    losses = summary.losses.tolist()
    values: dict[str, Any] = {f"loss/{name}": loss for name, loss in zip(row_names, losses, strict=True)}
    values |= {f"weight/{name}": weight for name, weight in weights.current().items()}
    values |= {f"mean_weight/{name}": weight for name, weight in weights.mean().items()}
    values |= {f"score/{name}": score for name, score in zip(train_domains, proposal.scores.tolist(), strict=True)}
    norms = proposal.gradient_norms.tolist()
    values |= {f"gradient_norm/{name}": norm for name, norm in zip(row_names, norms, strict=True)}
    values["gram"] = summary.gram.tolist()
    return values


def _shown(weights: DomainWeights) -> str:
    """The weights for the progress line, the largest six."""
    largest = sorted(weights.current().items(), key=lambda item: -item[1])[:6]
    return " ".join(f"{name} {weight:.3f}" for name, weight in largest)


def _needs(job: ProxyJob) -> list[DomainNeed]:
    """What the whole run reads for every row; all rows get the same number of sequences, whatever the weights."""
    needed = job.config.training.steps * job.config.training.sequences_per_domain
    start = 1 / len(job.train_domains)
    return [
        DomainNeed(row, start if row in job.train_domains else None, needed, round(needed / epochs))
        for row, epochs in job.loader.epochs(job.config.training.steps).items()
    ]


def _print_plan(job: ProxyJob) -> None:
    """What is about to be read, of every row."""
    print(f"proxy: {parameter_count(job.model):,} parameters, {job.ranks.world_size} ranks, run {job.directory.path}")
    print(plan_table(_needs(job)), flush=True)


def _write_mixture(job: ProxyJob, weights: DomainWeights) -> None:
    """RUN/mixture.json; its presence says that the run is finished. Raises DivergedError where no step counted."""
    if skipped := job.config.training.steps - weights.count:
        print(f"{skipped} of {job.config.training.steps} steps were skipped: their gradients were not finite")
    if not weights.count:
        remedy = "lower training.learning_rate, or look for damaged text"
        raise DivergedError(str(job.directory.path), "every step was skipped, so no weights were learned", remedy)
    source = {
        "method": "doge",
        "run": str(job.directory.path),
        "step": job.config.training.steps,
        "accepted_steps": weights.count,
        "target": job.config.doge.target,
        "config_sha256": config_hash(job.config),
        **job.store.facts(),
    }
    mixture_from_weights(weights.mean(), source).write(job.directory.result)


def _print_result(job: ProxyJob) -> None:
    """The mean weights, largest first."""
    mixture = read_mixture(job.directory.result)
    print(f"finished: {job.directory.result}")
    width = max(map(len, mixture.domains))
    for name, weight in sorted(mixture.domains.items(), key=lambda item: -item[1]):
        print(f"  {name:<{width}}  {weight:.4f}")


if __name__ == "__main__":
    run_program(main)
