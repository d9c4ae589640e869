"""Which mixture a base run trains on at which step; and what happens to that when a run is continued.

`chosen_schedule` reads what the user asks for: `--mixture`, else `mixture` of the run configuration. `continued` then
looks at the run directory and says what holds:

* What was asked for is recorded, and so is what was trained on. Asked for the same again, a run goes on with its
  record. RUN/config.json, which holds the record, may be asked for too.
* Anything else is another run, which RunDirectory refuses. With `--change_mixture` it is a change: steps that the
  newest checkpoint has behind it keep the mixture that they were trained on, all later ones get the new one. Whatever
  was trained beyond that checkpoint is trained again, as after every kill, so nothing is lost or repeated.
* A change is recorded in run.json, in one piece, once the checkpoint has been loaded and before the first step. A kill
  before that leaves the run as it was, and the same command changes it at the same step; a kill later finds what was
  asked for in the record, and changes nothing again, with the option or without.

A checkpoint's fingerprint covers the order of the samples up to it (`MixtureLoader.state`), so that every checkpoint
fits the record, those before a change and those after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from doge_ds.config import BaseConfig, MixtureStage, check_stages, stage_mistake
from doge_ds.data.batches import BatchSizes
from doge_ds.errors import ConfigError, MixtureError, RunError
from doge_ds.json_files import is_inside, parse_json, read_bytes, write_json
from doge_ds.mixture import Mixture, choose_mixture, normalized, published_names

_LAYOUT = '{"version": 1, "schedule": [{"from_step": 0, "mixture": {"wiki": 0.4, "books": 0.6}}, ...]}'


class Stage(NamedTuple):
    """From so many steps done on, this mixture."""

    from_step: int
    mixture: Mixture


class ScheduleFile(BaseModel):
    """What `doge-ds mixture schedule` writes; its mixtures may be anything that a stage of a configuration may have."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    schedule: list[MixtureStage] = Field(min_length=1)
    source: dict[str, Any] = Field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file, in one piece or not at all."""
        write_json(path, self.model_dump(mode="json"))


def chosen_schedule(
    config: BaseConfig, choice: str | None, tokens: Mapping[str, int], config_path: Path
) -> list[Stage]:
    """What a base run shall train on, from which step on; most have one stage.

    Args:
        config: the run configuration.
        choice: `--mixture`; None where it is not given.
        tokens: of each train domain, in their order.
        config_path: the configuration's file; paths in it are relative to its folder.

    Returns:
        Stages by rising `from_step`, the first from 0, none like the one before it; all over the train domains.

    Raises:
        ConfigError: neither `--mixture` nor `mixture`, an unknown name, or a stage that starts after the run's end.
        MixtureError: a mixture or schedule cannot be read, or its domains are not the train domains.
    """
    key = f"{config_path}: mixture"
    if choice:
        stages = _read_choice(choice, tokens, f"--mixture {choice}", Path())
    elif isinstance(config.mixture, str):
        stages = _read_choice(config.mixture, tokens, key, config_path.parent)
    elif config.mixture:
        stages = _read_stages(config.mixture, tokens, key, config_path.parent)
    else:
        remedy = "give a mixture.json, a schedule, uniform, natural or a published name, there or as `mixture` here"
        raise ConfigError("--mixture", f"is missing, and {config_path} has no mixture", remedy)
    if stages[-1].from_step >= config.training.steps:
        problem = f"has a stage from step {stages[-1].from_step} on, and training.steps is {config.training.steps}"
        where = f"--mixture {choice}" if choice else key
        raise ConfigError(where, problem, "`doge-ds mixture schedule --steps` makes its steps fit")
    return _merged(stages)


def is_schedule(path: Path) -> bool:
    """Whether a file is a schedule of mixtures, well-formed or not."""
    try:
        values = parse_json(read_bytes(path))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "schedule" in values


def read_schedule_file(path: Path) -> ScheduleFile:
    """Read it.

    Raises:
        MixtureError: it has another layout, its stages do not start at 0 and increase, or one names a file elsewhere.
    """
    try:
        found = ScheduleFile.model_validate(parse_json(read_bytes(path)))
        check_stages([stage.from_step for stage in found.schedule], found.schedule[-1].from_step + 1)
    except OSError as error:
        raise MixtureError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except ValidationError as error:
        raise MixtureError(str(path), stage_mistake(error), f"write it like {_LAYOUT}") from None
    except ValueError as error:
        raise MixtureError(str(path), str(error), f"write it like {_LAYOUT}") from None
    for stage in found.schedule:  # a schedule may come from others; a configuration is the user's own
        if isinstance(stage.mixture, str) and not is_inside(stage.mixture):
            problem = f"names {stage.mixture!r}, which is not in its folder"
            raise MixtureError(str(path), problem, "put the file beside it, or write the weights there")
    return found


def mean_weights(
    stages: Sequence[tuple[int, Mapping[str, float]]], steps: int, sizes: BatchSizes | None = None
) -> dict[str, float]:
    """What the first `steps` steps shall have of each domain, over all of them: the stages' weights, by their samples.

    Args:
        sizes: samples of every step; None where all have the same number.
    """
    begun = [stage for stage in stages if stage[0] < steps] or list(stages[:1])
    if len(begun) == 1:
        return dict(begun[0][1])
    sizes = sizes or BatchSizes.of(1)
    ends = [*(start for start, _ in begun[1:]), steps]
    lengths = [sizes.samples(end) - sizes.samples(start) for (start, _), end in zip(begun, ends, strict=True)]
    return {
        name: sum(length * weights[name] for (_, weights), length in zip(begun, lengths, strict=True)) / sum(lengths)
        for name in begun[0][1]
    }


@dataclass(frozen=True)
class BaseMixture:
    """What a base run trains on.

    Attributes:
        stages: by rising step.
        given: what the user asked for, where a change in mid-run made it differ from `stages`.
        changed_at: steps done where this start changes the mixture; None where it does not.
    """

    stages: list[Stage]
    given: list[Stage] | None = None
    changed_at: int | None = None

    @property
    def weights(self) -> list[tuple[int, dict[str, float]]]:
        """The stages without their mixtures' provenance."""
        return _weights(self.stages)

    def facts(self, steps: int, sizes: BatchSizes | None = None) -> dict[str, Any]:
        """Their part of run.json: the mean over all `steps`, of these sizes; the stages, where there are several;
        `given`."""
        found: dict[str, Any] = {"mixture": mean_weights(self.weights, steps, sizes)}
        if len(self.stages) > 1:
            found["schedule"] = _as_json(self.stages)
        if self.given:
            found["mixture_given"] = _as_json(self.given)
        return found

    def resolved(self, config: BaseConfig) -> BaseConfig:
        """The configuration with these weights in place of files and names, so that RUN/config.json stands alone."""
        stages = [MixtureStage(from_step=start, mixture=weights) for start, weights in self.weights]
        return config.model_copy(update={"mixture": stages})


