"""Learn domain weights with a small proxy model under ZeRO-2.

    deepspeed doge_ds/train_proxy.py --config ds_configs/runs/demo_proxy.json
    deepspeed doge_ds/train_proxy.py --config X.json --set training.steps=100 doge.mu=0.05 --output runs/short

Each step takes the same number of sequences of every domain, computes one gradient per domain, and moves the domain
weights towards the domains whose gradients point where the target's does; with "method": "doremi" and --reference
towards those whose loss is furthest above a reference model's. The mean of the weights over the run is the mixture,
RUN/mixture.json. Started again by the same command, an unfinished run continues from its latest checkpoint;
with another number of sequences a step it is refused, or with --change_batch goes on with that one from there on.

Exit status: 0 finished, 2 the input is wrong, 75 saved and not finished (SIGTERM, SIGINT or SIGUSR1), else failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from doge_ds.batch_change import RunBatches, another_start, continued_batches, steps_done
from doge_ds.command_line import RunArguments, read_run_arguments
from doge_ds.config import ProxyConfig, config_hash, load_config
from doge_ds.config_sections import DoremiConfig
from doge_ds.data.loader import ProxyLoader
from doge_ds.data.order import without_traces
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import DivergedError
from doge_ds.evaluation.held_out_sample import HeldOutSample
from doge_ds.held_out import held_out_line, held_out_sample
from doge_ds.json_files import write_json
from doge_ds.mixture import Mixture, read_mixture
from doge_ds.plan import DomainNeed, plan_table, refuse_too_many_epochs
from doge_ds.proxy_data import choose_domains, proxy_loader, reference_facts, sequences_read, with_reference
from doge_ds.reweight.diagnostics import Diagnostics
from doge_ds.reweight.doge import DogeWeights
from doge_ds.reweight.domain_weights import DomainWeights, Proposal
from doge_ds.reweight.doremi import DoremiWeights
from doge_ds.training.agreement import raise_everywhere
from doge_ds.training.checkpoints import Checkpoints
from doge_ds.training.deepspeed_config import complete_deepspeed_config
from doge_ds.training.domain_gradients import DomainGradients, StepSummary, UpdateSummary
from doge_ds.training.engine import cut_into_micro_batches, start_engine
from doge_ds.training.health import Health
from doge_ds.training.launch import Ranks, finish, quieten_libraries, read_ranks, run_program, start_process_group
from doge_ds.training.model import build_model, flops_per_token, model_config, parameter_count
from doge_ds.training.monitor import monitor_settings
from doge_ds.training.reference_model import load_reference, reference_config
from doge_ds.training.run import Run
from doge_ds.training.run_directory import RunDirectory
from doge_ds.training.selection import TensorSelection
from doge_ds.training.throughput import Throughput
from doge_ds.training.watchdog import Watchdog


@dataclass(frozen=True)
class ProxyJob:
    """Everything that was checked before other ranks are waited for."""

    options: RunArguments
    config: ProxyConfig
    store: TokenStore
    ranks: Ranks
    train_domains: list[str]
    batches: RunBatches
    loader: ProxyLoader
    held_out: HeldOutSample
    model: Any
    reference: Any
    deepspeed_config: dict[str, Any]
    monitors: dict[str, Any]
    directory: RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """One rank of the proxy run; the exit status."""
    quieten_libraries()
    job = check(read_run_arguments(__doc__ or "", arguments))
    if not job.directory.is_finished:
        start_process_group(job.ranks, job.config.training.rank_timeout)
        with Watchdog(job.ranks, job.config.training.rank_timeout) as watchdog:
            is_finished = train(job, watchdog)
        if not is_finished:
            return finish(75)
    if job.ranks.rank == 0:
        _print_result(job)
    return finish(0)


def check(options: RunArguments, planned: Ranks | None = None) -> ProxyJob:
    """Read and check every input. Raises DogeError, on every rank alike; changes nothing.

    Args:
        planned: ranks of a plan, made on any machine; None for those that this process is one of.
    """
    ranks = planned or read_ranks()
    config = with_reference(load_config(ProxyConfig, options.config, options.settings), options.reference)
    data, training = config.data, config.training
    store = TokenStore(data.path)
    train_domains, target_domains = choose_domains(config, store)
    micro_batch_size, _ = cut_into_micro_batches(
        "sequences_per_domain", training.sequences_per_domain, training.micro_batch_size, ranks.world_size
    )
    tokenizer = store.manifest.tokenizer
    sizes = (tokenizer.vocabulary_size, tokenizer.end_of_text_id, data.sequence_length)
    model = model_config(config.model, *sizes, tokenizer_sha256=tokenizer.sha256)
    reference = None
    if config.needs_reference:
        reference = reference_config(config.reference, *sizes, tokenizer.sha256)
    deepspeed_config = complete_deepspeed_config(
        config.deepspeed,
        training,
        stage=2,
        micro_batch_size=micro_batch_size,
        accumulation_steps=1,
        ranks=ranks,
        runs_here=planned is None,
    )
    batches = continued_batches(options, config, steps_done(options, config, "mixture.json"))
    loader = proxy_loader(config, store, batches.sizes, micro_batch_size, ranks.rank, ranks.world_size)
    held_out = held_out_sample(config, store, [*train_domains, *target_domains], micro_batch_size, ranks)
    monitors = monitor_settings(config.deepspeed, options.output)
    facts = {"program": "train_proxy", "ranks": ranks.world_size, **batches.facts, **store.facts()}
    facts |= reference_facts(config)
    directory = RunDirectory(
        options.output, config, facts, "mixture.json", options.resume, changes_batch=batches.changed_at is not None
    )
    job = ProxyJob(
        options,
        config,
        store,
        ranks,
        train_domains,
        batches,
        loader,
        held_out,
        model,
        reference,
        deepspeed_config,
        monitors,
        directory,
    )
    refuse_too_many_epochs(domain_needs(job), data.max_epochs)
    return job


@dataclass(frozen=True)
class Proxy:
    """What a run trains and learns, on this rank."""

    engine: Any
    gradients: DomainGradients
    selection: TensorSelection
    weights: DomainWeights
    diagnostics: Diagnostics
    health: Health
    checkpoints: Checkpoints

    def parts(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the engine and the state of the data."""
        names = ("weights", "selection", "diagnostics", "health")
        return {name: getattr(self, name) for name in names}

    def save(self, loader: ProxyLoader, step: int, problem: str | None) -> None:
        """A checkpoint after `step` steps: model, weights and the state of the data in one."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        self.checkpoints.save(self.engine, step, {"data": loader.state(step), **state}, problem)


def start(job: ProxyJob, watchdog: Watchdog) -> tuple[Proxy, Run]:
    """Model, engine and weights, as they begin or as the latest checkpoint has them, and the run directory."""
    config, directory = job.config, job.directory
    if is_speaker := job.ranks.rank == 0:
        _print_plan(job)
    model = build_model(job.model, job.deepspeed_config, config.training, config.model.get("pretrained"))
    engine = start_engine(model, job.deepspeed_config, config.training)
    targets = len(job.loader.row_names) - len(job.train_domains)
    reference = load_reference(job.reference, str(config.reference), engine) if job.reference else None
    gradients = DomainGradients(engine, job.train_domains, targets, config.training.seed, config.options, reference)
    selection = TensorSelection(engine, gradients, config.doge.selection)
    weights = first_weights(config, job.train_domains, job.loader.row_names)
    diagnostics = Diagnostics(job.train_domains, config.options, config.training.steps)
    health = Health(config.training.stop_after_bad_steps, has_loss_scale=engine.fp16_enabled())
    checkpoints = Checkpoints(directory.checkpoints, config.training)
    proxy = Proxy(engine, gradients, selection, weights, diagnostics, health, checkpoints)
    raise_everywhere(directory.lock() if is_speaker else None, engine.device)
    state = checkpoints.load(engine)
    if state is not None:
        for name, part in proxy.parts().items():
            part.load_state_dict(state[name])
    first_step = state["step"] if state else 0
    raise_everywhere(another_start([job.batches.changed_at], first_step), engine.device)
    job.loader.check_state(state["data"] if state else job.loader.state(0))
    if is_speaker:  # not before DeepSpeed has accepted its configuration, and a change its checkpoint
        directory.create(first_step, job.options.config)
    throughput = Throughput(
        job.ranks.world_size, flops_per_token(job.model, config.data.sequence_length), config.training.peak_tflops
    )
    run = Run(directory, first_step, config.training, job.monitors, throughput, watchdog, job.options.time_limit)
    return proxy, run


def first_weights(config: ProxyConfig, train_domains: Sequence[str], rows: Sequence[str]) -> DomainWeights:
    """Uniform weights, and the method that will move them. Args: rows: train domains first, then the targets'."""
    if isinstance(config.options, DoremiConfig):
        return DoremiWeights(train_domains, config.options)
    return DogeWeights(train_domains, rows, config.options)


