"""Sections of the run configuration: every key typed, ranged and explained. `config.py` puts them together."""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Unknown keys are refused; a number in quotes is no number; a whole number will do where a fraction may stand."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class DataConfig(Section):
    """Which tokens to train on."""

    path: str = Field(description="Token store, as `doge-ds prepare` makes it; relative to the working directory.")
    sequence_length: int = Field(ge=2, description="Tokens in a training sequence; its first token is context only.")
    train_domains: list[str] | None = Field(
        default=None, min_length=1, description="Domains to train on; by default all of the store but the targets."
    )
    max_epochs: float = Field(default=4.0, gt=0, description="Refuse a run that reads any domain more often than this.")

    @model_validator(mode="after")
    def _train_domains_are_distinct(self) -> Self:
        if self.train_domains and len(set(self.train_domains)) != len(self.train_domains):
            raise ValueError(f"train_domains {self.train_domains} names a domain twice")
        return self


class TrainingConfig(Section):
    """What both stages have in common."""

    steps: int = Field(ge=1, description="Optimizer steps.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Sequences of one forward pass on one rank; by default all that a rank gets."
    )
    learning_rate: float = Field(gt=0, description="Peak of the schedule cosine_with_min_lr.")
    min_learning_rate: float = Field(default=0.0, ge=0, description="Where the cosine ends, at the last step.")
    warmup_steps: int = Field(default=0, ge=0, description="Linear warm-up from 0.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's, on matrices; norms and biases have none.")
    decay_embeddings: bool = Field(default=True, description="Whether embeddings have weight decay as well.")
    gradient_clipping: float = Field(default=1.0, ge=0, description="Largest norm of the model's gradient; 0: off.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of initialisation, sample order and dropout.")
    checkpoint_every: int = Field(default=1000, ge=1, description="Steps between checkpoints; the last is saved.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints that are kept.")
    keep_universal: bool = Field(default=False, description="Keep what was converted for another number of ranks.")
    on_failed_save: Literal["continue", "stop"] = Field(
        default="continue", description="Where a checkpoint cannot be written (a full disk): train on, or end."
    )
    stop_after_bad_steps: int = Field(
        default=10, ge=1, description="End after so many steps in a row whose loss or gradient is NaN or infinite."
    )
    rank_timeout: float = Field(
        default=1800.0, ge=1, description="Seconds without a step after which a rank that hangs ends the run."
    )
    log_every: int = Field(default=10, ge=1, description="Steps between lines of metrics.jsonl, the last one too.")
    eval_every: int | None = Field(default=None, ge=1, description="Steps between held-out evaluations; null: none.")
    eval_windows: int = Field(default=64, ge=1, description="Held-out windows of each domain in one evaluation.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for activations, a third more time.")
    compile: bool = Field(default=False, description="torch.compile, through DeepSpeed's engine.compile().")
    peak_tflops: float | None = Field(
        default=None, gt=0, description="TFLOP/s of one device in this precision, by its data sheet; for the MFU."
    )

    @model_validator(mode="after")
    def _schedule_is_possible(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.warmup_steps >= self.steps and self.warmup_steps > 0:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves none of {self.steps} steps to train")
        return self


class ProxyTrainingConfig(TrainingConfig):
    """The proxy sees the same number of sequences of every domain in every step."""

    sequences_per_domain: int = Field(ge=1, description="Sequences of each domain in one step, over all ranks.")


class BaseTrainingConfig(TrainingConfig):
    """The base model sees batches drawn from the mixture."""

    global_batch_size: int = Field(ge=1, description="Sequences in one step, over all ranks.")
    export_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of the Hugging Face folder that the run ends with."
    )


Normalization = Literal["none", "mean_gradient_norm", "cosine"]

# What a preset sets, unless the run configuration says otherwise. `official` is what the authors' code does: every
# domain's gradient clipped to the Trainer's max_grad_norm of 1, division by the mean norm, scores between 0 and 5.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"clip_domain_gradients": None, "normalize": "none", "clip": None},
    "official": {"clip_domain_gradients": 1.0, "normalize": "mean_gradient_norm", "clip": (0.0, 5.0)},
}


class SelectionConfig(Section):
    """Scores from some of the model's tensors only, chosen by their cancellation effect (arXiv 2310.15393v1)."""

    steps: int = Field(ge=1, description="First steps of the run, plain training, in which the effect is measured.")
    tensors: int = Field(
        description="How many to keep: those with the smallest cancellation effect; negative: with the largest."
    )

    @model_validator(mode="after")
    def _some_are_kept(self) -> Self:
        if self.tensors == 0:
            raise ValueError("tensors 0 keeps none")
        return self


