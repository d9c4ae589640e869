"""What both training programs measure of held-out text between their steps (`training.eval_every`)."""

from collections.abc import Sequence

from doge_ds.config import BaseConfig, ProxyConfig
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError
from doge_ds.evaluation.held_out_sample import HeldOutSample
from doge_ds.training.launch import Ranks


def held_out_sample(
    config: BaseConfig | ProxyConfig, store: TokenStore, domains: Sequence[str], batch_size: int, ranks: Ranks
) -> HeldOutSample:
    """The windows to measure, of those domains that have held-out text; none at all without `training.eval_every`.

    Raises:
        ConfigError: no domain has any.
    """
    texts = {}
    if config.training.eval_every is not None:
        texts = {name: text for name in dict.fromkeys(domains) if len(text := store.tokens(name, "valid"))}
        if not texts:
            problem = f"no domain of the run has held-out text in {store.path}"
            raise ConfigError("training.eval_every", problem, "leave it out, or prepare the store with held-out text")
    return HeldOutSample(
        texts,
        store.manifest.tokenizer.end_of_text_id,
        config.data.sequence_length,
        config.training.eval_windows,
        batch_size,
        (ranks.rank, ranks.world_size),
    )


def held_out_line(config: BaseConfig | ProxyConfig, domains: Sequence[str], sample: HeldOutSample) -> list[str]:
    """What to know before the first step: which domains are not measured, for they have no held-out text."""
    missing = [name for name in dict.fromkeys(domains) if name not in sample.domains]
    if config.training.eval_every is None or not missing:
        return []
    return [f"without held-out text, and not evaluated during training: {', '.join(missing)}"]
