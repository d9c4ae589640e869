"""Rows of gradients against plain float64 products, over pieces that do not fit the chunks."""

import pytest
import torch

from doge_ds.training import gradient_rows
from doge_ds.training.gradient_rows import GradientRows, column_slices, squared_norm

SIZES = (3, 1, 40, 7, 12)
COLUMNS = sum(SIZES)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_rows, "COLUMNS_AT_A_TIME", 8)


def gradient(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) * (seed + 1) for size in SIZES]


def flat(pieces: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([piece.flatten() for piece in pieces]).double()


def filled(dtype: torch.dtype = torch.float32, on_host: bool = False, ranges: list | None = None) -> GradientRows:
    """Three train rows of four that there is room for, and two targets."""
    rows = GradientRows(4, 2, COLUMNS, dtype, torch.device("cpu"), on_host)
    if ranges:
        rows.select(ranges)
    for row in range(3):
        rows.put_train(row, gradient(row))
    for row in range(2):
        rows.put_target(row, gradient(3 + row))
    return rows


@pytest.mark.parametrize("ranges", [None, [(2, 5), (17, 50)], [(0, 1)], [(40, COLUMNS)]])
@pytest.mark.parametrize("on_host", [False, True])
def test_the_gram_matrix_is_that_of_the_selected_columns(ranges: list | None, on_host: bool) -> None:
    matrix = torch.stack([flat(gradient(row)) for row in range(5)])
    chosen = torch.cat([matrix[:, begin:end] for begin, end in ranges or [(0, COLUMNS)]], dim=1)
    found = filled(on_host=on_host, ranges=ranges).gram(3, 2)
    torch.testing.assert_close(found, chosen @ chosen.T, rtol=1e-5, atol=1e-5)
    train = filled(on_host=on_host, ranges=ranges).gram(3, 0)
    torch.testing.assert_close(train, found[:3, :3], rtol=0, atol=0)


@pytest.mark.parametrize("ranges", [None, [(2, 5)]])
def test_the_weighted_sum_is_that_of_all_columns_whatever_is_selected(ranges: list | None) -> None:
    coefficients = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    pieces = [torch.full((size,), 9.0) for size in (40, 23)]  # DeepSpeed's need not be those that were collected
    filled(ranges=ranges).write_weighted_sum(coefficients, pieces)
    wanted = sum(weight * flat(gradient(row)) for row, weight in enumerate(coefficients.tolist()))
    torch.testing.assert_close(flat(pieces), wanted, rtol=1e-5, atol=1e-5)


def test_rows_in_bf16_are_rounded_once_and_multiplied_in_fp32() -> None:
    rounded = torch.stack([flat(gradient(row)).bfloat16().double() for row in range(5)])
    torch.testing.assert_close(filled(torch.bfloat16).gram(3, 2), rounded @ rounded.T, rtol=1e-5, atol=1e-5)


def test_target_rows_hold_selected_columns_only() -> None:
    rows = filled(ranges=[(2, 5), (17, 50)])
    assert (rows._targets.shape, rows._train.shape) == ((2, 36), (4, COLUMNS))


def test_columns_are_found_across_pieces() -> None:
    pieces = gradient(1)
    for begin, end in ((0, COLUMNS), (2, 5), (3, 4), (43, 44), (62, 63), (10, 10)):
        assert torch.equal(flat(list(column_slices(pieces, begin, end)) or [torch.empty(0)]), flat(pieces)[begin:end])
    assert float(squared_norm(pieces)) == pytest.approx(float(flat(pieces) @ flat(pieces)), rel=1e-6)
