"""Small token stores for tests, written from token ids without `prepare`."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from doge_ds.data.tokens import TokenStore, file_sha256, folder_sha256


def make_store(
    path: Path,
    train: Mapping[str, np.ndarray],
    valid: Mapping[str, np.ndarray] | None = None,
    vocabulary_size: int = 64,
    tokenizer_folder: Path | None = None,
) -> TokenStore:
    """A store whose domains hold exactly these token ids; end-of-text is id 0; one document a file.

    `bytes` is 3 a token. Without `tokenizer_folder`, STORE/tokenizer holds one small file that no library loads.
    """
    tokenizer = path / "tokenizer"
    tokenizer.mkdir(parents=True)
    if tokenizer_folder is None:
        (tokenizer / "about.txt").write_text("token ids made by a test\n")
    else:
        for file in tokenizer_folder.iterdir():
            (tokenizer / file.name).write_bytes(file.read_bytes())
    domains: dict[str, dict[str, object]] = {}
    for name, ids in train.items():
        (path / name).mkdir()
        domains[name] = {"sources": ["a test"]}
        for split, array in (("train", ids), ("valid", (valid or {}).get(name, ids[:0]))):
            file = path / name / f"{split}.bin"
            np.asarray(array).astype("<u2").tofile(file)
            domains[name][split] = {
                "tokens": len(array),
                "documents": 1,
                "bytes": 3 * len(array),
                "sha256": file_sha256(file),
            }
    manifest = {
        "version": 1,
        "dtype": "uint16",
        "tokenizer": {
            "name": "test",
            "vocabulary_size": vocabulary_size,
            "end_of_text": "</s>",
            "end_of_text_id": 0,
            "sha256": folder_sha256(tokenizer),
        },
        "domains": domains,
        "built_from": {},
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return TokenStore(path)


def windows_by_tokens(
    ids: Mapping[str, np.ndarray], counts: Mapping[str, int], length: int
) -> dict[tuple[int, ...], tuple[str, int]]:
    """Which window of which domain these tokens are, by slicing the token ids directly."""
    return {
        tuple(tokens[index * length : (index + 1) * length].tolist()): (name, index)
        for name, tokens in ids.items()
        for index in range(counts[name])
    }
