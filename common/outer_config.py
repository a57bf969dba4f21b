"""The outer step as a value: what tasks teach the prior. No torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.values import Fraction, Frozen, LearningRate, NonNegativeFloat, PositiveFloat


class TrialsConfig(Frozen):
    """An architecture learnt from trials: per task some genotypes are drawn from the prior, each is trained by itself
    for a few steps, and held-out accuracy moves the logits (score-function gradient; reconstruction)."""

    num_genotypes: int = Field(8, ge=2)
    """Per task."""
    steps: int = Field(40, ge=1)
    batch_size: int = Field(32, ge=2)
    lr: LearningRate = 0.1
    """At first; along a cosine to zero."""
    weights: Literal["fresh", "prior"] = "fresh"
    """Where training starts: weights drawn anew for each task, or the prior's."""
    rate: PositiveFloat = 10.0
    """Nats that a pair's logit gains for each unit of accuracy that its genotypes have above the task's mean."""
    shared_by_op: Fraction = 0.5
    """Share of a gain that all pairs with the same op in the same kind of cell have in common."""


class OuterConfig(Frozen):
    """The outer step: how local parameters move the prior (Reptile)."""

    theta_rate: Fraction = 1.0
    """Share of the mean difference that the weights move by in the first round ..."""
    theta_rate_end: Fraction | None = None
    """... and in the last; linear in between."""
    theta_average: Literal["tasks", "users", "uses"] = "tasks"
    """What the summed difference of an op's weights is divided by. tasks: all of them. users: the tasks that computed
    the op in at least one step. uses: the sum over tasks of the share of steps that computed it, as if every step had.
    Under the last two, an op that no task computed stays as it is; only hard relaxations leave any out."""
    alpha_rate: Fraction = 0.6
    alpha_average: Literal["probability", "logits"] = "probability"
    """probability: the arithmetic mean of the posteriors (the M-step of the ELBO); logits: the geometric one."""
    rule: Literal["mean", "clipped_mean", "median", "trimmed_mean"] = "mean"
    clip_norm: PositiveFloat = 10.0
    """clipped_mean: longest difference, or meta-gradient, that counts in full."""
    trim_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """trimmed_mean: share of values dropped at each end, per coordinate."""
    weighting: Literal["uniform", "examples"] = "uniform"
    examples_power: NonNegativeFloat = 1.0
    """examples: a task weighs (number of training images) to this power."""
    alpha_trials: TrialsConfig | None = None
    """Learn the architecture from trials; from gradients where not given. Needs alpha_average 'logits' and
    space.normalisation 'node', since scores add up and sources compete."""
    alpha_warmup_rounds: int = Field(0, ge=0)
    """Rounds in which the weights learn alone. A guard against collapse."""
    max_parameter_free_edges: int | None = Field(None, ge=0)
    """Stop learning the architecture once a pool, skip or none dominates more edges of a kind of cell than this."""
    min_accepted_fraction: Fraction = 0.5
    """A round whose accepted updates are fewer than this share of its tasks fails."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.weighting != "uniform" and self.rule in ("median", "trimmed_mean"):
            raise ValueError(f"rule {self.rule!r} has no weights; set outer.weighting to 'uniform'")
        if self.theta_average != "tasks" and self.rule in ("median", "trimmed_mean"):
            raise ValueError(
                f"rule {self.rule!r} is no sum to divide by {self.theta_average}; "
                "set outer.theta_average to 'tasks', or outer.rule to 'mean'"
            )
        if self.alpha_trials is not None and self.alpha_average != "logits":
            raise ValueError(
                f"alpha_trials moves logits, alpha_average is {self.alpha_average!r}; "
                "set outer.alpha_average to 'logits'"
            )
        return self
