"""Rates of a run: tokens a second, of a device, in operations, and as a share of the peak."""

import pytest

from doge_ds.training.throughput import Throughput, format_rates


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until a test moves it."""
    now = [100.0]
    monkeypatch.setattr("doge_ds.training.throughput.time.monotonic", lambda: now[0])
    return now


def test_rates_count_from_the_last_restart(clock: list[float]) -> None:
    throughput = Throughput(devices=4, flops_per_token=2e9, peak_tflops=0.5)
    throughput.restart()
    throughput.add(1000)
    throughput.add(600)
    clock[0] += 2
    rates = throughput.rates()
    assert rates == pytest.approx(
        {"tokens_per_second": 800, "tokens_per_second_per_device": 200, "tflops_per_device": 0.4, "mfu": 0.8}
    )
    assert format_rates(rates) == "800 tokens/s, 200 a device, 0.4 TFLOP/s, MFU 80.0%"
    throughput.restart()
    throughput.add(10)
    clock[0] += 1
    assert throughput.rates()["tokens_per_second"] == 10


def test_a_pause_does_not_count(clock: list[float]) -> None:
    throughput = Throughput()
    throughput.restart()
    throughput.add(100)
    clock[0] += 1
    with throughput.paused():
        clock[0] += 50
    clock[0] += 1
    assert throughput.rates()["tokens_per_second"] == 50


def test_what_nobody_knows_is_left_out(clock: list[float]) -> None:
    for throughput, keys in (
        (Throughput(devices=2), 2),
        (Throughput(devices=2, peak_tflops=1.0), 2),
        (Throughput(devices=2, flops_per_token=1e9), 3),
    ):
        throughput.add(50)
        clock[0] += 1
        assert len(throughput.rates()) == keys
    assert format_rates(Throughput().rates()) == "0 tokens/s, 0 a device"