def continued(asked: list[Stage], run: Path, steps_done: int, steps: int, change: bool) -> BaseMixture:
    """What holds in the run directory `run`; the rule stands at the head of this file. Changes nothing.

    Args:
        asked: from `chosen_schedule`.
        run: RUN, which need not be there.
        steps_done: steps that its newest checkpoint has behind it.
        steps: of the whole run.
        change: `--change_mixture`.

    Raises:
        RunError: a change of a run that has done all its steps.
    """
    record = _read_record(run)
    if record is None:
        return BaseMixture(asked)
    stages, given = record
    wanted = _weights(asked)
    if wanted in (_weights(given or stages), _weights(stages)):
        return BaseMixture(stages, given)
    if not change or stages[0].mixture.domains.keys() != asked[0].mixture.domains.keys():
        return BaseMixture(asked)
    if steps_done >= steps:
        raise RunError(str(run), f"has done all its {steps} steps", "name another --output for another mixture")
    kept = [stage for stage in stages if stage.from_step < steps_done]
    running = [stage for stage in asked if stage.from_step <= steps_done][-1]
    later = [stage for stage in asked if stage.from_step > steps_done]
    spliced = _merged([*kept, Stage(steps_done, running.mixture), *later])
    return BaseMixture(spliced, None if _weights(spliced) == wanted else asked, steps_done)


def _read_record(run: Path) -> tuple[list[Stage], list[Stage] | None] | None:
    """Stages and what was asked for, from run.json; None where there is none of a base run: RunDirectory says so."""
    try:
        facts = parse_json(read_bytes(run / "run.json"))
        stages = facts.get("schedule") or [{"from_step": 0, "mixture": facts["mixture"]}]
        return _from_json(stages), _from_json(facts["mixture_given"]) if "mixture_given" in facts else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _as_json(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    return [{"from_step": stage.from_step, "mixture": stage.mixture.domains} for stage in stages]


def _from_json(values: Any) -> list[Stage]:
    """Raises ValueError, KeyError or TypeError where these are no stages that we have written."""
    found = [Stage(value["from_step"], Mixture(domains=value["mixture"])) for value in values]
    check_stages([stage.from_step for stage in found], found[-1].from_step + 1)
    if any(stage.mixture.domains.keys() != found[0].mixture.domains.keys() for stage in found):
        raise ValueError("the stages have not the same domains")
    return found


def _weights(stages: Sequence[Stage]) -> list[tuple[int, dict[str, float]]]:
    return [(stage.from_step, stage.mixture.domains) for stage in stages]


def _merged(stages: Sequence[Stage]) -> list[Stage]:
    """Without stages that go on with the weights of the one before."""
    return [
        stage
        for number, stage in enumerate(stages)
        if number == 0 or stage.mixture.domains != stages[number - 1].mixture.domains
    ]


def _read_choice(choice: str, tokens: Mapping[str, int], where: str, folder: Path) -> list[Stage]:
    """A word or name, the file of one mixture, or that of a schedule."""
    path = folder / choice
    if choice in ("uniform", "natural", *published_names()) or not is_schedule(path):
        return [Stage(0, choose_mixture(choice, tokens, where, folder))]
    found = read_schedule_file(path)
    return _read_stages(found.schedule, tokens, str(path), path.parent, found.source)


def _read_stages(
    stages: Sequence[MixtureStage],
    tokens: Mapping[str, int],
    where: str,
    folder: Path,
    source: Mapping[str, Any] | None = None,
) -> list[Stage]:
    """Each stage's mixture over the train domains. Raises MixtureError and ConfigError as `choose_mixture`."""
    found = []
    for stage in stages:
        here = f"{where}, from step {stage.from_step}"
        if isinstance(stage.mixture, str):
            found.append(Stage(stage.from_step, choose_mixture(stage.mixture, tokens, here, folder)))
        else:
            mixture = Mixture(domains=normalized(stage.mixture, here), source=dict(source or {}))
            found.append(Stage(stage.from_step, mixture.over(list(tokens), here)))
    return found
