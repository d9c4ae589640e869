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
        facts: its run.json: program, ranks, mixture, batches where they changed, hashes of store and tokenizer. A
            proxy's mixture are the weights that it has learned, None before its end.
        parameters: of the model, tied ones counted once.
        step: optimizer steps that were done.
        tokens: of each domain that the model was trained on until then; of a proxy, its targets' too.
        dtype: of the saved tensors.
    """
    front = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["doge_ds", "pretrained"])
    start, training = config["model"].get("pretrained"), config["training"]
    is_proxy = facts["program"] == "train_proxy"
    batch = "sequences_per_domain" if is_proxy else "global_batch_size"
    weight = "learned weight" if is_proxy else "mean weight" if facts.get("schedule") else "weight"
    mixture = "" if is_proxy else " --mixture mixture.json"
    weights = facts["mixture"] or {}
    rows = [
        f"| {domain.strip('<>')} | {f'{weights[domain]:.4f}' if domain in weights else '-'} | {count:,} |"
        for domain, count in sorted(tokens.items(), key=lambda item: -weights.get(item[0], -1.0))
    ]
    versions = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in LIBRARIES)
    return "\n".join(
        [
            f"---\n{front.to_yaml()}\n---",
            f"# {name}\n",
            f"{config['model'].get('model_type', start)}, {parameters:,} parameters, saved in {dtype}; "
            f"{'trained on from ' + str(start) if start else 'pretrained from scratch'} with doge_ds on "
            f"{sum(tokens.values()):,} tokens: {_steps(facts, step, training[batch])} sequences"
            f"{' of each domain,' * is_proxy} of {config['data']['sequence_length']:,} tokens.\n",
            "## Data\n",
            f"| domain | {weight} in the mixture | tokens seen |\n|---|---:|---:|",
            *rows,
            "",
            f"Mixture: {_proxy(facts) if is_proxy else _described(facts.get('mixture_from', {}))}. Token store "
            f"`{facts['store']}`, tokenizer (sha256) `{facts['tokenizer_sha256']}`.\n",
            "## To do it again\n",
            f"With the same token store, on {facts['ranks']} ranks ({versions}):\n",
            f"    deepspeed doge_ds/{facts['program']}.py --config run.json{mixture}\n",
            *_batch_changes(facts, f"training.{batch}", step),
            "`run.json`:\n",
            f"```json\n{json.dumps(config, indent=2)}\n```",
            *([] if is_proxy else _mixture_file(facts)),
            "",
        ]
    )


def _begun(facts: Mapping[str, Any], step: int) -> list[tuple[int, int]]:
    """Step and sequences where these changed and how to, until `step`; nothing where they did not."""
    found = [(stage["from_step"], stage["sequences"]) for stage in facts.get("batches") or []]
    return [stage for stage in found if stage[0] < step] or found[:1]


def _steps(facts: Mapping[str, Any], step: int, sequences: int) -> str:
    """40 steps of 8, or 20 steps of 8 and 20 steps of 16."""
    begun = _begun(facts, step) or [(0, sequences)]
    ends = [*(start for start, _ in begun[1:]), step]
    return " and ".join(f"{end - start:,} steps of {size:,}" for (start, size), end in zip(begun, ends, strict=True))


def _batch_changes(facts: Mapping[str, Any], key: str, step: int) -> list[str]:
    """How to change the batch where it was changed."""
    begun = _begun(facts, step)
    if not begun:
        return []
    changes = [
        f", stopped after step {start} and continued with `{key}={size} --change_batch`" for start, size in begun[1:]
    ]
    return [f"with `--set {key}={begun[0][1]}`{''.join(changes)}.\n"]


def _mixture_file(facts: Mapping[str, Any]) -> list[str]:
    """What a base is trained on, to be given to --mixture."""
    of_run = {"schedule": facts["schedule"]} if facts.get("schedule") else {"domains": facts["mixture"]}
    return ["\n`mixture.json`:\n", f"```json\n{json.dumps({'version': 1, **of_run}, indent=2)}\n```"]


def _proxy(facts: Mapping[str, Any]) -> str:
    """What a proxy has to do with a mixture, in words."""
    what = "this model is the proxy of a DoGE run, made to learn domain weights"
    return f"{what}; those above are their mean over the whole run" if facts["mixture"] else f"{what}, not finished yet"


def _described(source: Mapping[str, Any]) -> str:
    """Where a mixture comes from, in words."""
    if source.get("method"):
        target = source.get("target")
        target = ", ".join(target) if isinstance(target, list) else target
        return f"learned with {source['method']} (target: {target}, {source.get('step')} steps of a proxy)"
    return str(source.get("kind", "given"))
