"""Text to token ids and back: sentencepiece tokenizers trained on the spot, and any that transformers can load.

Both reach the rest of the project as a folder that `transformers.AutoTokenizer` loads. Text is text: a document that
spells out "</s>" or "<|endoftext|>" never yields the end-of-text token, which therefore always ends a document.
"""

import io
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

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

# What a process gets at a time: about a tenth of a second of work.
_BATCH, _BATCH_DOCUMENTS = 1 << 18, 1 << 12  # characters, documents
_CHUNK = 1000  # characters; sentencepiece skips a sentence of more than 4192 bytes
# A fixed number: the threads' sums are added up in order, and their number decides the last bits of every score.
_THREADS = 4


def load_tokenizer(name_or_folder: str | Path) -> Any:
    """A transformers tokenizer, by its name on the hub or from a folder.

    Raises:
        TokenizerError: it cannot be loaded, or has no end-of-text token.
    """
    from transformers import AutoTokenizer  # takes seconds: only when a tokenizer is wanted

    where = str(name_or_folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as error:  # OSError, ValueError, KeyError and the bare Exception of Rust code: all mean the same
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:; ")
        raise TokenizerError(
            where,
            f"no tokenizer can be loaded from there ({reason})",
            "give a folder that AutoTokenizer loads or a name on the Hugging Face hub, or use --train_tokenizer",
        ) from None
    if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
        raise TokenizerError(
            where,
            "has no end-of-text token, and documents must end with one",
            "set eos_token in its tokenizer_config.json, or take another tokenizer",
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer as a folder whose bytes do not tell where it was loaded from."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(str(folder))


def vocabulary_size(tokenizer: Any) -> int:
    """The smallest number that is above every token id, added tokens and gaps between ids counted."""
    highest: int = max(tokenizer.get_vocab().values())
    return max(len(tokenizer), highest + 1)


class Encoder:
    """Token ids of raw text: no special tokens added, none read out of the text. Can be pickled.

    A fast tokenizer is reduced to its Rust part, which a worker process loads without transformers (50 ms, not 4 s).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.end_of_text: str = tokenizer.eos_token
        self.end_of_text_id: int = tokenizer.eos_token_id
        self._slow = None if tokenizer.is_fast else tokenizer
        self._fast: Any = None
        if tokenizer.is_fast:
            from tokenizers import Tokenizer

            self._fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._fast.no_truncation()
            self._fast.no_padding()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text. Raises TokenizerError if the tokenizer puts end-of-text tokens into text."""
        found = self._encode(texts)
        return [
            self._encode_in_parts(text) if self.end_of_text_id in ids else ids
            for text, ids in zip(texts, found, strict=True)
        ]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._slow is not None:
            encoded = self._slow(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
            return [list(ids) for ids in encoded["input_ids"]]
        self._fast.encode_special_tokens = (
            True  # "encode" them as the text that they are; lost in pickling, so set here
        )
        return [encoding.ids for encoding in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _encode_in_parts(self, text: str) -> list[int]:
        """Some vocabularies (T5's) hold the end-of-text token as an ordinary piece too: cut the text inside of it."""
        first, rest = self.end_of_text[:1], self.end_of_text[1:]
        parts = text.replace(self.end_of_text, f"{first}\0{rest}").split("\0") if "\0" not in text else [text]
        ids = [token for part in self._encode([part for part in parts if part]) for token in part]
        if self.end_of_text_id in ids:
            raise TokenizerError(
                "the tokenizer",
                f"makes its end-of-text token {self.end_of_text!r} out of ordinary text ({text[:40]!r}...)",
                "take another tokenizer, or train one with --train_tokenizer",
            )
        return ids


class EncoderPool:
    """An encoder in several processes: what comes out, and in which order, does not depend on their number.

    Args:
        dtype: of the token ids.
        workers: processes; with 1, the calling process does the work.
    """

    def __init__(self, encoder: Encoder, dtype: str, workers: int) -> None:
        self._encoder = encoder
        self._dtype = dtype
        self._workers = workers
        self._processes: ProcessPoolExecutor | None = None

    def __enter__(self) -> "EncoderPool":
        if self._workers > 1:
            # Spawned, not forked: transformers and torch have started threads by now.
            self._processes = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _start_worker, (self._encoder, self._dtype)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._processes:
            self._processes.shutdown(cancel_futures=True)

    def encode(self, texts: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Each text with its token ids, [tokens], the end-of-text token last.

        Raises:
            TokenizerError: see `Encoder.encode`; or a process died.
        """
        if self._processes is None:
            for batch in _batches(texts):
                yield from zip(batch, _encode_batch(self._encoder, self._dtype, batch), strict=True)
            return
        waiting: deque[tuple[list[str], Future[list[np.ndarray]]]] = deque()
        for batch in _batches(texts):
            waiting.append((batch, self._processes.submit(_encode_in_worker, batch)))
            if len(waiting) > 3 * self._workers:
                yield from self._finish(*waiting.popleft())
        for batch, future in waiting:
            yield from self._finish(batch, future)

    def _finish(self, batch: list[str], future: "Future[list[np.ndarray]]") -> Iterator[tuple[str, np.ndarray]]:
        try:
            arrays = future.result()
        except BrokenProcessPool:
            raise TokenizerError(
                "a worker process", "died, perhaps for lack of memory", "take fewer --workers"
            ) from None
        return zip(batch, arrays, strict=True)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(encoder: Encoder, dtype: str, batch: Sequence[str]) -> list[np.ndarray]:
    end = encoder.end_of_text_id
    return [np.array([*ids, end], dtype=dtype) for ids in encoder.encode(batch)]


_worker: tuple[Encoder, str] | None = None


def _start_worker(encoder: Encoder, dtype: str) -> None:
    global _worker
    _worker = encoder, dtype
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed closes nothing, and the queue would be waited on for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _encode_in_worker(batch: Sequence[str]) -> list[np.ndarray]:
    if _worker is None:
        raise RuntimeError("this process was not started by EncoderPool")
    return _encode_batch(*_worker, batch)


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
