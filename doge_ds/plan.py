"""What a run will read of every domain, printed before its first step; and the refusal of too many epochs."""

from collections.abc import Sequence
from dataclasses import dataclass

from doge_ds.errors import ConfigError


@dataclass(frozen=True)
class DomainNeed:
    """One domain in one run: `needed` and `available` are sequences; a target that is not trained on has no weight."""

    name: str
    weight: float | None
    needed: int
    available: int

    @property
    def epochs(self) -> float:
        return self.needed / self.available if self.available else 0.0


def plan_table(needs: Sequence[DomainNeed]) -> str:
    """The table: domain, weight, sequences needed, sequences there, epochs; a line more where text is repeated."""
    width = max(len("domain"), *(len(need.name) for need in needs))
    lines = [f"{'domain':<{width}}  {'weight':>7}  {'sequences needed':>16}  {'there':>10}  {'epochs':>6}"]
    for need in needs:
        weight = "-" if need.weight is None else f"{need.weight:.4f}"
        lines.append(
            f"{need.name:<{width}}  {weight:>7}  {need.needed:>16,}  {need.available:>10,}  {need.epochs:>6.2f}"
        )
    return "\n".join([*lines, *filter(None, [repetition_warning(needs)])])


def repetition_warning(needs: Sequence[DomainNeed]) -> str:
    """One line where the run reads domains more than once, the most often read first; "" where it does not."""
    repeated = sorted((need for need in needs if need.epochs > 1), key=lambda need: -need.epochs)
    if not repeated:
        return ""
    more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
    times = ", ".join(f"{need.name} {need.epochs:.2f} times" for need in repeated[:3]) + more
    remedy = "add text or lower training.steps (data.max_epochs sets what is refused)"
    return f"warning: the run reads domains more than once: {times}; {remedy}"


def refuse_too_many_epochs(needs: Sequence[DomainNeed], max_epochs: float) -> None:
    """Raises ConfigError for the domain that is read most often, where that is more than `max_epochs`."""
    worst = max(needs, key=lambda need: need.epochs)
    if worst.epochs > max_epochs:
        raise ConfigError(
            "data.max_epochs",
            f"{worst.name} would be read {worst.epochs:.1f} times, more than {max_epochs:g}",
            "lower training.steps or its weight in the mixture, add text, or raise data.max_epochs",
        )
