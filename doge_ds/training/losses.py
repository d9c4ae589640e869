"""Loss per domain over all ranks, in one small all-reduce a step."""

from collections.abc import Sequence

import deepspeed
import torch


class DomainLosses:
    """Sums and counts of sequence losses per domain, of the step under way and since the last logged step."""

    def __init__(self, domains: Sequence[str], device: torch.device | str) -> None:
        """Args: names, in the order of the loader's domain numbers; where the losses are computed."""
        self._domains = list(domains)
        self._step = torch.zeros(2, len(domains), dtype=torch.float64, device=device)
        self._since_log = torch.zeros(2, len(domains), dtype=torch.float64)
        self.step_mean = float("nan")

    def add(self, losses: torch.Tensor, domains: torch.Tensor) -> None:
        """Add one micro-batch of this rank.

        Args:
            losses: mean token loss of each sequence, [batch].
            domains: domain number of each sequence, [batch], int64, on any device.
        """
        domains = domains.to(self._step.device, non_blocking=True)
        losses = losses.double()
        self._step[0].index_add_(0, domains, losses)
        self._step[1].index_add_(0, domains, torch.ones_like(losses))

    def reduce(self, stop: bool) -> bool:
        """Sum the step over all ranks (collective); whether any of them was asked to stop.

        `step_mean` is then the mean loss of the step's sequences.
        """
        flag = torch.tensor([float(stop)], dtype=torch.float64, device=self._step.device)
        packed = torch.cat([self._step.flatten(), flag])
        deepspeed.comm.all_reduce(packed)
        packed = packed.cpu()
        step = packed[:-1].view_as(self._since_log)
        self._since_log += step
        self.step_mean = float(step[0].sum() / step[1].sum())
        self._step.zero_()
        return bool(packed[-1] > 0)

    def since_last_call(self) -> dict[str, float]:
        """ "loss/<domain>": mean over its sequences since the last call; domains without any are left out."""
        sums, counts = self._since_log.tolist()
        self._since_log.zero_()
        rows = zip(self._domains, sums, counts, strict=True)
        return {f"loss/{name}": total / count for name, total, count in rows if count}

    def state_dict(self) -> dict[str, list[float]]:
        """The sums and counts since the last logged step, so that a resumed run logs what an undisturbed one would."""
        sums, counts = self._since_log.tolist()
        return {"sums": sums, "counts": counts}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Take over a checkpoint's sums and counts."""
        self._since_log = torch.tensor([state["sums"], state["counts"]], dtype=torch.float64)
