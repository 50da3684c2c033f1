"""Weighted sums of losses, and losses by name."""

import pickle
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from beyondpixel.losses import LOSSES, CombinedLoss, CrossEntropyLoss, LovaszLoss, build_loss, loss_class

Batch = Callable[..., tuple[Tensor, Tensor]]
SPEC: list[Any] = [
    "ce",
    {"name": "rmi", "weight": 0.5, "downsampling_factor": 2},
    {"name": "cwmi", "weight": 0.1, "levels": 2, "pixel_loss": None},
    {"name": "affinity", "weight": 2, "stride": 2, "exclude_void": True},
    {"name": "lovasz", "weight": 0},
]


def parts() -> dict[str, tuple[float, Any]]:
    entries = [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in SPEC]
    return {
        entry["name"]: (entry.pop("weight", 1), build_loss(entry.pop("name"), num_classes=3, **entry))
        for entry in [dict(entry) for entry in entries]
    }


def test_value_and_gradient_are_the_weighted_sum(batch: Batch) -> None:
    logits, labels = batch()
    loss = build_loss(SPEC, num_classes=3)
    together, apart = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = loss(together, labels)
    expected = torch.stack([weight * part(apart, labels) for weight, part in parts().values()]).sum()
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(together.grad, apart.grad)
    assert not together.grad[(labels == 255)[:, None].expand_as(logits)].any()


def test_terms_are_named_after_their_loss_and_not_weighted(batch: Batch) -> None:
    logits, labels = batch()
    loss = build_loss(SPEC, num_classes=3)
    loss(logits, labels)
    assert list(loss.terms) == ["ce", "rmi_pixel", "rmi_rmi", "cwmi", "affinity_pixel", "affinity_affinity", "lovasz"]
    separate = parts()
    for _, part in separate.values():
        part(logits, labels)
    torch.testing.assert_close(loss.terms["cwmi"], separate["cwmi"][1].terms["cwmi"])
    torch.testing.assert_close(loss.terms["affinity_affinity"], separate["affinity"][1].terms["affinity"])
    torch.testing.assert_close(loss.terms["lovasz"], separate["lovasz"][1].terms["lovasz"])


def test_compute_and_reset_are_those_of_the_losses(batch: Batch) -> None:
    logits, labels = batch(4)
    loss, separate = build_loss(SPEC, num_classes=3), parts()
    for part_of_batch in (slice(0, 1), slice(1, 4)):
        loss(logits[part_of_batch], labels[part_of_batch])
        for _, part in separate.values():
            part(logits[part_of_batch], labels[part_of_batch])
    expected = torch.stack([weight * part.compute() for weight, part in separate.values()]).sum()
    torch.testing.assert_close(loss.compute(), expected)
    loss.reset()
    assert loss.update_count == 0
    value = loss(logits, labels)
    copy = pickle.loads(pickle.dumps(loss))
    torch.testing.assert_close(copy.clone()(logits, labels), value)


def test_counts_of_jittered_matrices_are_kept_and_reset(batch: Batch) -> None:
    logits, labels = batch()
    labels[labels == 2] = 255
    loss = build_loss([{"name": "cwmi", "levels": 2}], num_classes=3)
    loss(logits, labels)
    assert loss.losses["cwmi"].jittered > 0
    loss.reset()
    assert loss.losses["cwmi"].jittered == 0


def test_progress_reaches_the_losses(batch: Batch) -> None:
    logits, labels = batch()
    loss = build_loss(["affinity"], num_classes=3)
    begin = loss(logits, labels)
    loss.progress = 1.0
    assert loss.progress == 1.0
    assert loss(logits, labels) < begin
    several = build_loss(["ce", "affinity", "adaptive_affinity"], num_classes=3)
    several.progress = 0.25
    assert [part.progress for part in several.losses.values()] == [0.25] * 3


def test_compute_has_the_progress_of_its_own_call(batch: Batch) -> None:
    """torchmetrics returns the value of the call before, unless it is told that it is out of date."""
    logits, labels = batch()
    one, several = build_loss("affinity", num_classes=3), build_loss(["affinity", "lovasz"], num_classes=3)
    for loss in (one, several):
        loss(logits, labels)
    for progress in (0.0, 0.5, 1.0):
        one.progress = several.progress = progress
        expected = one.terms["pixel"] + 20**-progress * one.terms["affinity"]
        torch.testing.assert_close(one.compute(), expected)
        torch.testing.assert_close(several.compute(), expected + several.terms["lovasz"])


def test_state_is_saved_with_that_of_the_losses(batch: Batch) -> None:
    saved, restored = build_loss(SPEC, num_classes=3), build_loss(SPEC, num_classes=3)
    for loss in (saved, restored):
        loss.persistent(True)
    saved(*batch())
    restored.load_state_dict(saved.state_dict())
    assert restored.update_count == 1
    torch.testing.assert_close(restored.compute(), saved.compute(), rtol=0, atol=0)
    saved.persistent(False)
    assert not saved.state_dict()


