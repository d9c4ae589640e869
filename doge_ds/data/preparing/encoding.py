"""Text to token ids, on all cores."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from doge_ds.errors import TokenizerError

# What a process gets at a time: about a tenth of a second of work.
_BATCH, _BATCH_DOCUMENTS = 1 << 18, 1 << 12  # characters, documents

# Characters that are encoded in one piece. An encoding takes 40 times the text: 8.4 GB for a document of 200 MB.
LONGEST_PIECE = 1 << 20

IntArray = npt.NDArray[Any]
Tag = TypeVar("Tag")


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

    def encode(self, documents: Iterable[tuple[Tag, str]]) -> Iterator[tuple[Tag, str, IntArray]]:
        """Each document with its token ids, [tokens], the end-of-text token last.

        Args:
            documents: what the caller knows a text by, and the text.

        Raises:
            TokenizerError: see `Encoder.encode`; or a process died.
        """
        if self._processes is None:
            for tags, texts in _batches(documents):
                yield from zip(tags, texts, _encode_batch(self._encoder, self._dtype, texts), strict=True)
            return
        waiting: deque[tuple[list[Tag], list[str], Future[list[IntArray]]]] = deque()
        for tags, texts in _batches(documents):
            waiting.append((tags, texts, self._submit(texts)))
            if len(waiting) > 3 * self._workers:
                yield from self._finish(*waiting.popleft())
        for tags, texts, future in waiting:
            yield from self._finish(tags, texts, future)

    def _submit(self, texts: list[str]) -> "Future[list[IntArray]]":
        if self._processes is None:
            raise RuntimeError("the pool has no processes")
        try:
            return self._processes.submit(_encode_in_worker, texts)
        except BrokenProcessPool:
            raise _worker_died() from None

    def _finish(
        self, tags: list[Tag], texts: list[str], future: "Future[list[IntArray]]"
    ) -> Iterator[tuple[Tag, str, IntArray]]:
        try:
            arrays = future.result()
        except BrokenProcessPool:
            raise _worker_died() from None
        return zip(tags, texts, arrays, strict=True)


def _worker_died() -> TokenizerError:
    return TokenizerError("a worker process", "died, perhaps for lack of memory", "take fewer --workers")


def _batches(documents: Iterable[tuple[Tag, str]]) -> Iterator[tuple[list[Tag], list[str]]]:
    tags: list[Tag] = []
    texts: list[str] = []
    size = 0
    for tag, text in documents:
        tags.append(tag)
        texts.append(text)
        size += len(text)
        if size >= _BATCH or len(texts) >= _BATCH_DOCUMENTS:
            yield tags, texts
            tags, texts, size = [], [], 0
    if texts:
        yield tags, texts


def _encode_batch(encoder: Encoder, dtype: str, batch: Sequence[str]) -> list[IntArray]:
    of_short = iter(encoder.encode([text for text in batch if len(text) <= LONGEST_PIECE]))
    end = np.array([encoder.end_of_text_id], dtype=dtype)
    arrays = []
    for text in batch:
        is_short = len(text) <= LONGEST_PIECE
        lists = [next(of_short)] if is_short else (encoder.encode([piece])[0] for piece in cut_into_pieces(text))
        arrays.append(np.concatenate([*(np.array(ids, dtype=dtype) for ids in lists), end]))
    return arrays


def cut_into_pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most LONGEST_PIECE characters, cut after a newline, else a space, else anywhere."""
    start = 0
    while len(text) - start > LONGEST_PIECE:
        limit = start + LONGEST_PIECE
        end = text.rfind("\n", start, limit) + 1 or text.rfind(" ", start, limit) + 1 or limit
        yield text[start:end]
        start = end
    yield text[start:]


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


def _encode_in_worker(batch: Sequence[str]) -> list[IntArray]:
    if _worker is None:
        raise RuntimeError("this process was not started by EncoderPool")
    return _encode_batch(*_worker, batch)
