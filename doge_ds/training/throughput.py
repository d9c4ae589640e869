"""How fast a run is, and how much of its devices it uses."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Throughput:
    """Tokens since the last logged step, as rates.

    Attributes:
        devices: ranks of the run.
        flops_per_token: of training the model; None where nobody knows.
        peak_tflops: of one device; None where the user gave none.
    """

    devices: int = 1
    flops_per_token: float | None = None
    peak_tflops: float | None = None
    _tokens: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add(self, tokens: int) -> None:
        """Count the tokens of one step, over all ranks."""
        self._tokens += tokens

    def restart(self) -> None:
        """Count from here on."""
        self._tokens, self._since = 0, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of this block is none of the tokens'."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def rates(self) -> dict[str, float]:
        """For metrics.jsonl: `tokens_per_second`, `tokens_per_second_per_device`, and where there is enough to tell
        `tflops_per_device` (10^12 operations a second) and `mfu` (their share of the peak, 0 to 1)."""
        rate = self._tokens / max(time.monotonic() - self._since, 1e-9)
        found = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / self.devices}
        if self.flops_per_token is not None:
            found["tflops_per_device"] = rate / self.devices * self.flops_per_token / 1e12
            if self.peak_tflops is not None:
                found["mfu"] = found["tflops_per_device"] / self.peak_tflops
        return found


def format_rates(rates: dict[str, float]) -> str:
    """The rates for the progress line."""
    parts = [f"{rates['tokens_per_second']:,.0f} tokens/s", f"{rates['tokens_per_second_per_device']:,.0f} a device"]
    if "tflops_per_device" in rates:
        parts.append(f"{rates['tflops_per_device']:.3g} TFLOP/s")
    if "mfu" in rates:
        parts.append(f"MFU {rates['mfu']:.1%}")
    return ", ".join(parts)
