"""Tokenizers: exact round trips, end-of-text never out of text, the same bytes twice."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_ds.data.encoding import Encoder, EncoderPool
from doge_ds.data.tokenizer import load_tokenizer, vocabulary_size
from doge_ds.data.tokenizer_training import train_sentencepiece
from doge_ds.data.tokens import folder_sha256
from doge_ds.errors import TokenizerError

CODE = "def f(a, b):\n\tif a  ==  b:\n        return {'x': 12, \"y\": [a, b]}\r\n\n\n    # конец 😀\n"
TEXTS = [
    *(f"{CODE}\nItem {n}: the {n * 7919} words of text number {n} are {'very ' * (n % 5)}short.\n" for n in range(400)),
    Path(__file__).read_text(encoding="utf-8"),
]
HARD = [
    "",
    " ",
    "</s>",
    "a</s>b <unk> </s",
    "<0x0A><0xab> <0x+1> <0xZZ>",
    "\u2581 \u2581\u2581a \u2585",
    "\0\x01\t\t\n\r\n\x0b\x0c\u2028\ufeff\ufffd",
    "  leading and trailing   ",
    "Привет, мир! 你好 👩‍👩‍👧 e\u0301 é ﬁ Ⅳ",
    "<|endoftext|>",
    CODE * 50,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_sentencepiece(TEXTS, 600, folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Any:
    return load_tokenizer(folder)


def byte_level(folder: Path, eos: str | None) -> Path:
    """A GPT-2-like tokenizer, as the hub has them: the end-of-text token is special, and text may spell it."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[eos] if eos else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos).save_pretrained(str(folder))
    return folder


def unigram_with_end_as_piece(folder: Path) -> Path:
    """T5-like: the vocabulary's best piece is the end-of-text token itself."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in "abc</s> ")]
    backend = Tokenizer(Unigram(pieces, unk_id=0))
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>").save_pretrained(str(folder))
    return folder


def assert_exact(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids
    assert Encoder(tokenizer).encode([text]) == [ids]


@pytest.mark.parametrize("text", HARD)
def test_round_trip_of_hard_texts(trained: Any, text: str) -> None:
    assert_exact(trained, text)


@settings(max_examples=400, deadline=None)
@given(text=st.text())
def test_round_trip_of_any_text(trained: Any, text: str) -> None:
    assert_exact(trained, text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="<>/sunk0xA1b \n\t\u2581é"))
def test_round_trip_near_special_tokens(trained: Any, text: str) -> None:
    assert_exact(trained, text)


def test_the_vocabulary_has_the_size_asked_for(trained: Any) -> None:
    assert vocabulary_size(trained) == len(trained) == 600
    assert trained.eos_token == "</s>"


def test_common_words_are_single_tokens(trained: Any) -> None:
    assert len(trained.encode("Item 1: the", add_special_tokens=False)) <= 6


def test_training_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    train_sentencepiece(TEXTS, 600, tmp_path / "again")
    assert folder_sha256(tmp_path / "again") == folder_sha256(folder)


def test_a_vocabulary_too_large_names_the_largest(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"--train_tokenizer 100000: .*at most \d+") as caught:
        train_sentencepiece(TEXTS[:50], 100_000, tmp_path / "large")
    largest = int(str(caught.value).split("at most ")[1].split()[0])
    assert vocabulary_size(train_sentencepiece(TEXTS[:50], largest, tmp_path / "largest")) == largest


def test_a_vocabulary_too_small_names_the_smallest(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"take at least \d+") as caught:
        train_sentencepiece(TEXTS, 200, tmp_path / "small")
    smallest = int(str(caught.value).rsplit(" ", 1)[1])
    assert vocabulary_size(train_sentencepiece(TEXTS, smallest, tmp_path / "smallest")) == smallest


@pytest.mark.parametrize("texts", [[], [""], ["abc"]])
def test_no_text_to_train_on(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="more"):
        train_sentencepiece(texts, 1000, tmp_path / "none")


def test_end_of_text_spelt_in_text_is_text_for_hugging_face_tokenizers_too(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path / "gpt2", "<|endoftext|>"))
    assert tokenizer.eos_token_id in tokenizer.encode("a<|endoftext|>b"), "else this shows nothing"
    text = "one <|endoftext|> two"
    ids = Encoder(tokenizer).encode([text])[0]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_end_of_text_that_is_an_ordinary_piece_is_cut(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(unigram_with_end_as_piece(tmp_path / "t5"))
    ids = Encoder(tokenizer).encode(["a</s>b</s></s>", "abc"])
    assert all(tokenizer.eos_token_id not in found for found in ids)
    assert [tokenizer.decode(found) for found in ids] == ["a</s>b</s></s>", "abc"]


def test_a_pickled_encoder_is_the_same(trained: Any) -> None:
    encoder = Encoder(trained)
    assert pickle.loads(pickle.dumps(encoder)).encode(HARD) == encoder.encode(HARD)


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no end-of-text token.*eos_token"):
        load_tokenizer(byte_level(tmp_path / "none", None))


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded") as caught:
        load_tokenizer(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_one_line(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:100])
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


class _Refusing(Encoder):
    def encode(self, texts: Any) -> list[list[int]]:
        raise TokenizerError("here", "refuses", "nothing")


def test_an_error_in_a_worker_reaches_the_caller(trained: Any) -> None:
    with EncoderPool(_Refusing(trained), "uint16", 2) as pool, pytest.raises(TokenizerError, match="here: refuses"):
        list(pool.encode([(1, "a"), (2, "b")]))


def test_a_pool_reads_no_further_ahead_than_it_must(trained: Any) -> None:
    read = 0

    def texts() -> Iterator[tuple[int, str]]:
        nonlocal read
        for number in range(100):
            read += 1
            yield number, "x" * (1 << 18)

    with EncoderPool(Encoder(trained), "uint16", 2) as pool:
        next(pool.encode(texts()))
    assert read < 20
