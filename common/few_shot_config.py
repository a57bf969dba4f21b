"""Few-shot studies: how a task is learnt from a handful of images, and how such tasks teach the prior. No torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.errors import InvalidInputError
from common.space.genotype import Genotype
from common.values import Frozen, LearningRate, LearningRateOrZero, PositiveFloat

Decay = Annotated[float, Field(ge=0, lt=1)]

MetaGradientMethod = Literal["exact", "finite_difference", "first_order", "reptile"]
FewShotNetwork = Literal["supernet", "genotype", "four_convolutions"]
BatchStatistics = Literal["transductive", "inductive"]


class MetaAdamConfig(Frozen):
    """Adam on the mean of the tasks' meta-gradients. Its moments are part of the prior."""

    lr: LearningRate = 1e-3
    """Of the weights, the classifier's included."""
    alpha_lr: LearningRateOrZero = 1e-3
    """Of the architecture logits; 0 freezes them."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, ge=1e-9)
    """Added to the root of the second moment. Gradients are summed to 2^-40 (9e-13), which is up to half a thousandth
    of the least eps: a smaller one would scale rounding up to a step."""


class MetaSgdConfig(Frozen):
    """Plain steps down the mean of the tasks' meta-gradients. With method `reptile` and a rate of 1, the prior moves to
    the mean of where the tasks ended (Nichol et al. 2018)."""

    lr: LearningRate = 1.0
    """Of the weights, the classifier's included, in the first round ..."""
    lr_end: LearningRateOrZero | None = None
    """... and in the last; linear in between. Constant where not given."""
    alpha_lr: LearningRateOrZero = 1.0
    """Of the architecture logits, constant; 0 freezes them."""


class FewShotConfig(Frozen):
    """Optimization embedding over few-shot episodes (BASE eq. 10-11, section 6.3; step counts and rates are lost there,
    these are of MAML's published setting: reconstruction).

    A family's `num_ways` is N, its `train_per_class` K (support images per class), its `test_per_class` the query
    images per class, and `tasks_per_round` the tasks of a meta-batch. Every inner step sees the whole support set.
    """

    method: MetaGradientMethod = "finite_difference"
    """How a task's meta-gradient is computed. exact: by differentiating through all steps; memory grows with them.
    finite_difference: the same to first order of a small displacement, in constant memory. first_order: the gradient of
    the query loss after the last step (FOMAML). reptile: the way back from there to the prior."""
    network: FewShotNetwork = "supernet"
    """supernet: weights and architecture learn together. genotype: the network of one genotype. four_convolutions: the
    usual baseline of few-shot learning (Vinyals et al. 2016)."""
    genotype: Genotype | None = None
    """Of `network` genotype."""
    filters: int = Field(64, ge=1)
    """Channels of `network` four_convolutions."""
    steps: int = Field(5, ge=1)
    """Inner steps while meta-training."""
    test_steps: int = Field(10, ge=0)
    """Inner steps for tasks that are tested or submitted."""
    theta_lr: LearningRate = 0.05
    """Rate of the inner steps, plain SGD, for weights and classifier."""
    alpha_lr: LearningRateOrZero = 0.05
    """The same for architecture logits; 0 keeps them."""
    displacement: PositiveFloat = 0.1
    """Length of the displacement of finite_difference, in the space of all parameters. On smooth losses 0.01 is better;
    on networks with ReLU and max pooling a short one makes curvature of every kink that it crosses."""
    adam: MetaAdamConfig = MetaAdamConfig()
    """The outer step."""
    sgd: MetaSgdConfig | None = None
    """With it, the outer step is plain, and `adam` says nothing."""
    evaluation: BatchStatistics = "transductive"
    """Whose BatchNorm statistics query images are tested with: their own, all together, or the support images'."""

    @property
    def learns_architecture(self) -> bool:
        """Whether the prior has architecture logits."""
        return self.network == "supernet"

    @property
    def outer_alpha_lr(self) -> float:
        """Rate of the architecture logits in the outer step; 0 where they stay."""
        return self.adam.alpha_lr if self.sgd is None else self.sgd.alpha_lr

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.network == "genotype") != (self.genotype is not None):
            raise ValueError(
                f"network is {self.network!r} and genotype is {'given' if self.genotype else 'not given'}; "
                "set both, or neither"
            )
        return self


def refuse_few_shot(few_shot: FewShotConfig | None, command: str) -> None:
    """Refuses a few-shot study where tasks learn by `adapt`.

    Args:
        few_shot: of the study.
        command: that cannot take it.

    Raises:
        InvalidInputError: the study is a few-shot one.
    """
    if few_shot is not None:
        raise InvalidInputError(
            f"{command} adapts as `adapt` says, and the study has few_shot (network {few_shot.network!r}); use "
            "metasearch test, or a study without few_shot"
        )
