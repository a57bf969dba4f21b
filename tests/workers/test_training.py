"""Training of full networks: resumption to the last bit, budgets, averages, parts of a batch, precision."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.config import DatasetRef
from common.errors import AdaptationError, ConflictError, CorruptArtifactError, InvalidInputError
from common.evaluate_config import EvaluateConfig, load_evaluate_config
from common.nn.full import build_full_network
from common.space.released import CIFAR_TUNED, DARTS_V2
from common.storage import ArtifactFolder
from common.streams import derived_seed
from workers.augment import Standardisation, draw_changes, evaluation_images, training_images
from workers.checkpoint import CHECKPOINT
from workers.data.whole import WholeSource, channel_statistics, load_whole
from workers.score import Score, wilson_interval
from workers.training import TrainOutcome, train

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
DIGITS = DatasetRef(source="digits")


def smoke(*overrides: str) -> EvaluateConfig:
    """Two epochs of five steps, and a last batch that is smaller."""
    return load_evaluate_config("smoke", ["epochs=2", "train_per_class=15", "test_per_class=10", *overrides])


def run(config: EvaluateConfig, folder: Path, genotype=DARTS_V2, source: WholeSource | None = None, **options):
    return train(genotype, config, source or load_whole(DIGITS, config), ArtifactFolder(folder), CPU, **options)


def after_steps(count: int) -> Callable[[], bool]:
    """Asks to stop before step `count` of this call."""
    asked = iter(range(10_000))
    return lambda: next(asked) >= count


def digest(outcome: TrainOutcome) -> str:
    state = outcome.network.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def without_time(outcome: TrainOutcome):
    return outcome.state.model_copy(update={"seconds": 0.0})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainOutcome:
    torch.set_num_threads(1)
    return run(smoke("ema_decay=0.9"), tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("stops", [(0,), (1,), (3, 4), (5,), (7,), (9, 0), (2, 2, 2, 2)])
def test_a_training_that_was_stopped_anywhere_ends_as_if_it_had_not_been(
    undisturbed: TrainOutcome, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    config = smoke("ema_decay=0.9")
    done = 0
    for count in stops:
        stopped = run(config, tmp_path, should_stop=after_steps(count))
        done += count
        assert stopped.ended_by == "stop" and stopped.tested is None
        assert stopped.state.steps_done == done
    resumed = run(config, tmp_path)
    assert resumed.ended_by == "schedule"
    assert digest(resumed) == digest(undisturbed)
    assert without_time(resumed) == without_time(undisturbed)
    assert resumed.tested == undisturbed.tested
    assert resumed.tested_without_average == undisturbed.tested_without_average


def test_a_killed_training_goes_on_from_its_last_checkpoint(undisturbed: TrainOutcome, tmp_path: Path) -> None:
    config = smoke("ema_decay=0.9", "checkpoint_every_steps=2")

    def die_at(steps: int):
        def note(progress) -> None:
            if progress.steps_done == steps:
                raise KeyboardInterrupt

        return note

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, on_progress=die_at(3))
    seen: list[int] = []
    resumed = run(config, tmp_path, on_progress=lambda progress: seen.append(progress.steps_done))
    assert seen == list(range(2, 11)), "step 3 was not stored, so it is done again"
    assert digest(resumed) == digest(undisturbed)
    assert [path.name for path in tmp_path.iterdir() if path.name != CHECKPOINT] == ["state-00000010.safetensors"]


def test_a_finished_training_is_only_tested_again(undisturbed: TrainOutcome, tmp_path: Path) -> None:
    config = smoke("ema_decay=0.9")
    first = run(config, tmp_path)
    again = run(config, tmp_path, should_stop=after_steps(0))
    assert again.ended_by == "schedule" and again.tested == first.tested == undisturbed.tested


def test_progress_counts_steps_and_shows_the_last_epoch(tmp_path: Path) -> None:
    seen = []
    run(smoke(), tmp_path, on_progress=seen.append)
    assert [progress.steps_done for progress in seen] == list(range(11))
    assert {progress.num_steps for progress in seen} == {10}
    assert seen[4].last is None and seen[5].last is not None and seen[5].epochs_done == 1


def test_the_learning_curve_has_the_schedules(tmp_path: Path) -> None:
    config = smoke("epochs=4", "drop_path=0.4", "evaluate_every_epochs=3")
    history = run(config, tmp_path).state.history
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    assert [record.lr for record in history] == [config.lr_at(epoch) for epoch in range(4)]
    assert [record.drop_path for record in history] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [record.accuracy is not None for record in history] == [False, False, True, True]


def test_the_curve_is_of_validation_images_where_there_are_some(tmp_path: Path) -> None:
    config = smoke("validation_fraction=0.2", "epochs=1")
    source = load_whole(DIGITS, config)
    outcome = run(config, tmp_path, source=source)
    accuracy = outcome.state.history[-1].accuracy
    assert accuracy is not None and outcome.tested is not None
    assert accuracy * source.validation.num_images == pytest.approx(round(accuracy * source.validation.num_images))
    assert outcome.tested.num_images == source.test.num_images == 100


def test_it_learns(tmp_path: Path) -> None:
    config = smoke("epochs=8", "train_per_class=60", "cutout=0", "drop_path=0")
    outcome = run(config, tmp_path)
    assert outcome.tested is not None and outcome.tested.accuracy > 0.7
    history = outcome.state.history
    assert history[-1].train_loss_nats < history[0].train_loss_nats / 2


def test_the_network_that_is_returned_is_the_one_that_was_tested(tmp_path: Path) -> None:
    config = smoke("ema_decay=0.5")
    source = load_whole(DIGITS, config)
    outcome = run(config, tmp_path, source=source)
    images = torch.from_numpy(source.test.gather(np.arange(source.test.num_images)).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        logits = outcome.network(evaluation_images(images, config, outcome.standardisation))
    labels = torch.from_numpy(source.test.labels)
    assert outcome.tested is not None
    assert outcome.tested.num_correct == int((logits.argmax(1) == labels).sum())
    assert outcome.tested.loss_nats == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_the_first_step_is_that_of_an_independent_loop(tmp_path: Path) -> None:
    config = smoke("epochs=1", "batch_size=150", "label_smoothing=0.1", "clip_norm=0.5", "lr=0.3")
    source = load_whole(DIGITS, config)
    outcome = run(config, tmp_path, genotype=CIFAR_TUNED, source=source)

    network = build_full_network(CIFAR_TUNED, config.network(10, 1), derived_seed(0, "evaluate", "weights"))
    from common.streams import stream

    order = stream(0, "evaluate", 0, "order").permutation(150)
    changes = draw_changes(150, 1, config, stream(0, "evaluate", 0, 0, 0, "augmentation"))
    pixels = torch.from_numpy(source.train.gather(order).transpose(0, 3, 1, 2).copy())
    inputs = training_images(pixels, changes, config, Standardisation(*channel_statistics(source.train)))
    labels = torch.from_numpy(source.train.labels[order])
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    network.train()
    logits, auxiliary = network.training_logits(inputs)
    assert auxiliary is not None
    loss = criterion(logits, labels) + 0.4 * criterion(auxiliary, labels)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters()))
    with torch.no_grad():
        for parameter in network.parameters():
            gradient = parameter.grad * min(1.0, 0.5 / float(norm)) + 3e-4 * parameter
            parameter -= 0.3 * gradient
    assert outcome.state.history[0].train_loss_nats == pytest.approx(loss.item(), rel=1e-5)
    found = dict(outcome.network.named_parameters())
    for name, expected in network.named_parameters():
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-6), name


def test_the_average_is_a_running_one_whose_decay_grows(tmp_path: Path) -> None:
    config = smoke("epochs=1", "ema_decay=0.99", "checkpoint_every_steps=1")
    weights: list[torch.Tensor] = []
    from safetensors.torch import load_file

    def note(progress) -> None:
        path = tmp_path / f"state-{progress.steps_done:08d}.safetensors"
        if path.exists():
            weights.append(load_file(path)["network/classifier.weight"])

    outcome = run(config, tmp_path, on_progress=note)
    average = build_full_network(
        DARTS_V2, config.network(10, 1), derived_seed(0, "evaluate", "weights")
    ).classifier.weight
    for done, weight in enumerate(weights, 1):
        decay = min(0.99, (1 + done) / (10 + done))
        average = decay * average + (1 - decay) * weight
    assert len(weights) == 5
    assert torch.allclose(outcome.network.classifier.weight, average, rtol=1e-4, atol=1e-6)
    assert outcome.tested_without_average is not None


def test_seconds_are_a_budget_over_all_resumptions(tmp_path: Path) -> None:
    config = smoke("max_seconds=3.5")
    clock = iter(range(1000))  # a second passes at each look
    outcome = run(config, tmp_path, clock_s=lambda: float(next(clock)))
    assert outcome.ended_by == "max_seconds" and outcome.tested is not None
    assert 0 < outcome.state.steps_done < 5
    later = run(config, tmp_path, clock_s=lambda: float(next(clock)))
    assert later.ended_by == "max_seconds" and later.state.steps_done == outcome.state.steps_done
    whole = run(smoke(), tmp_path)
    assert whole.ended_by == "schedule" and whole.state.steps_done == 10


def test_epochs_are_a_budget(tmp_path: Path) -> None:
    outcome = run(smoke("max_epochs=1"), tmp_path / "short")
    assert outcome.ended_by == "max_epochs" and outcome.state.epoch == 1 and outcome.tested is not None
    assert digest(run(smoke("max_epochs=2"), tmp_path / "short")) == digest(run(smoke(), tmp_path / "whole"))


def test_bfloat16_learns_and_keeps_weights_in_float32(tmp_path: Path) -> None:
    outcome = run(smoke("precision=bfloat16"), tmp_path / "bfloat16")
    exact = run(smoke(), tmp_path / "float32").state.history[-1].train_loss_nats
    assert all(value.isfinite().all() for value in outcome.network.state_dict().values())
    assert {parameter.dtype for parameter in outcome.network.parameters()} == {torch.float32}
    found = outcome.state.history[-1].train_loss_nats
    assert found == pytest.approx(exact, rel=0.05) and found != exact


def test_a_training_that_diverges_says_so_and_stores_nothing(tmp_path: Path) -> None:
    with pytest.raises(AdaptationError, match="loss is (nan|inf) in epoch 1: the training diverged; lower lr"):
        run(smoke("lr=1000", "weight_decay=1e30", "clip_norm=1e38"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "genotype", "words"),
    [
        (smoke("lr=0.2"), DARTS_V2, r"lr = 0\.025, now it is 0\.2"),
        (smoke(), CIFAR_TUNED, "another genotype"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, config, genotype, words: str) -> None:
    run(smoke(), tmp_path, should_stop=after_steps(1))
    with pytest.raises(ConflictError, match=words):
        run(config, tmp_path, genotype=genotype)


def test_a_damaged_checkpoint_is_noticed(tmp_path: Path) -> None:
    run(smoke(), tmp_path, should_stop=after_steps(1))
    tensors = tmp_path / "state-00000001.safetensors"
    data = tensors.read_bytes()
    tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptArtifactError, match=r"state-00000001.*is not what checkpoint\.json says; remove"):
        run(smoke(), tmp_path)
    tensors.unlink()
    with pytest.raises(CorruptArtifactError, match="is missing"):
        run(smoke(), tmp_path)
    (tmp_path / CHECKPOINT).write_text("{}")
    with pytest.raises(CorruptArtifactError, match="is not a checkpoint"):
        run(smoke(), tmp_path)


def test_too_few_images_for_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="10 training images are too few for a batch in 8 parts"):
        run(smoke("train_per_class=1", "batch_parts=8"), tmp_path)


# Parts of a batch, and processes


class Pair:
    """One of two processes whose other one adds the same: what a sum of two equal tensors is."""

    rank = 0
    world_size = 2

    def sum_(self, tensor: torch.Tensor) -> None:
        tensor *= 2

    def any(self, flag: bool) -> bool:
        return flag


def test_processes_must_divide_the_parts(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="batch_parts 1 is no multiple of the 2 processes; set it to 2"):
        run(smoke(), tmp_path, group=Pair())


def test_without_batch_statistics_parts_have_the_gradient_of_the_whole_batch() -> None:
    """BatchNorm apart, which sees each part by itself, parts change nothing but rounding."""
    config = load_evaluate_config("smoke")
    network = build_full_network(DARTS_V2, config.network(10, 1), 0).eval()
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 10

    def gradient(parts: int) -> torch.Tensor:
        network.zero_grad()
        for part in np.array_split(np.arange(12), parts):
            (F.cross_entropy(network(images[part]), labels[part], reduction="sum") / 12).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    assert torch.allclose(gradient(1), gradient(3), rtol=1e-4, atol=1e-6)


TWO_PROCESSES = """
import sys, torch
from pathlib import Path
from common.config import DatasetRef
from common.evaluate_config import EvaluateConfig
from common.nn.stored import save_network
from common.space.released import DARTS_V2
from common.storage import ArtifactFolder
from workers.data.whole import load_whole
from workers.parallel import joined
from workers.training import train

