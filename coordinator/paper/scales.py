"""The two scales of a run, as values: the paper's own, and one that takes minutes. Pure; no torch.

At full scale experiments are the paper's, as far as its text has them; at smoke scale everything is there, but small,
and images that come with the package take the place of those that do not.
"""

from common.config import DatasetRef
from common.evaluate_config import load_evaluate_config
from common.loading import load
from coordinator.paper.experiments import FourthFigure, ImageSet, PaperConfig, Tuning
from coordinator.paper.few_shot import full_few_shot, smoke_few_shot


def smoke_config(has_fashion_mnist: bool) -> PaperConfig:
    """Everything in minutes on two cores, from images on this machine.

    Args:
        has_fashion_mnist: whether the real Fashion-MNIST is here to take CIFAR10's place; else digits do.
    """
    clothes = DatasetRef(source="fashion-mnist" if has_fashion_mnist else "digits")
    cifar10 = "Fashion-MNIST (gray, 10 classes)" if has_fashion_mnist else "scikit-learn's digits (gray, 10 classes)"
    small = ["channels=8", "num_cells=5", "image_size=16", "batch_size=32", "auxiliary_weight=0.4", "cutout=4"]
    study = load("paper_smoke", environment={})
    size = study.families[0].image_size
    return PaperConfig(
        scale="smoke",
        study=study,
        figure4=FourthFigure(repeats=4, train_per_class=60, test_per_class=50, scratch_lr=0.1),
        cifar10=ImageSet(
            name="CIFAR10",
            data=clothes,
            stand_in=f"{cifar10} at {size} pixels",
            search_size=size,
            tuning=Tuning(steps=60, train_per_class=100),
            recipe=load_evaluate_config("smoke", [*small, "epochs=6", "train_per_class=200", "test_per_class=100"]),
        ),
        svhn=ImageSet(
            name="SVHN",
            data=DatasetRef(source="digits"),
            stand_in=f"scikit-learn's digits (gray, 10 classes) at {size} pixels",
            search_size=size,
            tuning=Tuning(steps=60, train_per_class=100),
            recipe=load_evaluate_config("smoke", [*small, "epochs=6", "train_per_class=120", "test_per_class=36"]),
        ),
        imagenet=ImageSet(
            name="ImageNet",
            data=study.families[2].data,
            stand_in=f"50 characters of scripts unseen in meta-training, at {study.families[2].image_size} pixels",
            num_unseen_classes=50,
            search_size=study.families[2].image_size,
            tuning=Tuning(num_tasks=8, steps=study.adapt.steps, train_per_class=20, test_per_class=10),
            recipe=load_evaluate_config(
                "smoke",
                [
                    *small,
                    "motif=imagenet",
                    f"image_size={study.families[2].image_size}",
                    "epochs=12",
                    "auxiliary_weight=0.0",
                    "train_per_class=40",
                    "test_per_class=20",
                ],
            ),
        ),
        few_shot=smoke_few_shot(),
    )


def full_config(
    imagenet: str | None = None, downloads: str | None = None, mini_imagenet: str | None = None
) -> PaperConfig:
    """The paper's experiments.

    What the paper leaves out is a reconstruction: see the preset `paper`, and the recipes of `common.evaluate_config`.

    Args:
        imagenet: folder made by `metasearch data prepare --sizes 32,64,224,256` of ImageNet's training images.
        downloads: folder that holds or receives CIFAR10 and SVHN, each in one of its own; a cache where not given.
        mini_imagenet: folder with Mini-ImageNet's files.
    """
    study = load("paper", environment={})
    reference = DatasetRef(source="imagenet", root=imagenet, unseen_fraction=0.0)
    families = tuple(family.model_copy(update={"data": reference}) for family in study.families)
    study = study.model_copy(update={"families": families})
    # Six epochs of CIFAR10, as in figure 4; SVHN as many steps (reconstruction).
    steps = 6 * 50_000 // study.adapt.batch_size
    return PaperConfig(
        scale="full",
        study=study,
        figure4=FourthFigure(repeats=3, train_per_class=5000, test_per_class=1000),
        cifar10=ImageSet(
            name="CIFAR10",
            data=DatasetRef(source="cifar10", root=_folder(downloads, "cifar10")),
            search_size=32,
            tuning=Tuning(steps=steps, train_per_class=5000),
            recipe=load_evaluate_config("cifar10"),
            num_train=50_000,
        ),
        svhn=ImageSet(
            name="SVHN",
            data=DatasetRef(source="svhn", root=_folder(downloads, "svhn")),
            search_size=32,
            tuning=Tuning(steps=steps, train_per_class=14_000),
            recipe=load_evaluate_config("svhn"),
            num_train=73_257,
        ),
        imagenet=ImageSet(
            name="ImageNet",
            data=reference,
            search_size=224,
            search_in_training_part=False,
            tuning=Tuning(num_tasks=8, steps=study.adapt.steps, train_per_class=1280, test_per_class=50),
            # As many images per class as ImageNet's validation set, which a folder of its training images has not.
            recipe=load_evaluate_config("imagenet", ["test_fraction=0.04"]),
            num_train=1_230_000,
        ),
        few_shot=full_few_shot(mini_imagenet),
    )


def _folder(parent: str | None, name: str) -> str | None:
    return None if parent is None else f"{parent}/{name}"
