"""Training tokenizers: lossless ones, as folders that `transformers.AutoTokenizer` loads."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from doge_ds.data.tokenizer import load_tokenizer, save_tokenizer
from doge_ds.errors import TokenizerError

END_OF_TEXT = "</s>"
_UNKNOWN = "<unk>"

# sentencepiece writes a space as this character. Our vocabulary holds plain spaces instead, so that this character
# itself survives a round trip; it is left out of the training text, and so is the NUL that sentencepiece ends texts by.
_SPACE = "\u2581"
_LEFT_OUT = str.maketrans("", "", _SPACE + "\0")

# Pieces that text must not be cut into: special tokens, and what the byte-fallback decoder reads as one byte. Their
# letters are always in the vocabulary, and a spelling in single letters scores better than this (a piece has about
# -20 at worst, the longest of these has 6 letters), so the best segmentation never takes such a piece.
_NEVER = -1000.0
_LETTERS_OF_NEVER = "</>unksx0123456789ABCDEFabcdef+"
_READ_AS_BYTE = re.compile(r"<0x..>", re.DOTALL)

_CHUNK = 1000  # characters; sentencepiece skips a sentence of more than 4192 bytes
# A fixed number: the threads' sums are added up in order, and their number decides the last bits of every score.
_THREADS = 4


Kind = Literal["unigram", "bpe", "byte_level_bpe"]


def train_tokenizer(kind: Kind, texts: Sequence[str], vocabulary_size: int, folder: Path) -> Any:
    """Train a tokenizer; save it as a folder for `AutoTokenizer`, and load it from there.

    It gives back any text exactly. The same texts in the same order give the same bytes.

    Args:
        kind: sentencepiece's unigram or BPE, with bytes for characters that are not in the vocabulary; or BPE over
            bytes, as GPT-2's. Digits stand alone in all of them.
        vocabulary_size: tokens altogether: 256 bytes, the end-of-text token, sentencepiece's unknown one, and pieces.

    Raises:
        TokenizerError: the vocabulary is too large or too small for the texts.
    """
    return (
        train_byte_level_bpe(texts, vocabulary_size, folder)
        if kind == "byte_level_bpe"
        else train_sentencepiece(texts, vocabulary_size, folder, kind)
    )


def train_sentencepiece(
    texts: Iterable[str], vocabulary_size: int, folder: Path, kind: Literal["unigram", "bpe"] = "unigram"
) -> Any:
    """`train_tokenizer` with sentencepiece: no normalisation, whitespace kept, byte fallback."""
    vocabulary = _vocabulary(_train(texts, vocabulary_size, kind))
    # Sentencepiece leaves these out of a text that has no other letters.
    if set(_LETTERS_OF_NEVER) - {piece.text for piece in vocabulary}:
        raise TokenizerError(f"a vocabulary of {vocabulary_size}", "the text is hardly text", "give more of it")
    _save_sentencepiece(vocabulary, kind, folder)
    return load_tokenizer(folder)


def _train(texts: Iterable[str], vocabulary_size: int, kind: str) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chunks(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=vocabulary_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            required_chars=_LETTERS_OF_NEVER,
            character_coverage=0.9995,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=_THREADS,
            minloglevel=3,
        )
    except (RuntimeError, OSError) as error:
        raise _training_error(str(error), vocabulary_size) from None
    return model.getvalue()


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        kept = text.translate(_LEFT_OUT)
        for start in range(0, len(kept), _CHUNK):
            yield kept[start : start + _CHUNK]


def _training_error(message: str, vocabulary_size: int) -> TokenizerError:
    where = f"a vocabulary of {vocabulary_size}"
    if most := re.search(r"set it to a value <= (\d+)", message):
        return TokenizerError(
            where, "the text has too few different pieces", f"take at most {most[1]} for this text, or give more text"
        )
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return TokenizerError(where, "does not hold the text's letters and 256 bytes", f"take at least {least[1]}")
    return TokenizerError(where, f"sentencepiece cannot train ({message})", "take 1000 or more, and give more text")


class _Piece(NamedTuple):
    """One token of a sentencepiece model; text may be cut into it unless `never`."""

    text: str
    score: float
    never: bool


def _vocabulary(model: bytes) -> list[_Piece]:
    """The tokens of a sentencepiece model; the position is the id."""
    import sentencepiece

    trained = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = []
    for token in range(trained.vocab_size()):
        piece: str = trained.id_to_piece(token)
        is_text = not (trained.is_unknown(token) or trained.is_control(token) or trained.is_byte(token))
        never = not is_text or _READ_AS_BYTE.fullmatch(piece) is not None
        vocabulary.append(_Piece(piece.replace(_SPACE, " "), trained.get_score(token), never))
    return vocabulary


def _save_sentencepiece(vocabulary: list[_Piece], kind: Literal["unigram", "bpe"], folder: Path) -> None:
    """Without what transformers' own conversion does, which maps spaces to U+2581 and back, and so turns a U+2581 of
    the text into a space."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE, Unigram

    if kind == "unigram":
        scored = [(piece.text, _NEVER if piece.never else piece.score) for piece in vocabulary]
        tokenizer = Tokenizer(Unigram(scored, unk_id=0, byte_fallback=True))
    else:
        ids = {piece.text: number for number, piece in enumerate(vocabulary)}
        tokenizer = Tokenizer(BPE(ids, _merges(vocabulary), unk_token=_UNKNOWN, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    _save(tokenizer, folder, unk_token=_UNKNOWN)


def _merges(vocabulary: list[_Piece]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, in the order in which sentencepiece merges them: by the score of the whole.

    sentencepiece looks at neighbouring pieces whose union is one, and takes the best score first, whichever way it is
    made of two; so all ways stand in the list, next to each other.
    """
    usable = {piece.text: piece.score for piece in vocabulary if not piece.never}
    ranked = sorted((piece for piece in usable if len(piece) > 1), key=lambda piece: -usable[piece])
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in usable and piece[cut:] in usable
    ]


def train_byte_level_bpe(texts: Iterable[str], vocabulary_size: int, folder: Path) -> Any:
    """`train_tokenizer` with BPE over bytes, cut before spaces as GPT-2's is."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + 1
    if vocabulary_size < least:
        where = f"a vocabulary of {vocabulary_size}"
        raise TokenizerError(where, "does not hold 256 bytes and the end-of-text token", f"take at least {least}")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) < vocabulary_size:
        where = f"a vocabulary of {vocabulary_size}"
        raise TokenizerError(where, "the text has too few different pieces", f"take at most {found} for this text")
    _save(tokenizer, folder)
    return load_tokenizer(folder)


def _save(tokenizer: Any, folder: Path, **special_tokens: str) -> None:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **special_tokens,
    )
    save_tokenizer(wrapped, folder)
