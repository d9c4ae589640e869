"""Tokenizers: exact round trips, end-of-text never out of text, the same bytes twice."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from doge_ds.data.preparing.encoding import Encoder, EncoderPool
from doge_ds.data.preparing.tokenizer_training import Kind, train_sentencepiece, train_tokenizer
from doge_ds.data.tokenizer import load_tokenizer, save_tokenizer, vocabulary_size
from doge_ds.data.tokenizer_command import KINDS
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


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(kind, TEXTS, 600, folder)
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


def test_digits_stand_alone(trained: Any) -> None:
    tokens = trained.convert_ids_to_tokens(trained.encode("Item 7919, 15838", add_special_tokens=False))
    assert all(len(token.strip("\u0120 ")) == 1 for token in tokens if any(letter.isdigit() for letter in token))


def test_every_character_of_unicode_comes_back(trained: Any) -> None:
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    encoder = Encoder(trained)
    parts = [characters[start : start + 4096] for start in range(0, len(characters), 4096)]
    for part, ids in zip(parts, encoder.encode(parts), strict=True):
        assert trained.decode(ids) == part


@pytest.mark.parametrize("threads", ["1", "3"])
def test_training_in_another_process_gives_the_same_bytes(
    kind: Kind, threads: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    program = (
        "import json, sys; from pathlib import Path;"
        "from doge_ds.data.preparing.tokenizer_training import train_tokenizer;"
        "texts = json.loads(Path(sys.argv[2]).read_text()); train_tokenizer(sys.argv[1], texts, 600, Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", program, kind, str(tmp_path / "texts.json"), str(tmp_path / "again")]
    subprocess.run(command, check=True, env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads})
    assert folder_sha256(tmp_path / "again") == folder_sha256(folder)


def test_a_vocabulary_too_large_names_the_largest(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"a vocabulary of 100000: .*at most \d+") as caught:
        train_tokenizer(kind, TEXTS[:50], 100_000, tmp_path / "large")
    largest = int(str(caught.value).split("at most ")[1].split()[0])
    assert vocabulary_size(train_tokenizer(kind, TEXTS[:50], largest, tmp_path / "largest")) == largest


def test_a_vocabulary_too_small_names_the_smallest(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"take at least \d+") as caught:
        train_tokenizer(kind, TEXTS, 200, tmp_path / "small")
    smallest = int(str(caught.value).rsplit(" ", 1)[1])
    assert vocabulary_size(train_tokenizer(kind, TEXTS, smallest, tmp_path / "smallest")) == smallest


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


def test_a_folder_with_a_model_and_no_tokenizer_is_refused(tmp_path: Path) -> None:
    GPT2Config(vocab_size=64).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="has no tokens for text"):
        load_tokenizer(tmp_path)


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


# sentencepiece's own files.


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def model_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As others train them: normalised, with a space before all text, bytes, and symbols of the user's."""
    prefix = tmp_path_factory.mktemp("model") / "theirs"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in TEXTS for line in text.splitlines()),
        model_prefix=str(prefix),
        model_type=request.param,
        vocab_size=700,
        byte_fallback=True,
        user_defined_symbols=["<code>"],
        minloglevel=3,
    )
    return prefix.with_suffix(".model")


def test_a_sentencepiece_model_gives_sentencepieces_ids_also_from_its_folder(model_file: Path, tmp_path: Path) -> None:
    expected = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    loaded = load_tokenizer(model_file)
    save_tokenizer(loaded, tmp_path / "saved")
    texts = [
        text for text in [*HARD, "a  b", "<code>x</code>", *TEXTS[:30]] if "</s>" not in text and "<unk>" not in text
    ]
    for tokenizer in (loaded, load_tokenizer(tmp_path / "saved")):
        assert vocabulary_size(tokenizer) == 700
        assert tokenizer.eos_token_id == expected.eos_id()
        assert Encoder(tokenizer).encode(texts) == expected.encode(texts)
        assert expected.eos_id() not in Encoder(tokenizer).encode(["a </s> b"])[0]


def test_a_sentencepiece_model_without_end_of_text_is_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:100]), model_prefix=str(tmp_path / "m"), vocab_size=80, eos_id=-1, minloglevel=3
    )
    with pytest.raises(TokenizerError, match=r"m\.model: has no end-of-text token"):
        load_tokenizer(tmp_path / "m.model")


def test_what_is_no_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(b"nothing of the kind")
    for name in ("a.model", "b.model"):
        with pytest.raises(TokenizerError, match=rf"{name}: is no sentencepiece model") as caught:
            load_tokenizer(tmp_path / name)
        assert "\n" not in str(caught.value)
