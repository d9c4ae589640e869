"""The packed token store: one folder, memory-mapped, with a manifest that says what is in it.

    STORE/manifest.json
    STORE/tokenizer/                   what AutoTokenizer loads; travels with the tokens
    STORE/<domain>/{train,valid}.bin   little-endian token ids; every document is followed by the end-of-text token

A training sequence is a window of `sequence_length` tokens; the windows of a domain do not overlap.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from doge_ds.errors import StoreError, TokenizerError, nearest
from doge_ds.json_files import parse_json, read_bytes

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")

# A domain's name is also a folder's name and a key in metrics ("loss/<domain>"), so no slashes, and no leading dot.
DOMAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
RESERVED_NAMES = ("tokenizer", "manifest.json")  # STORE/<domain> would be one of the store's own
DOMAIN_NAME_RULE = f"use letters, digits and _ . + -, not a dot or dash first, and not {' or '.join(RESERVED_NAMES)}"


def is_domain_name(name: str) -> bool:
    """Whether a domain may be called so."""
    return DOMAIN_NAME.fullmatch(name) is not None and name not in RESERVED_NAMES


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SplitRecord(_Record):
    """One `.bin` file: how many tokens (end-of-text tokens counted), documents and bytes of raw UTF-8 text."""

    tokens: int = Field(ge=0)
    documents: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class DomainRecord(_Record):
    """Both splits of one domain, and the inputs that it was read from.

    Attributes:
        copies_within, copies_across: documents of the input that are equal to an earlier one of this domain, and to one
            of other domains only.
    """

    train: SplitRecord
    valid: SplitRecord
    sources: list[str]
    copies_within: int = Field(default=0, ge=0)
    copies_across: int = Field(default=0, ge=0)


class TokenizerRecord(_Record):
    """Which tokenizer made the tokens. `sha256` is `folder_sha256` of STORE/tokenizer."""

    name: str
    vocabulary_size: int = Field(gt=0, le=2**32)
    end_of_text: str
    end_of_text_id: int = Field(ge=0)
    sha256: str

    @model_validator(mode="after")
    def _has_its_end_of_text(self) -> Self:
        if self.end_of_text_id >= self.vocabulary_size:
            raise ValueError(f"end_of_text_id {self.end_of_text_id} is not among {self.vocabulary_size} tokens")
        return self


class Manifest(_Record):
    """STORE/manifest.json."""

    version: Literal[1]
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerRecord
    domains: dict[str, DomainRecord] = Field(min_length=1)
    built_from: dict[str, Any]

    @model_validator(mode="after")
    def _tokens_fit_the_dtype(self) -> Self:
        if self.dtype == "uint16" and self.tokenizer.vocabulary_size > 1 << 16:
            raise ValueError(f"uint16 cannot hold {self.tokenizer.vocabulary_size} tokens")
        return self

    @field_validator("domains")
    @classmethod
    def _names_are_folder_names(cls, domains: dict[str, DomainRecord]) -> dict[str, DomainRecord]:
        for name in domains:
            if not is_domain_name(name):
                raise ValueError(f"{name!r} is no domain name")
        return domains


class TokenStore:
    """Read access to a store. Opening checks the manifest, the tokenizer and every file's size; it reads no tokens.

    Raises:
        StoreError: the folder, the manifest or a file is missing, or a file has another size than the manifest says
            or is a link out of the store.
        TokenizerError: STORE/tokenizer is not the one that the manifest names.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        for domain in self.domains:
            for split in SPLITS:
                check_file(self.path, domain, split, self.record(domain, split).tokens, self.dtype)
        check_tokenizer(self.path, self.manifest)

    @property
    def domains(self) -> list[str]:
        return list(self.manifest.domains)

    @property
    def tokenizer_folder(self) -> Path:
        return self.path / "tokenizer"

    def record(self, domain: str, split: Split) -> SplitRecord:
        """Counts of one file. Raises StoreError for a domain that is not in the store."""
        if domain not in self.manifest.domains:
            raise StoreError(str(self.path), f"has no domain {domain!r}", nearest(domain, self.domains))
        found: SplitRecord = getattr(self.manifest.domains[domain], split)
        return found

    def tokens(self, domain: str, split: Split) -> np.ndarray:
        """All tokens of one file, [tokens], uint16 or uint32, memory-mapped and read-only."""
        if self.record(domain, split).tokens == 0:
            return np.empty(0, dtype=self.dtype)  # an empty file cannot be mapped
        return np.memmap(self._file(domain, split), dtype=self.dtype, mode="r")

    def sequence_count(self, domain: str, sequence_length: int, split: Split = "train") -> int:
        """Whole windows of `sequence_length` tokens in one file."""
        return self.record(domain, split).tokens // sequence_length

    def fingerprint(self) -> str:
        """16 hex digits that change with any token, domain, count or the tokenizer; not with the store's place."""
        content = {
            "dtype": self.manifest.dtype,
            "tokenizer": self.manifest.tokenizer.sha256,
            "domains": {
                name: [record.train.sha256, record.valid.sha256] for name, record in self.manifest.domains.items()
            },
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def facts(self) -> dict[str, str]:
        """What a run or a mixture records of the store that it was made with."""
        return {"store": self.fingerprint(), "tokenizer_sha256": self.manifest.tokenizer.sha256}

    def _file(self, domain: str, split: Split) -> Path:
        return self.path / domain / f"{split}.bin"


def read_manifest(path: Path) -> Manifest:
    """The manifest of a store's folder. Raises StoreError where it is missing or none of ours."""
    file = path / "manifest.json"
    try:
        return Manifest.model_validate(parse_json(read_bytes(file)))
    except FileNotFoundError:
        raise StoreError(
            str(path), "is no token store: it has no manifest.json", "make one with `doge-ds prepare`"
        ) from None
    except OSError as error:
        raise StoreError(str(file), f"cannot be read ({error.strerror})", "check the path and its rights") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise StoreError(str(file), f"is no manifest of ours: {key}: {first['msg']}", "build the store again") from None
    except ValueError as error:
        raise StoreError(str(file), f"is no JSON ({error})", "build the store again") from None


def check_file(path: Path, domain: str, split: Split, tokens: int, dtype: "np.dtype[Any]") -> Path:
    """A store's file, if it is there, inside of the store, and has that many tokens. Raises StoreError."""
    file = path / domain / f"{split}.bin"
    if not file.is_file():
        raise StoreError(str(file), "is missing, but the manifest lists it", "build the store again")
    if not file.resolve().is_relative_to(path.resolve()):
        problem = f"is a link out of the store, to {file.resolve()}"
        raise StoreError(str(file), problem, "copy the file to where the link stands")
    wanted = tokens * dtype.itemsize
    if (found := file.stat().st_size) != wanted:
        problem = f"has {found} bytes where the manifest says {wanted}"
        raise StoreError(str(file), problem, "it was cut short or changed: build the store again")
    return file


def check_tokenizer(path: Path, manifest: Manifest) -> None:
    """Raises TokenizerError where a store's tokenizer is not the one that its manifest names, or lies elsewhere."""
    folder = path / "tokenizer"
    for file in (folder, *folder.rglob("*")):
        if not file.resolve().is_relative_to(path.resolve()):
            problem = f"is a link out of the store, to {file.resolve()}"
            raise TokenizerError(str(file), problem, "copy the file to where the link stands")
    if folder_sha256(folder) != manifest.tokenizer.sha256:
        problem = "is not the tokenizer that the manifest names"
        raise TokenizerError(str(folder), problem, "put the original back, or build the store again")


def folder_sha256(folder: Path) -> str:
    """Hash of a folder's files, names and contents, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """Hash of one file's bytes, as hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