def test_batches_may_be_added_without_a_value(batch: Batch) -> None:
    logits, labels = batch(4)
    called, added = build_loss(SPEC, num_classes=3), build_loss(SPEC, num_classes=3)
    for part in (slice(0, 1), slice(1, 4)):
        called(logits[part], labels[part])
        added.update(logits[part], labels[part])
    torch.testing.assert_close(added.compute(), called.compute())
    assert added.update_count == called.update_count == 2


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    saved = torch.load(f"{folder}/batch.pt")
    part = slice(0, 1) if rank == 0 else slice(1, 4)
    loss, whole = build_loss(SPEC, num_classes=3), build_loss(SPEC, num_classes=3)
    loss(saved["logits"][part], saved["labels"][part])
    # what Lovász adds, which has the weight 0 here, is a mean over batches
    with whole.sync_context(should_sync=False):
        expected = whole(saved["logits"], saved["labels"])
    torch.testing.assert_close(loss.compute(), expected)
    for name in ("dice", "lovasz"):
        overlap = build_loss(name, num_classes=3)
        values = [
            build_loss(name, num_classes=3)(saved["logits"][s], saved["labels"][s]) for s in (slice(0, 1), slice(1, 4))
        ]
        overlap(saved["logits"][part], saved["labels"][part])
        # the last image is void
        torch.testing.assert_close(overlap.compute(), (values[0] + 2 * values[1]) / 3)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_does(batch: Batch, tmp_path: Path) -> None:
    logits, labels = batch(4)
    labels[0, :15] = 255  # unequal numbers of valid pixels
    labels[3] = 255
    torch.save({"logits": logits, "labels": labels}, tmp_path / "batch.pt")
    spawn(_one_of_two, (str(tmp_path),), nprocs=2)


def test_wrong_weights_and_losses_that_do_not_fit_are_named() -> None:
    for weight in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weights: expected a number that is not negative, got .* for 'ce'"):
            build_loss([{"name": "ce", "weight": weight}], num_classes=2)
    with pytest.raises(ValueError, match="weights: no loss named dice; expected ce"):
        CombinedLoss({"ce": CrossEntropyLoss(2)}, weights={"dice": 1.0})
    with pytest.raises(ValueError, match="losses: expected the same num_classes in all, got 2, but 3 in 'lovasz'"):
        CombinedLoss({"ce": CrossEntropyLoss(2), "lovasz": LovaszLoss(3)})
    with pytest.raises(ValueError, match="losses: expected the same with_logits in all, got True, but False in 'lov"):
        CombinedLoss({"ce": CrossEntropyLoss(2), "lovasz": LovaszLoss(2, with_logits=False)})
    with pytest.raises(ValueError, match="losses: expected at least one"):
        build_loss([], num_classes=2)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        # as YAML 1.1 reads numbers without a point
        ({"name": "rmi", "ridge": "5e-4"}, "ridge: expected a positive number, got '5e-4' .*5.0e-4 as a number"),
        ({"name": "rmi", "pixel_weight": "1e-1"}, "pixel_weight: expected a number from 0 to 1, got '1e-1' .*5.0e-4"),
        ({"name": "ce", "weight": "1e-1"}, "weights: expected a number that is not negative, got '1e-1' for 'ce'"),
        ({"name": "ce", "weight": None}, "weights: expected a number that is not negative, got None for 'ce'"),
        ({"name": "focal", "gamma": "2"}, "gamma: expected a number at least 1, got '2'$"),
        ({"name": "focal", "alpha": [0.1, 0.9]}, r"alpha: expected a number from 0 to 1, got \[0.1, 0.9\]"),
        ({"name": "dice", "smooth": float("inf")}, "smooth: expected a number at least 0, got inf"),
        ({"name": "affinity", "margin": float("inf")}, "margin: expected a number at least 0, got inf"),
        ({"name": "pyramid", "scales": "0.5"}, "scales: expected numbers above 0 and up to 1, got"),
        ({"name": "adaptive_affinity", "sizes": 4}, r"sizes: expected different odd numbers, 3 or more, got \(4,\)"),
        (None, "loss: expected a name, or a mapping with 'name', got None"),
    ],
)
def test_values_of_the_wrong_type_are_named(entry: dict[str, Any] | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build_loss([entry], num_classes=2)  # type: ignore[list-item]


def test_one_scale_or_size_needs_no_list(batch: Batch) -> None:
    for name, key, one in (("pyramid", "scales", 0.5), ("adaptive_affinity", "sizes", 3)):
        alone, listed = (build_loss(name, num_classes=3, **{key: value}) for value in (one, (one,)))
        assert torch.equal(alone(*batch()), listed(*batch()))


def test_wrong_names_and_arguments_are_named_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"expected one of 'ce', 'bce', .*got 'rmii'; did you mean 'rmi'\?"):
        build_loss("rmii", num_classes=2)
    text = r"loss 'cwmi': unknown argument level; expected levels, orientations, .*; did you mean 'levels'\?"
    for spec, arguments in (("cwmi", {"level": 3}), ([{"name": "cwmi", "level": 3}], {})):
        with pytest.raises(ValueError, match=text):
            build_loss(spec, num_classes=2, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a mapping with 'name', got {'weight': 1}"):
        build_loss([{"weight": 1}], num_classes=2)
    with pytest.raises(ValueError, match="'ce' occurs twice in the list"):
        build_loss(["ce", "ce"], num_classes=2)
    with pytest.raises(ValueError, match="levels must be in the mapping with the 'name' of a loss"):
        build_loss(["ce", "cwmi"], num_classes=2, levels=3)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_needs_no_more_than_the_number_of_classes_and_says_its_types(name: str) -> None:
    loss = loss_class(name)(num_classes=3)
    value = loss(torch.randn(1, 3, 48, 40, requires_grad=True), torch.randint(3, (1, 48, 40)))
    assert value.requires_grad
    hints = typing.get_type_hints(loss_class(name).__init__)
    assert {"num_classes", "ignore_index", "return"} <= set(hints)
