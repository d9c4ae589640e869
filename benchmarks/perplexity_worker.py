"""One side of benchmarks/perplexity.py in a process of its own: commands from stdin, results to stdout, a line each.

    python benchmarks/perplexity_worker.py SIDE SETTINGS

SETTINGS is JSON: vocabulary, layers, width, length, batch_size, windows. `turn` measures the text once: seconds, nats,
tokens. `memory` says what the process holds at most until now, and what it held before its first turn.
"""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

END = 0


class Side(ABC):
    """The same model and the same text on every side: whole windows of `length` tokens and one of context."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.length, self.batch_size = settings["length"], settings["batch_size"]
        generator = np.random.default_rng(0)
        count = settings["windows"] * self.length
        self.tokens = generator.integers(1, settings["vocabulary"], count, dtype=np.uint16)
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            "gpt2",
            n_layer=settings["layers"],
            n_embd=settings["width"],
            n_head=settings["width"] // 64,
            n_positions=self.length,
            vocab_size=settings["vocabulary"],
            bos_token_id=END,
            eos_token_id=END,
            initializer_range=0.1,  # far from a uniform distribution, so that equal totals say something
        )
        self.model = AutoModelForCausalLM.from_config(config).eval()

    @abstractmethod
    def nats(self) -> float:
        """Of the whole text."""


class Ours(Side):
    """`keep_freed_memory`, then `measure_domain`, as eval/run.py calls them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from doge_ds.evaluation.likelihood import keep_freed_memory

        keep_freed_memory()
        super().__init__(settings)

    def nats(self) -> float:
        from doge_ds.evaluation.perplexity import HeldOutText, WindowOptions, measure_domain

        text, options = HeldOutText(self.tokens, self.tokens.nbytes), WindowOptions(self.length + 1)
        return float(measure_domain(self.model, text, END, options, self.batch_size).nats.sum())


class LmEval(Side):
    """`HFLM.loglikelihood_rolling`, which lm-eval's perplexity tasks end in, with its defaults.

    A word a token, so that its tokenizer gives the very tokens; that takes 0.1% of a turn.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {"<end>" if word == END else str(word): word for word in range(settings["vocabulary"])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", bos_token="<end>")
        self._model = HFLM(
            pretrained=self.model,
            tokenizer=tokenizer,
            max_length=self.length,
            batch_size=self.batch_size,
        )
        text = " ".join(map(str, self.tokens))
        if self._model.tok_encode(text) != self.tokens.tolist():
            raise ValueError("the tokenizer does not give the tokens")
        self._requests = [Instance("loglikelihood_rolling", {}, (text,), 0)]

    def nats(self) -> float:
        return -float(self._model.loglikelihood_rolling(self._requests, disable_tqdm=True)[0])


class Plain(Side):
    """The loop that one writes by hand: logits, shift, cross entropy."""

    def nats(self) -> float:
        stream = torch.from_numpy(np.concatenate([[END], self.tokens.astype(np.int64)]))
        windows = stream.unfold(0, self.length + 1, self.length)
        total = 0.0
        with torch.inference_mode():
            for batch in windows.split(self.batch_size):
                logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
                labels = batch[:, 1:]
                total += torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), labels.flatten(), reduction="sum"
                ).item()
        return total


SIDES: dict[str, type[Side]] = {"doge_ds": Ours, "lm_eval": LmEval, "plain": Plain}


def peak_bytes() -> int:
    """The most that this process ever held in memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Serve until stdin ends."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    side = SIDES[sys.argv[1]](json.loads(sys.argv[2]))
    before = peak_bytes()
    for line in sys.stdin:
        found: dict[str, Any]
        if line.strip() == "turn":
            began = time.perf_counter()
            nats = side.nats()
            found = {"seconds": time.perf_counter() - began, "nats": nats, "tokens": len(side.tokens)}
        else:
            found = {"peak_bytes": peak_bytes(), "peak_bytes_before": before, "threads": torch.get_num_threads()}
        print(json.dumps(found), file=results, flush=True)


if __name__ == "__main__":
    main()
