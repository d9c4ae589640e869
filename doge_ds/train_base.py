"""Pretrain a base model on a mixture under ZeRO-3.

    deepspeed doge_ds/train_base.py --config ds_configs/runs/demo_base.json --mixture runs/demo_proxy/mixture.json
    deepspeed doge_ds/train_base.py --config Y.json --mixture uniform --output runs/uniform

The mixture says how often a sequence comes from which domain; at every prefix of the run each domain's count is within
one sample of it. Ends with a Hugging Face folder, RUN/hf. Started again by the same command, an unfinished run
continues from its latest checkpoint.

Exit status: 0 finished, 2 the input is wrong, 75 saved and not finished (SIGTERM, SIGINT or SIGUSR1), else failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doge_ds.command_line import RunArguments, read_run_arguments
from doge_ds.config import BaseConfig, load_config
from doge_ds.data.loader import MixtureLoader
from doge_ds.data.order import MixtureOrder
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, nearest
from doge_ds.export import base_order, export_run
from doge_ds.mixture import Mixture, choose_mixture
from doge_ds.plan import DomainNeed, plan_table, refuse_too_many_epochs
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import Checkpoints, cut_into_micro_batches, start_engine
from doge_ds.training.launch import (
    Ranks,
    finish,
    quieten_libraries,
    read_ranks,
    run_program,
    seed_everything,
    start_process_group,
)
from doge_ds.training.losses import DomainLosses
from doge_ds.training.model import build_model, flops_per_token, model_config, parameter_count, sequence_losses
from doge_ds.training.monitor import monitor_settings
from doge_ds.training.run import Run, RunDirectory
from doge_ds.training.throughput import Throughput


@dataclass(frozen=True)
class BaseJob:
    """Everything that was checked before other ranks are waited for."""

    config: BaseConfig
    store: TokenStore
    ranks: Ranks
    mixture: Mixture
    order: MixtureOrder
    loader: MixtureLoader
    model: Any
    deepspeed_config: dict[str, Any]
    monitors: dict[str, Any]
    directory: RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """One rank of the base run; the exit status."""
    quieten_libraries()
    job = check(read_run_arguments(__doc__ or "", arguments, needs_mixture=True))
    if not job.directory.is_finished:
        start_process_group(job.ranks)
        if not train(job):
            return finish(75)
        finish(0)
        if job.ranks.rank == 0:
            export_run(job.directory.path, job.directory.result)
    if job.ranks.rank == 0:
        print(f"finished: {job.directory.result}")
    return 0


def check(options: RunArguments) -> BaseJob:
    """Read and check every input. Raises DogeError, on every rank alike; changes nothing."""
    ranks = read_ranks()
    config = load_config(BaseConfig, options.config, options.settings)
    data, training = config.data, config.training
    store = TokenStore(data.path)
    domains = data.train_domains or store.domains
    for name in domains:
        if name not in store.domains:
            raise ConfigError("data.train_domains", f"{name!r} is not in {store.path}", nearest(name, store.domains))
    mixture = choose_mixture(options.mixture, {name: store.record(name, "train").tokens for name in domains})
    size, count = cut_into_micro_batches(
        "global_batch_size", training.global_batch_size, training.micro_batch_size, ranks.world_size
    )
    tokenizer = store.manifest.tokenizer
    model = model_config(
        config.model,
        tokenizer.vocabulary_size,
        tokenizer.end_of_text_id,
        data.sequence_length,
        tokenizer_sha256=tokenizer.sha256,
    )
    deepspeed_config = complete_deepspeed_config(
        config.deepspeed, training, stage=3, micro_batch_size=size, accumulation_steps=count, ranks=ranks
    )
    order = base_order(store, config, mixture.domains)
    loader = MixtureLoader(
        store, order, training.global_batch_size, size, data.sequence_length, ranks.rank, ranks.world_size
    )
    monitors = monitor_settings(config.deepspeed, options.output)
    facts = {
        "program": "train_base",
        "ranks": ranks.world_size,
        "mixture": mixture.domains,
        "mixture_from": {"kind": mixture.kind, "given_as": options.mixture, **mixture.source},
        **store.facts(),
    }
    directory = RunDirectory(options.output, config, facts, result="hf", resume=options.resume)
    job = BaseJob(config, store, ranks, mixture, order, loader, model, deepspeed_config, monitors, directory)
    refuse_too_many_epochs(_needs(job), data.max_epochs)
    return job


def train(job: BaseJob) -> bool:
    """The base loop; whether it came to its end (or was asked to stop, and saved)."""
    config, loader, directory = job.config, job.loader, job.directory
    if is_speaker := job.ranks.rank == 0:
        print(f"base: {parameter_count(job.model):,} parameters, {job.ranks.world_size} ranks, run {directory.path}")
        print(plan_table(_needs(job)), flush=True)
    model = build_model(job.model, job.deepspeed_config, config.training, config.model.get("pretrained"))
    engine = start_engine(model, job.deepspeed_config, config.training)
    if is_speaker:  # not before DeepSpeed has accepted its configuration
        directory.create()
    losses = DomainLosses(list(job.mixture.domains), engine.device)
    checkpoints = Checkpoints(directory.checkpoints, config.training)
    state = checkpoints.load(engine)
    if state is not None:
        loader.check_state(state["data"])
        losses.load_state_dict(state["losses"])
    throughput = Throughput(
        job.ranks.world_size, flops_per_token(job.model, config.data.sequence_length), config.training.peak_tflops
    )
    run = Run(directory, state["step"] if state else 0, config.training, job.monitors, throughput, is_speaker)
    tokens = config.training.global_batch_size * config.data.sequence_length

    for step, batch in zip(run.steps(), loader.batches(run.first_step), strict=False):
        learning_rate = engine.get_lr()[0]
        for number, (sequences, domains) in enumerate(batch.micro_batches):
            seed_everything(config.training.seed, step, "base", number, job.ranks.rank)
            of_each = sequence_losses(engine, sequences.to(engine.device, non_blocking=True))
            engine.backward(of_each.mean())
            engine.step()
            losses.add(of_each.detach(), domains)
        stop = losses.reduce(stop=run.stop_requested)
        values = {"loss": losses.step_mean, "learning_rate": learning_rate, "applied": engine.was_step_applied()}
        if run.is_logged(step):
            values |= losses.since_last_call() | shares(job, step + 1)
        run.log(step, tokens, tokens * (step + 1), values, shown="")
        if checkpoints.is_due(step) or stop:
            checkpoints.save(engine, step + 1, {"data": loader.state(step + 1), "losses": losses.state_dict()})
        if stop and step + 1 < config.training.steps:
            run.report_stop(step)
            return False
    return True


def shares(job: BaseJob, steps: int) -> dict[str, float]:
    """Of the samples so far, each domain's share, and the share that the mixture wants."""
    samples = steps * job.config.training.global_batch_size
    achieved = {f"achieved_share/{name}": count / samples for name, count in job.order.counts(samples).items()}
    return achieved | {f"wanted_share/{name}": weight for name, weight in job.mixture.domains.items()}


def _needs(job: BaseJob) -> list[DomainNeed]:
    """What the whole run reads of every domain."""
    samples = job.config.training.steps * job.config.training.global_batch_size
    needed = job.order.counts(samples)
    length = job.config.data.sequence_length
    return [
        DomainNeed(name, weight, needed[name], job.store.sequence_count(name, length))
        for name, weight in job.mixture.domains.items()
    ]


if __name__ == "__main__":
    run_program(main)
