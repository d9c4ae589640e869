"""DoGE in one process without DeepSpeed, as docs/paper_map.md describes the authors' code; for proxy_step.py."""

import torch
from torch.nn.functional import cross_entropy

from doge_ds.train_proxy import ProxyJob
from doge_ds.training.engine import parameter_groups
from doge_ds.training.model import build_model, parameter_count


class SimpleDoge:
    """The algorithm in one process, as the authors' code goes about it: everything dense, fp32 and on the host.

    Each domain's gradient is clipped, concatenated tensor by tensor into a row of a domains x parameters matrix, and
    kept once more in a dictionary; the model's gradient is a Python sum over the dictionaries for each tensor.
    """

    def __init__(self, job: ProxyJob) -> None:
        training = job.config.training
        self.model = build_model(job.model, job.deepspeed_config, training, None)
        groups = parameter_groups(self.model, training.weight_decay, training.decay_embeddings)
        self.optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95))
        self.matrix = torch.zeros(len(job.train_domains), parameter_count(job.model))
        self.weights = torch.full((len(job.train_domains),), 1 / len(job.train_domains))
        self.doge, self.training = job.config.doge, training

    def step(self, tokens_of_step: torch.Tensor) -> None:
        """One step of weights and model on [sequences, length], domain after domain."""
        dictionaries: list[dict[str, torch.Tensor]] = []
        for row, tokens in enumerate(tokens_of_step.chunk(len(self.matrix))):
            mean_loss(self.model, tokens).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.doge.clip_domain_gradients or torch.inf)
            dictionaries.append({name: p.grad for name, p in self.model.named_parameters() if p.grad is not None})
            flat = torch.zeros(0)
            for gradient in dictionaries[-1].values():
                flat = torch.cat([flat, gradient.flatten()])
            self.matrix[row] = flat
            self.optimizer.zero_grad()
        scores = (self.matrix @ self.matrix.T).sum(dim=1) / (self.matrix.norm(dim=1).mean() + 1e-6)
        move = self.training.learning_rate * scores.clamp(0, 5) / self.doge.mu
        self.weights = torch.softmax(self.weights.log() + move, dim=0)
        for name, parameter in self.model.named_parameters():
            terms = (weight * found[name] for weight, found in zip(self.weights, dictionaries, strict=True))
            parameter.grad = sum(terms)  # type: ignore[assignment]
        self._finish_step()

    def plain_step(self, tokens_of_step: torch.Tensor) -> None:
        """The same model and optimizer without DoGE."""
        for tokens in tokens_of_step.chunk(len(self.matrix)):
            (mean_loss(self.model, tokens) / len(self.matrix)).backward()
        self._finish_step()

    def _finish_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.gradient_clipping)
        self.optimizer.step()
        self.optimizer.zero_grad()


def mean_loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean token loss; what is fed is what `sequence_losses` feeds."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
