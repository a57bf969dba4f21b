"""Meta-gradients against a naive unrolling by autograd, in float64, on a small smooth network."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.few_shot_config import MetaGradientMethod
from common.meta.embedding import MetaGradientEstimate, Objective, meta_gradient

pytestmark = pytest.mark.usefixtures("one_thread")

PARTS = ("weights", "classifier", "logits")
SHAPES = {"weights": (3, 4, 4), "classifier": (3, 4), "logits": (3,)}
RATES = {"weights": 0.1, "classifier": 0.2, "logits": 0.7}


@dataclass(frozen=True)
class Batch:
    """Inputs (batch, 4), labels (batch,), and noise (3,) that is added to the architecture logits."""

    inputs: Tensor
    labels: Tensor
    noise: Tensor


def loss_of(weights: Tensor, classifier: Tensor, logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of a network that mixes three smooth layers by a relaxed categorical."""
    mixed = F.softmax(logits + batch.noise, dim=0)
    features = torch.stack([torch.tanh(batch.inputs @ one) for one in weights])
    return F.cross_entropy((mixed[:, None, None] * features).sum(dim=0) @ classifier.T, batch.labels)


def split(vector: Tensor) -> dict[str, Tensor]:
    sizes = [torch.Size(SHAPES[part]).numel() for part in PARTS]
    return {part: own.view(SHAPES[part]) for part, own in zip(PARTS, vector.split(sizes), strict=True)}


def objective_of(batch: Batch) -> Objective:
    return lambda parameters: loss_of(**split(parameters), batch=batch)


@dataclass(frozen=True)
class Task:
    start: Tensor
    rates: Tensor
    batches: Sequence[Batch]
    query: Batch

    def estimate(self, method: MetaGradientMethod) -> MetaGradientEstimate:
        inner = [objective_of(batch) for batch in self.batches]
        return meta_gradient(method, self.start, self.rates, inner, objective_of(self.query))


def task(num_steps: int = 5, num_images: int = 6) -> Task:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def batch() -> Batch:
        return Batch(normal(num_images, 4), torch.randint(3, (num_images,), generator=generator), normal(3))

    start = torch.cat([normal(*SHAPES[part]).reshape(-1) for part in PARTS])
    rates = torch.cat([torch.full(SHAPES[part], RATES[part], dtype=torch.float64).reshape(-1) for part in PARTS])
    return Task(start, rates, [batch() for _ in range(num_steps)], batch())


def unrolled(of: Task) -> dict[str, Tensor]:
    """Three tensors of their own, moved by hand, and one backward pass at the end."""
    first = {part: own.clone().requires_grad_() for part, own in split(of.start).items()}
    weights, classifier, logits = (first[part] for part in PARTS)
    for batch in of.batches:
        loss = loss_of(weights, classifier, logits, batch)
        by_weights, by_classifier, by_logits = torch.autograd.grad(
            loss, (weights, classifier, logits), create_graph=True
        )
        weights = weights - RATES["weights"] * by_weights
        classifier = classifier - RATES["classifier"] * by_classifier
        logits = logits - RATES["logits"] * by_logits
    loss_of(weights, classifier, logits, of.query).backward()
    return {part: own.grad for part, own in first.items() if own.grad is not None}


@pytest.mark.parametrize(("method", "tolerance"), [("exact", 1e-10), ("finite_difference", 1e-3)])
def test_second_order_gradients_agree_with_an_unrolled_loop_part_by_part(
    method: MetaGradientMethod, tolerance: float
) -> None:
    of = task()
    estimated, expected = split(of.estimate(method).gradient), unrolled(of)
    for part in PARTS:
        error = (estimated[part] - expected[part]).norm() / expected[part].norm()
        assert error < tolerance, f"{part}: {error}"


def test_first_order_takes_the_query_gradient_where_the_steps_end_and_is_another_one() -> None:
    of = task()
    found = of.estimate("first_order")
    end = found.end.clone().requires_grad_()
    loss = objective_of(of.query)(end)
    loss.backward()
    assert end.grad is not None and torch.equal(found.gradient, end.grad)
    assert found.query_loss is not None and torch.equal(found.query_loss, loss.detach())
    assert (found.gradient - of.estimate("exact").gradient).norm() > 0.1 * found.gradient.norm()


def test_reptile_is_the_sum_of_the_steps_and_never_sees_the_query_images() -> None:
    of = task()
    found = of.estimate("reptile")
    parameters, way = of.start, torch.zeros_like(of.start)
    for batch in of.batches:
        leaf = parameters.clone().requires_grad_()
        objective_of(batch)(leaf).backward()
        assert leaf.grad is not None
        way = way + of.rates * leaf.grad
        parameters = parameters - of.rates * leaf.grad
    torch.testing.assert_close(found.gradient, way, rtol=1e-12, atol=1e-14)
    other = Task(of.start, of.rates, of.batches, of.batches[0])
    assert torch.equal(other.estimate("reptile").gradient, found.gradient)
    assert found.query_loss is None


def test_all_methods_descend_alike_and_leave_the_start_as_it_was() -> None:
    of = task()
    before = of.start.clone()
    found = {method: of.estimate(method) for method in ("exact", "finite_difference", "first_order", "reptile")}
    for each in found.values():
        torch.testing.assert_close(each.end, found["exact"].end, rtol=1e-13, atol=1e-14)
        assert len(each.losses) == len(of.batches)
    assert torch.equal(of.start, before) and not of.start.requires_grad


def test_steps_of_rate_zero_leave_the_query_gradient_at_the_start() -> None:
    of = task()
    still = Task(of.start, torch.zeros_like(of.rates), of.batches, of.query)
    expected = still.estimate("first_order").gradient
    assert torch.equal(still.estimate("finite_difference").gradient, expected)
    torch.testing.assert_close(still.estimate("exact").gradient, expected, rtol=1e-14, atol=1e-15)


def most_saved_bytes(of: Task, method: MetaGradientMethod) -> int:
    """The most that graphs have held for backward passes at any one time."""
    held, most = 0, 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, most
            self.tensor = tensor
            held += tensor.nbytes
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        of.estimate(method)
    return most


def test_only_the_exact_method_needs_more_memory_for_more_steps() -> None:
    few, many = task(num_steps=2), task(num_steps=12)
    for method in ("finite_difference", "first_order", "reptile"):
        assert 0 < most_saved_bytes(few, method) == most_saved_bytes(many, method)
    assert most_saved_bytes(many, "exact") > 4 * most_saved_bytes(few, "exact")