def train(job: ProxyJob, watchdog: Watchdog) -> bool:
    """The proxy loop; whether it came to its end (or was asked to stop, and saved)."""
    loader, steps = job.loader, job.config.training.steps
    proxy, run = start(job, watchdog)
    gradients, weights = proxy.gradients, proxy.weights

    for step in run.steps():
        batches = loader.domain_batches(step)
        learning_rate = proxy.engine.get_lr()[0]
        proposal: Proposal | None = None
        summary: StepSummary
        if loader.is_update(step):
            for row, micro_batches in batches:
                gradients.collect(step, row, micro_batches)
            summary = update = gradients.reduce(stop=run.stop_requested)
            proposal = weights.propose(update, learning_rate)
            gradients.apply(proposal.coefficients)
        else:
            coefficients = weights.coefficients([row for row, _ in batches])
            summary = gradients.train(step, batches, coefficients, stop=run.stop_requested)
        was_applied = proxy.selection.step(step)
        if proposal and was_applied:
            weights.accept(proposal)
            proxy.diagnostics.observe(step, proposal)
        values: dict[str, Any] = {"loss": mean_loss(summary, job.train_domains)}
        run.warn(
            proxy.health.observe(
                step, values["loss"], was_applied, partial(sequences_read, loader, step, summary.rows, summary.losses)
            )
        )
        if run.is_logged(step):
            values |= step_metrics(weights, proposal, summary)
            values |= {"learning_rate": learning_rate, "applied": was_applied, **proxy.diagnostics.scalars()}
            run.warn(proxy.diagnostics.warnings(finished=step + 1 == steps))
            values |= run.evaluate(step, lambda: job.held_out.measure(proxy.engine, proxy.engine.device))
        tokens = [loader.samples(number) * job.config.data.sequence_length for number in (step, step + 1)]
        run.log(step, tokens[1] - tokens[0], tokens[1], values, shown=_shown(weights))
        if run.ends_after(step, summary.stop, proxy.health, proxy.checkpoints, partial(proxy.save, loader, step + 1)):
            return False

    if job.ranks.rank == 0:
        _write_results(job, proxy)
    return True


