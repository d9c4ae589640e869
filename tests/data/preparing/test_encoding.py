"""Encoding in pieces: the whole text, cut where it does no harm."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doge_ds.data.preparing import encoding
from doge_ds.data.preparing.encoding import Encoder, EncoderPool, cut_into_pieces


@pytest.fixture(autouse=True)
def short_pieces() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "LONGEST_PIECE", 12)
        yield


@given(st.text(alphabet="ab \n", max_size=200))
def test_pieces_are_the_text_and_none_is_too_long(text: str) -> None:
    pieces = list(cut_into_pieces(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= 12 for piece in pieces)
    for piece, rest in itertools.pairwise(pieces):
        assert piece[-1] in "\n " or not set(piece) & {"\n", " "}
        assert piece[-1] == "\n" or "\n" not in piece
        assert rest


def word_encoder() -> Encoder:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1, **{"ab"[n % 2] * (n // 2 + 1): n + 2 for n in range(40)}}
    made = Tokenizer(WordLevel(vocabulary, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>"))


def test_long_documents_have_the_tokens_of_one_piece_where_cuts_fall_between_words() -> None:
    texts = ["a bb aaa\nbbbb aa\n" * 5, "b", "", "aaaa bbbbb aaaaaa b " * 3, "bb a"]
    encoder = word_encoder()
    with EncoderPool(encoder, "uint16", 1) as pool:
        found = list(pool.encode(enumerate(texts)))
    whole = encoder.encode(texts)
    assert [tag for tag, _, _ in found] == [0, 1, 2, 3, 4]
    assert [text for _, text, _ in found] == texts
    for (_, _, ids), expected in zip(found, whole, strict=True):
        assert ids.tolist() == [*expected, 1]
        assert ids.dtype == np.uint16
