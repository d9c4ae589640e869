"""Watches a proxy run for weights that are worth little: scalars for metrics.jsonl, and warnings with a remedy.

    after `weights.accept`: diagnostics.observe(step, proposal)
    on a logged line:       values |= diagnostics.scalars(); rank 0 prints diagnostics.warnings()
    after the last step:    rank 0 prints diagnostics.warnings(finished=True)

Nothing here changes what is computed. All ranks make the same calls and get the same answers: float64 on the CPU, from
numbers that are the same on every rank. It costs O(k) a step, and keeps 17 numbers a domain and 100 flags, however long
the run.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from doge_ds.config_sections import DogeConfig, MethodOptions
from doge_ds.reweight.domain_weights import Proposal

# Below this effective number of domains there is no mixture left: 1.5 is one domain with 86 % of the weight (of two
# domains) or 92 % (of seven, the others even); of more than 15 domains, nine in ten have as good as left.
COLLAPSED_DOMAINS, COLLAPSED_SHARE = 1.5, 0.1
# Total variation distance: one in 25 of the base model's sequences would come from another domain. Gradients of small
# proxies (150 to 400 steps), replayed with mu 0.01 and a fixed step size of 0.002, moved the weights by 0.06 to 0.24
# from the first tenth to the second, and by less than 0.04 in the second half. Without `step_size` the weights follow
# the learning rate: where that ends near 0 they come to rest in any case, and a small distance says little.
UNSETTLED = 0.04
# How far back "recent" goes, in updates: long enough that a share of one half is known to 0.05 (standard error).
RECENT = 100
# Nothing is said of fewer updates: of 20, the same standard error is 0.11.
FEWEST = 20
# Where all scores of an update are clipped, the bounds have taken their place; from one half on, these updates are
# the typical ones.
ALL_CLIPPED = 0.5
# Domains clipped to the lower bound have equal scores; above one half, that is what the typical score says.
NEGATIVE = 0.5
# A score grows with the norm of its domain's gradient, with target `all` up to its square, while cosines lie between -1
# and 1: where norms differ ten times, they decide.
NORM_RATIO = 10.0

# What a checkpoint keeps beside the last updates' flags and the warnings given.
_TENSORS = ("_weights", "_tenth_sums", "_tenth_counts", "_scores", "_recent_norms", "_line_norms", "_line_clipped")


class Diagnostics:
    """Sums over the accepted updates, what they say for a logged line, and which warnings were given."""

    def __init__(self, train_domains: Sequence[str], options: MethodOptions, steps: int) -> None:
        """Args: names of the k train domains, as DomainWeights has them; its options; steps of the whole run."""
        self._domains, self._options, self._steps = list(train_domains), options, steps
        # Scores of other methods, like DoReMi's excess losses: nothing clips them, and gradients have no part in them.
        doge = options if isinstance(options, DogeConfig) else None
        self._clip = doge.clip if doge else None
        self._largest_norm = doge.clip_domain_gradients if doge else None
        self._lengths_count = doge is not None and doge.normalize != "cosine"
        k = len(self._domains)
        self._weights = torch.full((k,), 1 / k, dtype=torch.float64)
        self._tenth_sums = self._weights.new_zeros(10, k)
        self._tenth_counts = self._weights.new_zeros(10)
        # Over the run, [2, k]: updates in which the domain's score is negative before clipping, and all that have it.
        self._scores = self._weights.new_zeros(2, k)
        # Exponential sums over each domain's last updates, [2, k]: norms as scores see them, and what to divide by.
        self._recent_norms = self._weights.new_zeros(2, k)
        self._all_clipped: deque[bool] = deque(maxlen=RECENT)
        self._given: list[str] = []
        self._start_line()

    def _start_line(self) -> None:
        """Since the last logged line: norms and updates, [2, k]; scores clipped below, clipped above and all, [3]."""
        self._line_norms = self._weights.new_zeros(2, len(self._domains))
        self._line_clipped = self._weights.new_zeros(3)

    def observe(self, step: int, proposal: Proposal) -> None:
        """Count one update that was accepted. Args: 0-based step; what `DomainWeights.accept` took."""
        self._weights = proposal.weights
        tenth = 10 * step // self._steps
        self._tenth_sums[tenth] += proposal.weights
        self._tenth_counts[tenth] += 1
        self._count_scores(proposal.raw_scores)
        self._count_norms(proposal.present, proposal.gradient_norms)

    def _count_scores(self, raw: torch.Tensor) -> None:
        known = ~raw.isnan()
        self._scores += torch.stack([raw < 0, known])
        if self._clip is not None:
            below, above = raw < self._clip[0], raw > self._clip[1]
            self._line_clipped += torch.stack([below.sum(), above.sum(), known.sum()])
            self._all_clipped.append(bool((below | above)[known].all()))

    def _count_norms(self, present: torch.Tensor, row_norms: torch.Tensor) -> None:
        norms = torch.zeros_like(self._weights)
        norms[present] = row_norms[: int(present.sum())]  # the rows start with the train domains that are there
        self._line_norms += torch.stack([norms, present])
        seen = norms.clamp(max=self._largest_norm or math.inf)
        self._recent_norms *= 1 - present.double() / RECENT
        self._recent_norms += torch.stack([seen, present])

    def scalars(self) -> dict[str, float]:
        """For a logged line, which it ends: the next one counts from here. What there is nothing to say of is left out.

        effective_domains: exp of the entropy of the current weights, 1 to k. clipped_low_share, clipped_high_share: of
        the scores since the last line, those changed by `doge.clip`. gradient_norm_ratio: largest over smallest of the
        train domains' mean norms since the last line, before clipping. weight_drift: total variation distance, 0 to 1,
        of the mean weights of the tenth of the run now under way from those of the tenth before.
        """
        values = {"effective_domains": self._effective_domains()}
        low, high, scores = self._line_clipped.tolist()
        if scores:
            values |= {"clipped_low_share": low / scores, "clipped_high_share": high / scores}
        norms, counts = self._line_norms
        means = (norms / counts)[counts > 0].tolist()
        if means and min(means) > 0:
            values["gradient_norm_ratio"] = max(means) / min(means)
        begun = self._tenth_counts.nonzero().flatten().tolist()
        if begun and (move := self._move(begun[-1])) is not None:
            values["weight_drift"] = _total_variation(move)
        self._start_line()
        return values

    def warnings(self, finished: bool = False) -> list[str]:
        """What is to be said now, one line each, and was not said in this run before.

        Args:
            finished: the run has come to its end, so that it can be said whether the weights have settled.
        """
        if len(self._domains) == 1:
            return []  # there is nothing to weigh
        checks = {
            "collapsed": self._collapsed,
            "all clipped": self._scores_all_clipped,
            "negative": self._scores_negative,
            "norms": self._norms_differ,
        }
        if finished:
            checks["unsettled"] = self._unsettled
        new = {name: text for name, check in checks.items() if name not in self._given and (text := check())}
        self._given += new
        return list(new.values())

    def _collapsed(self) -> str | None:
        k, effective = len(self._domains), self._effective_domains()
        if effective >= max(COLLAPSED_DOMAINS, COLLAPSED_SHARE * k):
            return None
        left = self._list(self._weights, self._weights > 1 / k, ".3f")
        return (
            f"the weights have collapsed to {effective:.2f} effective domains of {k} ({left}); "
            f"{self._options.slower()}, or raise {self._options.method}.smoothing (now {self._options.smoothing:g})"
        )

    def _unsettled(self) -> str | None:
        move = self._move(9)
        if move is None or (distance := _total_variation(move)) <= UNSETTLED:
            return None
        movers = self._list(move, move.abs() >= move.abs().max() / 2, "+.3f")
        return (
            "the weights have not settled: their means over the last two tenths of the run have a total variation "
            f"distance of {distance:.3f} ({movers}); raise training.steps, or {self._options.slower()}"
        )

    def _scores_all_clipped(self) -> str | None:
        updates, clipped = len(self._all_clipped), sum(self._all_clipped)
        if self._clip is None or updates < FEWEST or clipped < ALL_CLIPPED * updates:
            return None
        return (
            f"in {clipped} of the last {updates} updates the scores of all domains were clipped, so they say little; "
            f"widen doge.clip (now {list(self._clip)}) or change doge.normalize"
        )

    def _scores_negative(self) -> str | None:
        if self._clip is None or self._clip[0] < 0 or len(self._all_clipped) < FEWEST:
            return None
        negative, scored = self._scores
        share = float(negative.sum() / scored.sum())
        if share <= NEGATIVE:
            return None
        shares = negative / scored.clamp(min=1)
        return (
            f"{share:.0%} of all scores are negative and clipped to {self._clip[0]:g}, so that domains look alike "
            f"({self._list(shares, shares > NEGATIVE, '.0%')}); set doge.clip=null or another doge.target"
        )

    def _norms_differ(self) -> str | None:
        known = self._scores[1] >= FEWEST
        if not self._lengths_count or int(known.sum()) < 2:
            return None
        means = torch.where(known, self._recent_norms[0] / self._recent_norms[1], torch.nan)
        smallest, largest = int(means.nan_to_num(math.inf).argmin()), int(means.nan_to_num(-math.inf).argmax())
        if means[largest] <= NORM_RATIO * means[smallest]:
            return None
        high, low = (f"{self._domains[j]} {means[j].item():.3g}" for j in (largest, smallest))
        return (
            f"recent gradient norms differ more than {NORM_RATIO:g} times: {high} against {low}, so lengths decide the "
            'scores, not directions; set doge.normalize="cosine" or a lower doge.clip_domain_gradients '
            f"(now {self._largest_norm or 'null'})"
        )

    def _effective_domains(self) -> float:
        return float(torch.special.entr(self._weights).sum().exp())

    def _move(self, tenth: int) -> torch.Tensor | None:
        """Mean weights over a tenth of the run less those over the one before, [k]; None without updates in both."""
        if tenth == 0 or not bool(self._tenth_counts[tenth - 1 : tenth + 1].all()):
            return None
        before, now = (self._tenth_sums[number] / self._tenth_counts[number] for number in (tenth - 1, tenth))
        return now - before

    def _list(self, values: torch.Tensor, chosen: torch.Tensor, form: str) -> str:
        """The chosen domains, [k], with their values, largest first."""
        order = values.abs().argsort(descending=True, stable=True).tolist()
        return _first_three([f"{self._domains[j]} {values[j].item():{form}}" for j in order if chosen[j]])

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, as JSON, which keeps floats exactly."""
        numbers = {name: getattr(self, name).tolist() for name in _TENSORS}
        return {"domains": self._domains, **numbers, "all_clipped": list(self._all_clipped), "given": list(self._given)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state. Raises ValueError where it belongs to other domains."""
        if state["domains"] != self._domains:
            raise ValueError(f"state of {state['domains']} does not fit {self._domains}")
        for name in _TENSORS:
            setattr(self, name, torch.tensor(state[name], dtype=torch.float64))
        self._all_clipped = deque(state["all_clipped"], maxlen=RECENT)
        self._given = list(state["given"])


def _total_variation(move: torch.Tensor) -> float:
    """Half the sum of what all weights changed by."""
    return float(move.abs().sum() / 2)


def _first_three(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return ", ".join(parts[:3]) + more
