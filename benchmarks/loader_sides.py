"""The loaders that benchmarks/loader.py measures, one class each.

Every side gives batches of 32 windows as int64 tensors on the CPU, out of the same random tokens, 7 domains in the
proportions of SlimPajama, for a run of 12 million samples; `num_workers` is 0 throughout, so that one process does all
the work. What each library is asked for follows its documentation; where a setting was chosen, it says why. This file
runs in the other libraries' virtual environment too, so it imports nothing of ours before it must.
"""

import itertools
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"commoncrawl": 522, "c4": 267, "github": 52, "books": 42, "arxiv": 46, "wikipedia": 38, "stackexchange": 33}
WEIGHTS = {name: share / sum(SHARES.values()) for name, share in SHARES.items()}
BATCH = 32
RUN_SAMPLES = 12_000_000
RESUME_AT = 10_000_000
SEED = 1
DOCUMENT = 2**16  # tokens: each domain is a multiple of it, so that all libraries cut it into the same windows


class Side(ABC):
    """One library. Its imports are made when it is created."""

    def __init__(self, folder: Path, length: int) -> None:
        """Args: where the store is and everything else goes; tokens of a window."""
        self.folder = folder
        self.length = length
        self.own = folder / type(self).__name__
        self.load()

    @abstractmethod
    def load(self) -> None:
        """Import all that `batches` needs."""

    @abstractmethod
    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        """Build everything from what is on disk, then give batches, [BATCH, length], int64; from `state` on."""

    @abstractmethod
    def state(self) -> Any:
        """What the library keeps to continue at sample RESUME_AT."""

    def prepare(self) -> None:  # noqa: B027 (ours reads the store itself)
        """Write the tokens as the library reads them, if that has not been done."""

    def tokens(self, name: str) -> np.ndarray:
        """All tokens of a domain, uint16."""
        return np.memmap(self.folder / "store" / name / "train.bin", dtype="<u2", mode="r")

    def windows(self, name: str) -> np.ndarray:
        """[windows, length]."""
        return self.tokens(name).reshape(-1, self.length)


