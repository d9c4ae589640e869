"""Tokenizers that transformers can load, and the folders that they are kept in.

Text is text: a document that spells out "</s>" or "<|endoftext|>" never yields the end-of-text token, which therefore
always ends a document.
"""

from pathlib import Path
from typing import Any

from doge_ds.errors import TokenizerError
from doge_ds.model_files import NO_PROGRAMS


def load_tokenizer(name_or_folder: str | Path) -> Any:
    """A transformers tokenizer, by its name on the hub, from a folder, or from a sentencepiece .model file.

    Raises:
        TokenizerError: it cannot be loaded, it has no tokens for text, or no end-of-text token.
    """
    from transformers import AutoTokenizer  # takes seconds: only when a tokenizer is wanted

    where = str(name_or_folder)
    if where.endswith(".model"):
        return _load_sentencepiece(where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **NO_PROGRAMS)
    except Exception as error:  # OSError, ValueError, KeyError and the bare Exception of Rust code: all mean the same
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:; ")
        raise TokenizerError(
            where,
            f"no tokenizer can be loaded from there ({reason})",
            "give a folder that AutoTokenizer loads or a name on the Hugging Face hub, or use --train_tokenizer",
        ) from None
    # From a folder with a config.json and no tokenizer, transformers makes one with end-of-text alone.
    if len(tokenizer.get_vocab()) < 2:
        raise TokenizerError(where, "has no tokens for text", "give a folder that holds a tokenizer's files")
    if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
        raise TokenizerError(
            where,
            "has no end-of-text token, and documents must end with one",
            "set eos_token in its tokenizer_config.json, or take another tokenizer",
        )
    return tokenizer


def _load_sentencepiece(file: str) -> Any:
    """A model of anyone's making, with its own normaliser and all: transformers calls sentencepiece itself for it, so
    that the ids are sentencepiece's. The tokenizer can be saved, and the folder loaded again.
    """
    import sentencepiece
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=file)
    except (OSError, RuntimeError) as error:
        raise TokenizerError(
            file, f"is no sentencepiece model ({str(error).splitlines()[0]})", "give a .model file, or a folder"
        ) from None
    if model.eos_id() < 0:
        raise TokenizerError(
            file,
            "has no end-of-text token, and documents must end with one",
            "train it with eos_id, or take another tokenizer",
        )
    names = {"eos_token": model.id_to_piece(model.eos_id()), "unk_token": model.id_to_piece(model.unk_id())}
    return SentencePieceBackend(vocab_file=file, **names)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer as a folder whose bytes do not tell where it was loaded from."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(str(folder))


def vocabulary_size(tokenizer: Any) -> int:
    """The smallest number that is above every token id, added tokens and gaps between ids counted."""
    highest: int = max(tokenizer.get_vocab().values())
    return max(len(tokenizer), highest + 1)