def mean_loss(summary: StepSummary, train_domains: Sequence[str]) -> float:
    """Plain mean over the train domains that the step has."""
    found = [loss for name, loss in zip(summary.rows, summary.losses.tolist(), strict=True) if name in train_domains]
    return float(sum(found) / len(found))


def step_metrics(weights: DomainWeights, proposal: Proposal | None, summary: StepSummary) -> dict[str, Any]:
    """What metrics.jsonl says of one step beside its mean loss and learning rate; less between updates."""
    values: dict[str, Any] = {
        f"loss/{name}": loss for name, loss in zip(summary.rows, summary.losses.tolist(), strict=True)
    }
    values |= {f"weight/{name}": weight for name, weight in weights.current().items()}
    values |= {f"mean_weight/{name}": weight for name, weight in weights.mean().items()}
    if proposal is None or not isinstance(summary, UpdateSummary):
        return values
    scores = zip(weights.train_domains, proposal.scores.tolist(), proposal.present.tolist(), strict=True)
    values |= {f"score/{name}": score for name, score, is_present in scores if is_present}
    norms = proposal.gradient_norms.tolist()
    values |= {f"gradient_norm/{name}": norm for name, norm in zip(summary.rows, norms, strict=True)}
    values["gram"] = summary.gram.tolist()
    if not bool(proposal.present.all()):
        values["gram_rows"] = summary.rows
    return values


def _shown(weights: DomainWeights) -> str:
    """The weights for the progress line, the largest six."""
    largest = sorted(weights.current().items(), key=lambda item: -item[1])[:6]
    return " ".join(f"{name} {weight:.3f}" for name, weight in largest)


def domain_needs(job: ProxyJob, steps: int | None = None) -> list[DomainNeed]:
    """What so many steps (None: the whole run) read for every row; train domains get the same number of sequences,
    whatever the weights."""
    steps = job.config.training.steps if steps is None else steps
    needed, available = job.loader.needs(steps), job.loader.available()
    weight = 1 / len(job.train_domains)
    return [
        DomainNeed(row, weight if row in job.train_domains else None, count, available[row])
        for row, count in needed.items()
    ]


def _print_plan(job: ProxyJob) -> None:
    """What is about to be read, of every row."""
    print(f"proxy: {parameter_count(job.model):,} parameters, {job.ranks.world_size} ranks, run {job.directory.path}")
    domains = [name for name in job.loader.row_names if name in job.store.domains]  # not the mix
    lines = [*job.batches.lines, *held_out_line(job.config, domains, job.held_out)]
    print("\n".join([plan_table(domain_needs(job)), *lines]), flush=True)


def _write_results(job: ProxyJob, proxy: Proxy) -> None:
    """RUN/selection.json where tensors were selected; RUN/mixture.json, whose presence says that the run is finished.

    Raises:
        DivergedError: no step counted.
    """
    weights = proxy.weights
    updates = sum(job.loader.is_update(step) for step in range(job.config.training.steps))
    if skipped := updates - weights.count:
        print(f"{skipped} of {updates} updates were skipped: their gradients were not finite")
    if not weights.count:
        remedy = "lower training.learning_rate, or look for damaged text"
        raise DivergedError(str(job.directory.path), "every step was skipped, so no weights were learned", remedy)
    if job.config.doge.selection:
        write_json(job.directory.path / "selection.json", proxy.selection.facts())
    source = {
        "method": job.config.method,
        "run": str(job.directory.path),
        "step": job.config.training.steps,
        "accepted_steps": weights.count,
        "target": job.config.target,
        "config_sha256": config_hash(job.config),
        **job.store.facts(),
    }
    # A trace of a domain would be refused by the base that trains on it; metrics.jsonl has it.
    Mixture(domains=without_traces(weights.mean()), kind="mean", source=source).write(job.directory.result)


def _print_result(job: ProxyJob) -> None:
    """The mean weights, largest first."""
    mixture = read_mixture(job.directory.result)
    print(f"finished: {job.directory.result}")
    width = max(map(len, mixture.domains))
    for name, weight in sorted(mixture.domains.items(), key=lambda item: -item[1]):
        print(f"  {name:<{width}}  {weight:.4f}")


if __name__ == "__main__":
    run_program(main)
