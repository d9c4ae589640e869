"""Samples: text of each domain for training a tokenizer, drawn by hashes in one pass and in bounded memory."""

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from doge_ds.data.preparing.tokenizing import progress_bar
from doge_ds.data.reading.sources import content_hash
from doge_ds.data.reading.units import Unit

# Characters. Of a longer document only the beginning is drawn, lest one book make up the whole of the sample.
LONGEST_DRAWN = 1 << 20


@dataclass
class Sample:
    """The train documents of one domain with the smallest keyed hashes, each once, until they are enough.

    So the draw depends on the documents and the seed alone, not on their order.

    Attributes:
        seed: of the draw.
        held_out_below: documents with a smaller `content_hash` are held out, and not drawn;
        of_held_out: or the only ones that are.
        most_bytes, most_documents: whichever is reached first ends the sample; the last document exceeds the bytes.
        documents: all that were seen.
    """

    seed: int
    held_out_below: int
    most_bytes: int
    most_documents: int | None = None
    of_held_out: bool = False
    documents: int = 0
    smallest: int = 1 << 64
    _heap: list[tuple[int, int, str]] = field(default_factory=list)  # (-keyed hash, content hash, text)
    _drawn: dict[int, int] = field(default_factory=dict)  # keyed hash -> bytes
    _sampled: int = 0

    def add(self, text: str) -> None:
        """Look at a document."""
        digest = content_hash(text)
        self.documents += 1
        self.smallest = min(self.smallest, digest)
        if (digest < self.held_out_below) != self.of_held_out or self.most_documents == 0:
            return
        key = _keyed(digest, self.seed)
        if key in self._drawn or (self._is_enough(self._sampled, len(self._heap)) and key > -self._heap[0][0]):
            return
        drawn = text[:LONGEST_DRAWN]
        heapq.heappush(self._heap, (-key, digest, drawn))
        self._drawn[key] = len(drawn.encode())
        self._sampled += self._drawn[key]
        while self._is_enough(self._sampled - self._drawn[-self._heap[0][0]], len(self._heap) - 1):
            self._sampled -= self._drawn.pop(-heapq.heappop(self._heap)[0])

    def _is_enough(self, size: int, count: int) -> bool:
        return count > 0 and (size >= self.most_bytes or count == self.most_documents)

    def texts(self, left_out: frozenset[int] = frozenset()) -> list[str]:
        """The sample, in the order of the keyed hashes, without documents of these content hashes."""
        return [text for _, digest, text in sorted(self._heap, reverse=True) if digest not in left_out]


def _keyed(digest: int, seed: int) -> int:
    raw = digest.to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8, key=str(seed).encode()).digest(), "big")


def draw_samples(units: Iterable[Unit], *of_domains: Mapping[str, Sample]) -> None:
    """Show every document that is not empty to its domain's samples; progress goes to stderr."""
    with progress_bar("reading") as progress:
        for unit in units:
            for domain, text in unit.read():
                progress.update(len(text.encode()))
                if text.strip():
                    for samples in of_domains:
                        samples[domain].add(text)
