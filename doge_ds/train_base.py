"""Pretrain a base model on a mixture under ZeRO-3.

    deepspeed doge_ds/train_base.py --config ds_configs/runs/demo_base.json --mixture runs/demo_proxy/mixture.json
    deepspeed doge_ds/train_base.py --config Y.json --mixture uniform --output runs/uniform
    deepspeed doge_ds/train_base.py --config Y.json --mixture doge_slimpajama --change_mixture

The mixture says how often a sequence comes from which domain; at every prefix of the run each domain's count is within
one sample of it (and one more for each change before it). Ends with a Hugging Face folder, RUN/hf. Started again by the
same command, an unfinished run continues from its latest checkpoint; with another mixture it is refused, or with
--change_mixture goes on with that one from its latest checkpoint on; so with another batch and --change_batch.

Exit status: 0 finished, 2 the input is wrong, 75 saved and not finished (SIGTERM, SIGINT or SIGUSR1), else failed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from doge_ds.batch_change import RunBatches, another_start, continued_batches, steps_done
from doge_ds.command_line import RunArguments, read_run_arguments
from doge_ds.config import BaseConfig, load_config
from doge_ds.data.loader import MixtureLoader
from doge_ds.data.order import MixtureOrder
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, nearest
from doge_ds.evaluation.held_out_sample import HeldOutSample
from doge_ds.export import base_order, export_run
from doge_ds.held_out import held_out_line, held_out_sample
from doge_ds.mixture import tokenizer_warning
from doge_ds.mixture_schedule import BaseMixture, Stage, chosen_schedule, continued, mean_weights
from doge_ds.plan import DomainNeed, plan_table, refuse_too_many_epochs
from doge_ds.training.agreement import raise_everywhere
from doge_ds.training.checkpoints import Checkpoints
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.engine import cut_into_micro_batches, start_engine
from doge_ds.training.health import Health
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
from doge_ds.training.run import Run
from doge_ds.training.run_directory import RunDirectory
from doge_ds.training.throughput import Throughput
from doge_ds.training.watchdog import Watchdog


@dataclass(frozen=True)
class BaseJob:
    """Everything that was checked before other ranks are waited for."""

    options: RunArguments
    config: BaseConfig
    store: TokenStore
    ranks: Ranks
    asked: list[Stage]
    mixture: BaseMixture
    batches: RunBatches
    order: MixtureOrder
    loader: MixtureLoader
    held_out: HeldOutSample
    model: Any
    deepspeed_config: dict[str, Any]
    monitors: dict[str, Any]
    directory: RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """One rank of the base run; the exit status."""
    quieten_libraries()
    job = check(read_run_arguments(__doc__ or "", arguments, needs_mixture=True))
    if not job.directory.is_finished:
        start_process_group(job.ranks, job.config.training.rank_timeout)
        with Watchdog(job.ranks, job.config.training.rank_timeout) as watchdog:
            is_finished = train(job, watchdog)
        if not is_finished:
            return finish(75)
        finish(0)
        if job.ranks.rank == 0:
            export_run(job.directory.path, job.directory.result, step=job.config.training.steps)
    if job.ranks.rank == 0:
        print(f"finished: {job.directory.result}")
    return 0


def check(options: RunArguments, planned: Ranks | None = None) -> BaseJob:
    """Read and check every input. Raises DogeError, on every rank alike; changes nothing.

    Args:
        planned: ranks of a plan, made on any machine; None for those that this process is one of.
    """
    ranks = planned or read_ranks()
    config = load_config(BaseConfig, options.config, options.settings)
    data, training = config.data, config.training
    store = TokenStore(data.path)
    domains = data.train_domains or store.domains
    for name in domains:
        if name not in store.domains:
            raise ConfigError("data.train_domains", f"{name!r} is not in {store.path}", nearest(name, store.domains))
    tokens = {name: store.record(name, "train").tokens for name in domains}
    asked = chosen_schedule(config, options.mixture, tokens, options.config)
    done = steps_done(options, config, "hf")
    mixture = continued(asked, options.output, done, training.steps, options.change_mixture)
    config, batches = mixture.resolved(config), continued_batches(options, config, done)
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
        config.deepspeed,
        training,
        stage=3,
        micro_batch_size=size,
        accumulation_steps=count,
        ranks=ranks,
        runs_here=planned is None,
    )
    order = base_order(store, config, mixture.weights, batches.sizes)
    loader = MixtureLoader(store, order, batches.sizes, size, data.sequence_length, ranks.rank, ranks.world_size)
    held_out = held_out_sample(config, store, domains, size, ranks)
    monitors = monitor_settings(config.deepspeed, options.output)
    facts = {
        "program": "train_base",
        "ranks": ranks.world_size,
        **mixture.facts(training.steps, batches.sizes),
        **batches.facts,
        "mixture_from": origin(asked, options.mixture or str(options.config)),
        **store.facts(),
    }
    directory = RunDirectory(
        options.output,
        config,
        facts,
        "hf",
        options.resume,
        changes_mixture=mixture.changed_at is not None,
        changes_batch=batches.changed_at is not None,
    )
    job = BaseJob(
        options,
        config,
        store,
        ranks,
        asked,
        mixture,
        batches,
        order,
        loader,
        held_out,
        model,
        deepspeed_config,
        monitors,
        directory,
    )
    refuse_too_many_epochs(domain_needs(job), data.max_epochs)
    return job


def origin(asked: Sequence[Stage], given_as: str) -> dict[str, Any]:
    """Where the mixture comes from, for run.json: of a schedule its last stage's source."""
    mixture = asked[-1].mixture
    return {"kind": "schedule" if len(asked) > 1 else mixture.kind, "given_as": given_as, **mixture.source}