# How the rows of a step are kept, whatever the method.
GradientStore = Annotated[
    Literal["device", "cpu"],
    Field(description="Where the rows of domain gradients are kept; cpu: pinned memory of the host."),
]
GradientDtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    Field(description="Precision of the rows; by default that in which DeepSpeed accumulates gradients."),
]


class DogeConfig(Section):
    """How the proxy learns the domain weights (arXiv 2310.15393); `reweight/doge.py` has the mathematics."""

    method: ClassVar[str] = "doge"

    target: Literal["all", "others", "mix"] | list[str] = Field(
        default="mix",
        description="Whose loss the weights shall lower: all train domains, all others than the one scored, "
        "held-out sequences of an even mix of them, or a list of domains.",
    )
    preset: Literal["official", "paper"] = Field(
        default="official", description="Scores as the authors' code has them, or as the paper writes them."
    )
    mu: float = Field(default=0.01, gt=0, description="Strength of the Bregman term: smaller moves weights faster.")
    step_size: float | None = Field(
        default=None, gt=0, description="Fixed step of the weights; by default the learning rate of the step."
    )
    divergence: Literal["kl", "euclidean"] = Field(default="kl", description="Mirror map: softmax, or projection.")
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the uniform mixture mixed in every step.")
    clip_domain_gradients: float | None = Field(
        default=None, gt=0, description="Largest norm of one domain's gradient; null: off. Set by the preset."
    )
    normalize: Normalization = Field(default="none", description="What scores are divided by. Set by the preset.")
    clip: tuple[float, float] | None = Field(
        default=None, strict=False, description="Smallest and largest score; null: off. Set by the preset."
    )
    update_every: int = Field(
        default=1, ge=1, description="Steps between updates of the weights; the others train on the weighted loss."
    )
    domains_per_step: int | None = Field(
        default=None, ge=1, description="Train domains in one step, a fair subset that changes; by default all."
    )
    absent_score_decay: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="A domain absent from a step has its last score, drawn towards the mean of the step's scores by "
        "this factor for each update since; 1: held, 0: the mean.",
    )
    selection: SelectionConfig | None = Field(
        default=None, description='Score with some tensors only, as {"steps": 1000, "tensors": 10}; null: with all.'
    )
    gradient_store: GradientStore = "device"
    gradient_dtype: GradientDtype = None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(str(values.get("preset", "official")), {}), **values}

    @model_validator(mode="after")
    def _names_are_distinct_and_clip_is_a_range(self) -> Self:
        if isinstance(self.target, list) and (not self.target or len(set(self.target)) != len(self.target)):
            raise ValueError(f"target {self.target} must name at least one domain, and none twice")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip {list(self.clip)} is no range")
        if self.domains_per_step == 1 and self.target in ("all", "others"):
            raise ValueError(f"domains_per_step 1 leaves no pairs for target {self.target!r}, which compares domains")
        return self

    def slower(self) -> str:
        """What makes the weights move less in a step, in words."""
        return f"raise doge.mu (now {self.mu:g})"


class DoremiConfig(Section):
    """How the proxy learns the domain weights with `"method": "doremi"` (arXiv 2305.10429); `reweight/doremi.py` has
    the mathematics."""

    method: ClassVar[str] = "doremi"

    reference: str | None = Field(
        default=None,
        description="The reference model: a Hugging Face folder, or a run of train_base.py. `--reference` wins.",
    )
    step_size: float = Field(default=1.0, gt=0, description="Of the weights: excess losses are multiplied with it.")
    smoothing: float = Field(default=1e-3, ge=0, lt=1, description="Share of the uniform mixture mixed in every step.")
    gradient_store: GradientStore = "device"
    gradient_dtype: GradientDtype = None

    @property
    def target(self) -> list[str]:
        """Of no domains: nothing is measured but the train domains."""
        return []

    def slower(self) -> str:
        """What makes the weights move less in a step, in words."""
        return f"lower doremi.step_size (now {self.step_size:g})"


MethodOptions = DogeConfig | DoremiConfig
# Methods by name, each with its section. A further one is a part of MethodOptions and a field of ProxyConfig.
METHODS: dict[str, type[MethodOptions]] = {kind.method: kind for kind in get_args(MethodOptions)}
# Those that compare losses with a reference model's.
REFERENCE_METHODS = tuple(name for name, section in METHODS.items() if "reference" in section.model_fields)
