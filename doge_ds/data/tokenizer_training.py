"""Training tokenizers: lossless ones, as folders that `transformers.AutoTokenizer` loads."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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


def train_sentencepiece(texts: Iterable[str], vocabulary_size: int, folder: Path) -> Any:
    """Train a sentencepiece unigram tokenizer; save it as a folder for `AutoTokenizer`, and load it from there.

    It gives back any text exactly: no normalisation, whitespace kept, bytes for characters that are not in the
    vocabulary. Digits stand alone. The same texts in the same order give the same bytes.

    Args:
        vocabulary_size: tokens altogether: 256 bytes, the end-of-text and the unknown token, and the pieces.

    Raises:
        TokenizerError: the vocabulary is too large or too small for the texts.
    """
    vocabulary = _vocabulary(_train(texts, vocabulary_size))
    # Sentencepiece leaves these out of a text that has no other letters.
    if set(_LETTERS_OF_NEVER) - {piece for piece, _ in vocabulary}:
        raise TokenizerError(f"--train_tokenizer {vocabulary_size}", "the text is hardly text", "give more of it")
    _save(vocabulary, folder)
    return load_tokenizer(folder)


def _train(texts: Iterable[str], vocabulary_size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chunks(texts),
            model_writer=model,
            model_type="unigram",
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
    where = f"--train_tokenizer {vocabulary_size}"
    if most := re.search(r"set it to a value <= (\d+)", message):
        return TokenizerError(
            where, "the text has too few different pieces", f"take at most {most[1]} for this text, or give more text"
        )
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return TokenizerError(where, "does not hold the text's letters and 256 bytes", f"take at least {least[1]}")
    return TokenizerError(where, f"sentencepiece cannot train ({message})", "take 1000 or more, and give more text")


def _vocabulary(model: bytes) -> list[tuple[str, float]]:
    """The pieces and scores of a sentencepiece model, for tokenizers' Unigram; the position is the id."""
    import sentencepiece

    trained = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = []
    for token in range(trained.vocab_size()):
        piece: str = trained.id_to_piece(token)
        is_text = not (trained.is_unknown(token) or trained.is_control(token) or trained.is_byte(token))
        never = not is_text or _READ_AS_BYTE.fullmatch(piece)
        vocabulary.append((piece.replace(_SPACE, " "), _NEVER if never else trained.get_score(token)))
    return vocabulary


def _save(vocabulary: list[tuple[str, float]], folder: Path) -> None:
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=0, byte_fallback=True))
    # transformers' own conversion maps spaces to U+2581 and back, and so turns a U+2581 in the text into a space.
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=_UNKNOWN,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
    save_tokenizer(wrapped, folder)
