"""Every token predicted exactly once, with the context that the options promise."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from doge_ds.errors import ConfigError
from doge_ds.evaluation.windows import WindowOptions, Windows

END = 4


def text(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 23, count).astype("<u2")


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, WindowOptions, int]:
    """Tokens of a text, how it is cut, a batch size."""
    length = draw(st.integers(2, 12))
    stride = draw(st.none() | st.integers(1, length - 1))
    return draw(st.integers(1, 60)), WindowOptions(length, stride), draw(st.integers(1, 7))


@settings(deadline=None, max_examples=200)
@given(cuts())
def test_each_token_is_predicted_once_with_its_context_in_front(cut: tuple[int, WindowOptions, int]) -> None:
    count, options, batch_size = cut
    tokens = text(count, seed=count)
    stream = [END, *tokens.tolist()]
    windows = Windows(tokens, END, options)
    next_token = 1  # in the stream
    number = 0
    for batch in windows.batches(batch_size):
        assert batch.first == number
        assert len(batch.tokens) <= batch_size
        for window, predicted in zip(batch.tokens.tolist(), batch.predicted.tolist(), strict=True):
            assert predicted == windows.predicted[number]
            begin = next_token + predicted - len(window)
            assert window == stream[begin : next_token + predicted]
            assert len(window) <= options.sequence_length
            context = len(window) - predicted
            if number == 0:
                assert (context, predicted) == (1, min(count, options.sequence_length - 1))
            else:
                assert context == options.sequence_length - (options.stride or options.sequence_length - 1)
            next_token += predicted
            number += 1
    assert (next_token, number) == (count + 1, len(windows))


@settings(deadline=None, max_examples=100)
@given(cuts())
def test_they_are_those_of_lm_evals_rolling_log_likelihood(cut: tuple[int, WindowOptions, int]) -> None:
    """But for the last, which lm-eval fills up with context on its left."""
    count, options, batch_size = cut
    tokens = text(count, seed=count)
    ours = [
        (window[:-predicted], window[-predicted:])
        for batch in Windows(tokens, END, options).batches(batch_size)
        for window, predicted in zip(batch.tokens.tolist(), batch.predicted.tolist(), strict=True)
    ]
    length, context = options.sequence_length - 1, options.sequence_length - options.new_tokens
    theirs = [make_disjoint_window(pair) for pair in get_rolling_token_windows(tokens.tolist(), END, length, context)]
    assert len(ours) == len(theirs)
    assert ours[:-1] == theirs[:-1]
    assert ours[-1][1] == theirs[-1][1]
    assert theirs[-1][0][-len(ours[-1][0]) :] == ours[-1][0]


@settings(deadline=None, max_examples=50)
@given(cuts(), st.integers(1, 5))
def test_shares_of_ranks_are_all_of_it(cut: tuple[int, WindowOptions, int], ranks: int) -> None:
    count, options, batch_size = cut
    windows = Windows(text(count), END, options)
    edges = [len(windows) * rank // ranks for rank in range(ranks + 1)]
    shares = [
        window
        for begin, end in itertools.pairwise(edges)
        for batch in windows.batches(batch_size, begin, end)
        for window in batch.tokens.tolist()
    ]
    assert shares == [window for batch in windows.batches(batch_size) for window in batch.tokens.tolist()]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 7))
def test_by_default_windows_share_one_token(count: int, length: int, batch_size: int) -> None:
    tokens = text(count, seed=count)
    cut = Windows(tokens, END, WindowOptions(length))
    windows = [row.tolist() for batch in cut.batches(batch_size) for row in batch.tokens]
    assert [token for window in windows for token in window[1:]] == tokens.tolist()
    assert [window[0] for window in windows] == [END, *(window[-1] for window in windows[:-1])]
    assert all(len(window) == length for window in windows[:-1])


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [
        (1, None, "--sequence_length: 1 leaves no token to predict; give at least 2"),
        (8, 0, "--stride: 0 does not fit windows of 8 tokens; give 1 to 7"),
        (8, 8, "--stride: 8 does not fit windows of 8 tokens; give 1 to 7"),
    ],
)
def test_a_cut_that_predicts_nothing_is_refused(length: int, stride: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        WindowOptions(length, stride)
