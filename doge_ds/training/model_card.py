"""README.md of an exported model: what it was trained on, and how to do it again."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

LIBRARIES = ("doge_ds", "deepspeed", "torch", "transformers")


def model_card(
    name: str,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    parameters: int,
    step: int,
    tokens: Mapping[str, int],
    dtype: str,
) -> str:
    """The card, in Markdown.

    Args:
        name: of the run.
        config: its resolved run configuration.
        facts: its run.json: ranks, mixture, hashes of store and tokenizer.
        parameters: of the model, tied ones counted once.
        step: optimizer steps that were done.
        tokens: of each domain that the model was trained on until then.
        dtype: of the saved tensors.
    """
    total = sum(tokens.values())
    front = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["doge_ds", "pretrained"])
    start = config["model"].get("pretrained")
    rows = [
        f"| {domain} | {weight:.4f} | {tokens[domain]:,} |"
        for domain, weight in sorted(facts["mixture"].items(), key=lambda item: -item[1])
    ]
    versions = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in LIBRARIES)
    mixture: dict[str, Any] = {"version": 1, "domains": facts["mixture"]}
    weight = "weight"
    if facts.get("schedule"):
        mixture, weight = {"version": 1, "schedule": facts["schedule"]}, "mean weight"
    return "\n".join(
        [
            f"---\n{front.to_yaml()}\n---",
            f"# {name}\n",
            f"{config['model'].get('model_type', start)}, {parameters:,} parameters, saved in {dtype}; "
            f"{'trained on from ' + str(start) if start else 'pretrained from scratch'} with doge_ds on "
            f"{total:,} tokens: {step:,} steps of {config['training']['global_batch_size']:,} sequences of "
            f"{config['data']['sequence_length']:,} tokens.\n",
            "## Data\n",
            f"| domain | {weight} in the mixture | tokens seen |\n|---|---:|---:|",
            *rows,
            "",
            f"Mixture: {_described(facts.get('mixture_from', {}))}. Token store `{facts['store']}`, tokenizer (sha256) "
            f"`{facts['tokenizer_sha256']}`.\n",
            "## To do it again\n",
            f"With the same token store, on {facts['ranks']} ranks ({versions}):\n",
            "    deepspeed doge_ds/train_base.py --config run.json --mixture mixture.json\n",
            "`run.json`:\n",
            f"```json\n{json.dumps(config, indent=2)}\n```\n",
            "`mixture.json`:\n",
            f"```json\n{json.dumps(mixture, indent=2)}\n```",
            "",
        ]
    )


def _described(source: Mapping[str, Any]) -> str:
    """Where a mixture comes from, in words."""
    if source.get("method"):
        target = source.get("target")
        target = ", ".join(target) if isinstance(target, list) else target
        return f"learned with {source['method']} (target: {target}, {source.get('step')} steps of a proxy)"
    return str(source.get("kind", "given"))