torch.set_num_threads(1)
folder, config = Path(sys.argv[1]), EvaluateConfig.model_validate_json(sys.argv[2])
asked = iter(range(10_000))
with joined(torch.device("cpu")) as (group, device):
    assert group.world_size == 2
    source = load_whole(DatasetRef(source="digits"), config)
    checkpoints = ArtifactFolder(folder / "checkpoints")
    # Stopped by the second process alone, after seven steps, and resumed.
    stop = lambda: group.rank == 1 and next(asked) >= 7
    stopped = train(DARTS_V2, config, source, checkpoints, device, group, should_stop=stop)
    assert stopped.ended_by == "stop" and stopped.state.steps_done == 7
    outcome = train(DARTS_V2, config, source, checkpoints, device, group)
    save_network(folder / f"network-{group.rank}", outcome.network)
    (folder / f"state-{group.rank}.json").write_text(outcome.state.model_dump_json())
    (folder / f"correct-{group.rank}").write_text(str(outcome.tested.num_correct))
"""


def test_two_processes_train_as_one_does_with_two_parts(tmp_path: Path) -> None:
    """Two processes by gloo against one that computes the same two parts one after the other.

    The whole batch at once would be another training: BatchNorm takes the statistics of what a process sees.
    """
    from common.nn.stored import load_network
    from workers.checkpoint import TrainingState

    config = smoke("batch_parts=2", "drop_path=0.3", "ema_decay=0.9")
    expected = run(config, tmp_path / "one")
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, str(tmp_path), config.model_dump_json()],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    states = [TrainingState.model_validate_json((tmp_path / f"state-{rank}.json").read_text()) for rank in (0, 1)]
    assert states[0].history == states[1].history
    for found, record in zip(states[0].history, expected.state.history, strict=True):
        assert found.train_loss_nats == pytest.approx(record.train_loss_nats, rel=1e-4)
        assert found.loss_nats == pytest.approx(record.loss_nats, rel=1e-3)
    first, second = (load_network(tmp_path / f"network-{rank}").state_dict() for rank in (0, 1))
    wanted = expected.network.state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if name.endswith("num_batches_tracked"):  # of each process; nothing reads it
            continue
        assert torch.allclose(value.float(), wanted[name].float(), rtol=1e-3, atol=1e-4), name


# Intervals


def test_wilsons_interval_agrees_with_worked_values() -> None:
    # 10 of 10: p = 1, so the lower limit is n / (n + z^2) = 10 / 13.8415.
    assert wilson_interval(10, 10) == (pytest.approx(0.72247, abs=1e-5), 1.0)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    # 50 of 100: 0.5 -/+ z / (2 sqrt(n + z^2)) = 1.95996 / (2 * 10.1903).
    low, high = wilson_interval(50, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert Score(50, 100, 1.0).accuracy == 0.5 and Score(50, 100, 1.0).interval() == (low, high)