class DogeDs(Side):
    def load(self) -> None:
        sys.path.insert(0, str(ROOT))
        import doge_ds.data.loader  # noqa: F401

    def loader(self) -> Any:
        from doge_ds.data.loader import MixtureLoader
        from doge_ds.data.order import MixtureOrder, Segment
        from doge_ds.data.tokens import TokenStore

        store = TokenStore(self.folder / "store")
        counts = {name: store.sequence_count(name, self.length) for name in store.domains}
        order = MixtureOrder(counts, [Segment(0, WEIGHTS)], SEED)
        return MixtureLoader(store, order, BATCH, BATCH, self.length, rank=0, world_size=1)

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        loader = self.loader()
        if state:
            loader.check_state(state)
        first = state["samples_seen"] // BATCH if state else 0
        return (batch.micro_batches[0][0] for batch in loader.batches(first))

    def state(self) -> Any:
        with self.loader() as loader:
            return loader.state(RESUME_AT // BATCH)


class LitData(Side):
    """`optimize` with TokensLoader, and CombinedStreamingDataset with weights in a StreamingDataLoader."""

    def load(self) -> None:
        import litdata  # noqa: F401

    def prepare(self) -> None:
        from litdata import TokensLoader, optimize

        for name in [] if self.own.exists() else WEIGHTS:
            file = str(self.folder / "store" / name / "train.bin")
            optimize(
                fn=read_tokens,
                inputs=[(file, start) for start in range(0, len(self.tokens(name)), DOCUMENT)],
                output_dir=str(self.own / name),
                chunk_size=16 * DOCUMENT,
                item_loader=TokensLoader(),
                num_workers=1,
            )

    def loader(self, length: int) -> Any:
        from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

        datasets = [
            StreamingDataset(
                str(self.own / name), item_loader=TokensLoader(block_size=length), shuffle=True, drop_last=True
            )
            for name in WEIGHTS
        ]
        mixed = CombinedStreamingDataset(datasets, seed=SEED, weights=list(WEIGHTS.values()), iterate_over_all=False)
        return StreamingDataLoader(mixed, batch_size=BATCH, num_workers=0)

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        loader = self.loader(state["length"] if state else self.length)
        if state:
            loader.load_state_dict(state["loader"])
        # The loader ends with the first domain that ends; its next iteration is the next epoch.
        return (batch.long() for batch in itertools.chain.from_iterable(itertools.repeat(loader)))

    def state(self) -> Any:
        """Of windows of 8 tokens: the store has more than 10 million of these, so it is the first epoch.

        The counts are those that the library's own draws give, as its code redraws them when it resumes.
        """
        loader = self.loader(8)
        next(iter(loader))
        state = loader.state_dict()
        draws = random.Random(SEED).choices(range(len(WEIGHTS)), weights=list(WEIGHTS.values()), k=RESUME_AT)
        counts = np.bincount(draws, minlength=len(WEIGHTS)).tolist()
        state["num_samples_yielded"] = {0: counts}
        for index, count in enumerate(counts):
            state["dataset"][str(index)]["num_samples_yielded"] = count
        return {"length": 8, "loader": state}


def read_tokens(place: tuple[str, int]) -> Iterator[torch.Tensor]:
    """What `optimize` calls: one document as one tensor."""
    file, start = place
    tokens = np.memmap(file, dtype="<u2", mode="r")[start : start + DOCUMENT]
    yield torch.from_numpy(tokens.astype(np.int32))


class MosaicStreaming(Side):
    """MDS shards that are all local, streams with proportions.

    Batches are mixed at random, the default: "stratified" drops samples of the largest domain, 295 after 20,000.
    """

    def load(self) -> None:
        # Its image data sets need torchvision, whose build on PyPI does not load beside a torch without CUDA.
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            sys.modules["streaming.vision"] = ModuleType("streaming.vision")
        import streaming  # noqa: F401

    def prepare(self) -> None:
        from streaming import MDSWriter

        for name in [] if (self.own / str(self.length)).exists() else WEIGHTS:
            columns = {"tokens": f"ndarray:uint16:{self.length}"}
            with MDSWriter(out=str(self.shards(name)), columns=columns) as writer:
                for window in self.windows(name):
                    writer.write({"tokens": window})

    def shards(self, name: str) -> Path:
        return self.own / str(self.length) / name

    def loader(self) -> Any:
        from streaming import Stream, StreamingDataLoader, StreamingDataset

        streams = [Stream(local=str(self.shards(name)), proportion=weight) for name, weight in WEIGHTS.items()]
        dataset = StreamingDataset(
            streams=streams,
            epoch_size=RUN_SAMPLES,
            batch_size=BATCH,
            shuffle=True,
            shuffle_seed=SEED,
            num_canonical_nodes=1,
        )
        return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        loader = self.loader()
        if state:
            loader.load_state_dict(state)
        return (batch["tokens"].long() for batch in loader)

    def state(self) -> Any:
        return self.loader().dataset.state_dict(num_samples=RESUME_AT, from_beginning=True)


class InterleavedTorch(Side):
    """`interleave_datasets` over memory-mapped map-style datasets, read in batches, format "torch"."""

    def load(self) -> None:
        import datasets

        datasets.disable_progress_bars()

    def prepare(self) -> None:
        import datasets
        import pyarrow as pa

        for name in [] if self.arrow("").exists() else WEIGHTS:
            column = pa.FixedSizeListArray.from_arrays(pa.array(self.tokens(name)), self.length)
            datasets.Dataset(pa.table({"tokens": column})).save_to_disk(self.arrow(name), num_shards=1)

    def arrow(self, name: str) -> Path:
        return self.folder / "datasets" / str(self.length) / name

    def mixed(self) -> Any:
        from datasets import interleave_datasets, load_from_disk

        sources = []
        for name, weight in WEIGHTS.items():
            source = load_from_disk(self.arrow(name)).shuffle(seed=SEED)
            # Random draws: 2% more than the mean is more than 20 standard deviations.
            sources.append(source.repeat(int(1.02 * weight * RUN_SAMPLES / len(source)) + 1))
        return interleave_datasets(sources, probabilities=list(WEIGHTS.values()), seed=SEED)

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        mixed = self.mixed().skip(state["sample"]) if state else self.mixed()
        return self.read(mixed)

    def read(self, mixed: Any) -> Iterator[torch.Tensor]:
        return (batch["tokens"] for batch in mixed.with_format("torch").iter(BATCH))

    def state(self) -> Any:
        return {"sample": RESUME_AT}


class InterleavedArrow(InterleavedTorch):
    """The same as Arrow tables, which are turned into a tensor by hand: faster than the formats that do so."""

    def read(self, mixed: Any) -> Iterator[torch.Tensor]:
        for table in mixed.with_format("arrow").iter(BATCH):
            values = table["tokens"].combine_chunks().flatten().to_numpy()
            yield torch.from_numpy(values.reshape(-1, self.length).astype(np.int64))


class InterleavedIterable(InterleavedTorch):
    """The same as iterable datasets, whose shuffling is approximate and which need no index."""

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        from datasets import interleave_datasets, load_from_disk

        sources = []
        for name in WEIGHTS:
            source = load_from_disk(self.arrow(name)).to_iterable_dataset(num_shards=64)
            sources.append(source.shuffle(seed=SEED, buffer_size=1000).repeat(None))
        mixed = interleave_datasets(sources, probabilities=list(WEIGHTS.values()), seed=SEED)
        return (batch["tokens"] for batch in mixed.with_format("torch").iter(BATCH))

    def state(self) -> Any:
        return None  # to have its state at sample 10 million, one must read all samples before


class MegatronBlended(Side):
    """BlendedDataset over GPTDatasets, indices cached on disk, without the attention mask and the extra token.

    Each domain is one document, so that no window is put together from several; labels, loss mask and position ids
    come with the tokens, there is no option against them.
    """

    def load(self) -> None:
        import megatron.core.datasets.gpt_dataset  # noqa: F401

        # It asks for its rank when an index is not on disk yet.
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

    def prepare(self) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        for name in [] if self.own.exists() else WEIGHTS:
            self.own.mkdir(parents=True, exist_ok=True)
            builder = IndexedDatasetBuilder(str(self.own / f"{name}.bin"), dtype=np.uint16)
            tokens = torch.from_numpy(self.tokens(name).astype(np.int32))
            builder.add_document(tokens, [len(tokens)])
            builder.finalize(str(self.own / f"{name}.idx"))

    def batches(self, state: Any) -> Iterator[torch.Tensor]:
        from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.tokenizers import MegatronTokenizer

        blend = ([str(self.own / name) for name in WEIGHTS], list(WEIGHTS.values()))
        config = GPTDatasetConfig(
            random_seed=SEED,
            sequence_length=self.length,
            blend_per_split=[blend, None, None],
            path_to_cache=str(self.own / "cache"),
            tokenizer=MegatronTokenizer.from_pretrained(metadata_path={"library": "null"}, vocab_size=50257),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            add_extra_token_to_sequence=False,
        )
        builder = BlendedMegatronDatasetBuilder(GPTDataset, [RUN_SAMPLES, None, None], lambda: True, config)
        dataset = builder.build()[0]
        first = state["consumed_samples"] if state else 0
        order = (range(start, start + BATCH) for start in range(first, RUN_SAMPLES, BATCH))
        return (batch["tokens"] for batch in torch.utils.data.DataLoader(dataset, batch_sampler=order))

    def state(self) -> Any:
        return {"consumed_samples": RESUME_AT}


SIDES: dict[str, type[Side]] = {
    "doge_ds": DogeDs,
    "litdata": LitData,
    "mosaicml-streaming": MosaicStreaming,
    "interleave_datasets": InterleavedTorch,
    "interleave_datasets, Arrow": InterleavedArrow,
    "interleave_datasets, iterable": InterleavedIterable,
    "megatron-core": MegatronBlended,
}