def mixture_lines(job: BaseJob) -> list[str]:
    """What to know of the mixture before the first step: its stages, and whether it changes now."""
    lines = []
    if len(job.mixture.stages) > 1:
        starts = ", ".join(f"{stage.from_step:,}" for stage in job.mixture.stages)
        lines.append(f"the mixture changes: stages from steps {starts} on; the weights above are their mean")
    if job.mixture.changed_at is not None:
        lines.append(f"this start changes the mixture, from step {job.mixture.changed_at:,} on")
    return lines


def tokenizer_warnings(job: BaseJob) -> list[str]:
    """A line for each source of weights that were learned with another tokenizer than the store's."""
    sha256 = job.store.manifest.tokenizer.sha256
    found = [tokenizer_warning(stage.mixture, "the mixture", sha256) for stage in job.asked]
    return [warning for warning in dict.fromkeys(found) if warning]


def train(job: BaseJob, watchdog: Watchdog) -> bool:
    """The base loop; whether it came to its end (or was asked to stop, and saved)."""
    config, loader, directory = job.config, job.loader, job.directory
    if is_speaker := job.ranks.rank == 0:
        print(f"base: {parameter_count(job.model):,} parameters, {job.ranks.world_size} ranks, run {directory.path}")
        left_out = held_out_line(config, list(job.order.sequence_counts), job.held_out)
        changes = [*mixture_lines(job), *job.batches.lines]
        print("\n".join([plan_table(domain_needs(job)), *changes, *left_out]), flush=True)
        for warning in tokenizer_warnings(job):
            print(warning, file=sys.stderr, flush=True)
    model = build_model(job.model, job.deepspeed_config, config.training, config.model.get("pretrained"))
    engine = start_engine(model, job.deepspeed_config, config.training)
    losses = DomainLosses(list(job.order.sequence_counts), engine.device)
    health = Health(config.training.stop_after_bad_steps, has_loss_scale=engine.fp16_enabled())
    checkpoints = Checkpoints(directory.checkpoints, config.training)
    raise_everywhere(directory.lock() if is_speaker else None, engine.device)
    state = checkpoints.load(engine)
    if state is not None:
        losses.load_state_dict(state["losses"])
        health.load_state_dict(state["health"])
    first_step = state["step"] if state else 0
    raise_everywhere(another_start([job.mixture.changed_at, job.batches.changed_at], first_step), engine.device)
    loader.check_state(state["data"] if state else loader.state(0))
    if is_speaker:  # not before DeepSpeed has accepted its configuration, and a change its checkpoint
        directory.create(first_step, job.options.config)
    throughput = Throughput(
        job.ranks.world_size, flops_per_token(job.model, config.data.sequence_length), config.training.peak_tflops
    )
    run = Run(directory, first_step, config.training, job.monitors, throughput, watchdog, job.options.time_limit)
    length = config.data.sequence_length

    def save(problem: str | None) -> None:
        parts = {"data": loader.state(step + 1), "losses": losses.state_dict(), "health": health.state_dict()}
        checkpoints.save(engine, step + 1, parts, problem)

    for step, batch in zip(run.steps(), loader.batches(run.first_step), strict=False):
        learning_rate = engine.get_lr()[0]
        for number, (sequences, domains) in enumerate(batch.micro_batches):
            seed_everything(config.training.seed, step, "base", number, job.ranks.rank)
            of_each = sequence_losses(engine, sequences.to(engine.device, non_blocking=True))
            engine.backward(of_each.mean())
            engine.step()
            losses.add(of_each.detach(), domains)
        stop = losses.reduce(stop=run.stop_requested)
        was_applied = engine.was_step_applied()
        run.warn(health.observe(step, losses.step_mean, was_applied, partial(samples_read, loader, step)))
        values = {"loss": losses.step_mean, "learning_rate": learning_rate, "applied": was_applied}
        if run.is_logged(step):
            values |= losses.since_last_call() | shares(job, step + 1)
            values |= run.evaluate(step, lambda: job.held_out.measure(engine, engine.device))
        before, after = loader.samples(step), loader.samples(step + 1)
        run.log(step, (after - before) * length, after * length, values, shown="")
        if run.ends_after(step, stop, health, checkpoints, save):
            return False
    return True


def samples_read(loader: MixtureLoader, step: int) -> str:
    """Numbers of the samples of a 0-based step, in words."""
    return f"{loader.samples(step):,} to {loader.samples(step + 1) - 1:,}"


def shares(job: BaseJob, steps: int) -> dict[str, float]:
    """Of the samples so far, each domain's share, and the share that the mixture, or the schedule until here, wants."""
    samples = job.loader.samples(steps)
    achieved = {f"achieved_share/{name}": count / samples for name, count in job.order.counts(samples).items()}
    wanted = mean_weights(job.mixture.weights, steps, job.batches.sizes)
    return achieved | {f"wanted_share/{name}": weight for name, weight in wanted.items()}


def domain_needs(job: BaseJob, steps: int | None = None) -> list[DomainNeed]:
    """What so many steps (None: the whole run) read of every domain."""
    steps = job.config.training.steps if steps is None else steps
    needed = job.order.counts(job.loader.samples(steps))
    length = job.config.data.sequence_length
    return [
        DomainNeed(name, weight, needed[name], job.store.sequence_count(name, length))
        for name, weight in mean_weights(job.mixture.weights, steps, job.batches.sizes).items()
    ]


if __name__ == "__main__":
    run_program(main)
