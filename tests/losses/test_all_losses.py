"""What every loss does: one tester, run over all of them."""

import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torchmetrics import MetricCollection

from beyondpixel.losses import LOSSES, SegmentationLoss, build_loss
from beyondpixel.losses.functional import affinity_field, binary_cross_entropy

Batch = Callable[..., tuple[Tensor, Tensor]]

# small maps ask for small strides; the port's void pixels have gradients by design, so the original's way is tested
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ce": ("ce", {}),
    "bce": ("bce", {}),
    "rmi": ("rmi", {"downsampling_factor": 2}),
    "rmi-plain": ("rmi", {"downsampling_factor": 2, "backend": "plain"}),
    "rmi-ce-max": ("rmi", {"downsampling_factor": 3, "pixel_loss": "ce", "pooling": "max"}),
    "rmi-alone": ("rmi", {"downsampling_factor": (2, 3), "pixel_loss": None, "covariance": "mean", "ridge": 1e-6}),
    "affinity": ("affinity", {"stride": 2, "exclude_void": True}),
    "adaptive_affinity": ("adaptive_affinity", {"stride": 2}),
    "pyramid": ("pyramid", {}),
    "cwmi": ("cwmi", {"levels": 2}),
    "cwmi-real-alone": ("cwmi", {"levels": 2, "complex": False, "pixel_loss": None}),
    "dice": ("dice", {}),
    "jaccard": ("jaccard", {}),
    "tversky": ("tversky", {}),
    "lovasz": ("lovasz", {}),
    "focal": ("focal", {}),
}
# no sums over pixels: `compute()` is a mean over batches, which their own tests check
OVERLAP = ("dice", "jaccard", "tversky", "lovasz")


@pytest.fixture(params=VARIANTS)
def make(request: pytest.FixtureRequest) -> Callable[..., SegmentationLoss]:
    name, arguments = VARIANTS[request.param]
    return partial(build_loss, name, num_classes=3, **arguments)


def test_every_loss_is_here() -> None:
    assert {name for name, _ in VARIANTS.values()} == set(LOSSES)


@pytest.mark.parametrize("exclude_void", [False, True])
@pytest.mark.parametrize("name", ["ce", "bce", "pyramid", "affinity", "adaptive_affinity"])
def test_value_is_the_float64_loops(batch: Batch, loop_losses: ModuleType, name: str, exclude_void: bool) -> None:
    logits, labels = batch(dtype=torch.float64)
    x, y = logits.numpy(), labels.numpy()
    arguments: dict[str, Any] = {}
    if name == "ce":
        expected = loop_losses.loop_cross_entropy(x, y)
    elif name == "bce":
        expected = loop_losses.loop_binary_cross_entropy(x, y)
    elif name == "pyramid":
        expected = loop_losses.loop_pyramid(x, y)
    elif name == "affinity":
        arguments = {"stride": 3, "distance": 2, "exclude_void": exclude_void}
        expected = loop_losses.loop_cross_entropy(x, y) + 20**-0.5 * loop_losses.loop_affinity(x, y, **arguments)
    else:
        arguments = {"stride": 3}
    loss = build_loss(name, num_classes=3, **arguments)
    loss.progress = 0.5
    if name == "adaptive_affinity":
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        edge, same = (parameter.detach().double().softmax(1).numpy() for parameter in loss.parameters())
        affinity = [
            loop_losses.loop_affinity(
                x, y, stride=3, distance=number + 1, exclude_void=True, weights=(edge[:, number], same[:, number])
            )
            for number in range(3)
        ]
        expected = loop_losses.loop_cross_entropy(x, y) + 10**-0.5 * sum(affinity)
    rel = 1e-6 if name == "adaptive_affinity" else 1e-10  # its weights are float32
    assert loss(logits, labels).item() == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("exclude_void", [False, True])
def test_functions_have_the_published_defaults(batch: Batch, loop_losses: ModuleType, exclude_void: bool) -> None:
    logits, labels = batch(height=40, width=50, dtype=torch.float64)
    x, y = logits.numpy(), labels.numpy()
    expected = loop_losses.loop_affinity(x, y, stride=8, distance=1, exclude_void=exclude_void)
    assert affinity_field(logits, labels, exclude_void=exclude_void).item() == pytest.approx(expected, rel=1e-10)
    assert affinity_field(logits, labels) == affinity_field(logits, labels, exclude_void=False)
    valid = int((labels != 255).sum())
    class_sum = loop_losses.loop_binary_cross_entropy(x, y)
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(class_sum, rel=1e-10)
    mean = class_sum * (valid + 1) / (3 * valid)
    assert binary_cross_entropy(logits, labels, reduction="mean").item() == pytest.approx(mean, rel=1e-10)


def test_learned_weights_of_affinity_ascend(batch: Batch) -> None:
    logits, labels = batch(height=40, width=50, dtype=torch.float64)
    loss = build_loss("adaptive_affinity", num_classes=3, stride=2)
    before = loss(logits, labels)
    before.backward()
    with torch.no_grad():
        for parameter in loss.parameters():
            assert parameter.grad.abs().max() > 0
            parameter.sub_(parameter.grad)  # what an optimizer of the network does
    assert loss(logits, labels) > before


def test_gradient_is_that_of_the_value(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch(1, 3, 12, 10, dtype=torch.float64, void=False)
    loss = make()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits.requires_grad_(),), fast_mode=True)


def test_second_derivative_is_that_of_the_gradient(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch(1, 3, 12, 10, dtype=torch.float64, void=False)
    loss = make()
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), (logits.requires_grad_(),), fast_mode=True)


def test_transforms_of_torch_func_give_the_same_gradient(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch(4, 3, 24, 26)
    loss = make()
    gradients = []
    for x, y in zip(logits.split(2), labels.split(2), strict=True):
        leaf = x.clone().requires_grad_()
        loss(leaf, y).backward()
        gradients.append(leaf.grad)
        torch.testing.assert_close(torch.func.grad(loss)(x, y), leaf.grad, rtol=1e-5, atol=1e-7)
        loss.reset()
    pairs = logits.unflatten(0, (2, 2)), labels.unflatten(0, (2, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # vmap loops over the operators
        mapped = torch.func.vmap(torch.func.grad(loss))(*pairs)
    torch.testing.assert_close(mapped, torch.stack(gradients), rtol=1e-5, atol=1e-7)


def test_void_pixels_have_exactly_no_gradient_and_no_effect_on_the_count(
    make: Callable[..., SegmentationLoss], batch: Batch
) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    make()(logits, labels).backward()
    void = (labels == 255)[:, None].expand_as(logits)
    assert not logits.grad[void].any()
    assert logits.grad[~void].any()


def test_another_void_label_gives_the_same(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch()
    renamed = torch.where(labels == 255, -100, labels)
    expected = make()(logits, labels)
    torch.testing.assert_close(make(ignore_index=-100)(logits, renamed), expected)
    torch.testing.assert_close(make()(logits, labels.to(torch.uint8)), expected)


def test_all_void_is_a_zero_with_a_graph(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    value = make()(logits, torch.full_like(labels, 255))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


def test_multi_hot_is_the_same_as_labels(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch(void=False)
    multi_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    loss = make()
    if type(loss) is LOSSES["adaptive_affinity"]:
        with pytest.raises(ValueError, match="expects integer labels .* got a multi-hot target"):
            loss(logits, multi_hot)
    else:
        torch.testing.assert_close(loss(logits, multi_hot), loss(logits, labels))
        torch.testing.assert_close(loss(logits, multi_hot.bool()), loss(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_computed_in_full(
    make: Callable[..., SegmentationLoss], batch: Batch, dtype: torch.dtype
) -> None:
    logits, labels = batch(dtype=dtype)
    full = logits.float().requires_grad_()
    logits.requires_grad_()
    value, expected = make()(logits, labels), make()(full, labels)
    value.backward()
    expected.backward()
    assert value.dtype == torch.float32
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(logits.grad, full.grad.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_changes_nothing(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch()
    inside, outside = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = make()(inside, labels)
        value.backward()
    expected = make()(outside, labels)
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(inside.grad, outside.grad)


def test_memory_layout_changes_nothing(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch()
    expected = make()(logits, labels)
    padded = torch.zeros(2, 3, 40, 50)
    padded[:, :, ::2, ::2][:, :, :20, :23] = logits
    for other in (logits.to(memory_format=torch.channels_last), padded[:, :, ::2, ::2][:, :, :20, :23]):
        leaf = other.detach().requires_grad_()
        value = make()(leaf, labels)
        value.backward()
        torch.testing.assert_close(value, expected)
        assert leaf.grad.isfinite().all()
    repeated = make()(logits[:1].expand(3, -1, -1, -1), labels[:1].expand(3, -1, -1))
    torch.testing.assert_close(repeated, make()(logits[:1].repeat(3, 1, 1, 1), labels[:1].repeat(3, 1, 1)))


def test_empty_batch_is_a_zero_with_a_graph(make: Callable[..., SegmentationLoss]) -> None:
    logits = torch.zeros(0, 3, 16, 16, requires_grad=True)
    value = make()(logits, torch.zeros(0, 16, 16, dtype=torch.long))
    value.backward()
    assert value.item() == 0


def test_nan_is_not_hidden(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch(void=False)
    logits[0, 1, 8, 8] = torch.nan
    assert make()(logits, labels).isnan()


def test_wrong_labels_and_shapes_are_named(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch()
    wrong = labels.clone()
    wrong[0, 3, 3] = 7
    with pytest.raises(ValueError, match=r"labels in 0 … 2 or ignore_index 255, got the label 7"):
        make()(logits, wrong)
    with pytest.raises(ValueError, match=r"labels in 0 … 2 .*got the label -1"):
        make()(logits, torch.where(wrong == 7, -1, labels))
    with pytest.raises(ValueError, match=r"fit preds \(2, 3, 20, 23\), got \(2, 20, 22\)"):
        make()(logits, labels[:, :, :-1])
    with pytest.raises(ValueError, match=r"expected the shape \(N, 3, H, W\), got \(2, 2, 20, 23\)"):
        make()(logits[:, :2], labels)
    with pytest.raises(ValueError, match="multi-hot target of 0 and 1.* got the value 2"):
        make()(logits, torch.full_like(logits, 2.0))
    with pytest.raises(TypeError, match=r"integer labels .* got torch.float32"):
        make()(logits, labels.float())
    with pytest.raises(TypeError, match=r"target: expected a tensor, got ndarray; use torch.as_tensor\(target\)"):
        make()(logits, labels.numpy())
    with pytest.raises(TypeError, match="preds: expected a tensor, got list"):
        make()(logits.tolist(), labels)
    with pytest.raises(TypeError, match="preds: expected floating-point logits .* got torch.float8_e4m3fn"):
        make()(logits.to(torch.float8_e4m3fn), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_labels_of_any_integer_type_are_read_and_left_alone(
    make: Callable[..., SegmentationLoss], batch: Batch, dtype: torch.dtype
) -> None:
    logits, labels = batch()
    given = labels.to(dtype)
    assert torch.equal(make()(logits, given), make()(logits, labels))
    assert torch.equal(given.long(), labels)


def test_narrow_labels_are_not_void_by_their_range(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch(void=False)
    for dtype, label, ignore_index in ((torch.uint8, 156, -100), (torch.int8, -1, 255)):
        wrong = labels.to(dtype)
        wrong[0, 0, 0] = label
        loss = make()
        loss.ignore_index = ignore_index
        with pytest.raises(ValueError, match=f"got the label {label}"):
            loss(logits, wrong)


@pytest.mark.parametrize("label", [2**16, 2**16 + 255, -(2**16), 2**15, 2**40 + 1, -(2**63)])
def test_labels_that_int16_cannot_hold_are_not_taken_for_others(
    make: Callable[..., SegmentationLoss], batch: Batch, label: int
) -> None:
    logits, labels = batch()
    labels[0, 0, 0] = label
    with pytest.raises(ValueError, match=f"got the label {label:.0f}" if abs(label) < 2**53 else "got the label"):
        make()(logits, labels)
    loss = make()
    loss.ignore_index = label
    expected = make()
    labels[labels == 255] = label
    assert torch.equal(loss(logits, labels), expected(logits, torch.where(labels == label, 255, labels)))


def test_compute_is_the_loss_of_all_batches_together(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch(4)
    labels[0] = 255
    loss, whole = make(), make()
    if any(isinstance(loss, LOSSES[name]) for name in OVERLAP):
        pytest.skip("a mean over batches")
    loss(logits[:1], labels[:1])
    loss.update(logits[1:3], labels[1:3])
    loss(logits[3:], labels[3:])
    torch.testing.assert_close(loss.compute(), whole(logits, labels).detach())
    assert loss.update_count == 3
    loss.reset()
    loss(logits, labels)
    torch.testing.assert_close(loss.compute(), whole.compute())


def test_terms_are_detached_and_named(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch()
    loss = make()
    value = loss(logits.requires_grad_(), labels)
    assert value.requires_grad
    assert loss.terms
    assert set(loss.terms) <= {"pixel", "rmi", "affinity", "cwmi", "focal", *OVERLAP}
    assert not any(term.requires_grad for term in loss.terms.values())


def test_no_graph_outlives_its_step(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch()
    loss = make()
    loss(logits, labels)
    gc.freeze()  # what there is already need not be looked through
    tensors = []
    for step in range(20):
        leaf = logits.clone().requires_grad_()
        loss(leaf, labels)  # without a backward, which would free the graph
        kept = weakref.ref(leaf)
        del leaf
        assert kept() is None
        if step in (5, 19):
            gc.collect()
            tensors.append(sum(isinstance(thing, Tensor) for thing in gc.get_objects()))
    gc.unfreeze()
    assert tensors[0] == tensors[1]


def test_pickles_and_copies(make: Callable[..., SegmentationLoss], batch: Batch) -> None:
    logits, labels = batch()
    loss = make()
    loss(logits, labels)
    for duplicate in (lambda: pickle.loads(pickle.dumps(loss)), loss.clone):
        copy = duplicate()
        assert torch.equal(copy.compute(), loss.compute())
        torch.testing.assert_close(copy(logits, labels), loss(logits, labels))


def test_affinity_sizes_and_numbers_of_classes_that_make_no_sense_are_named(batch: Batch) -> None:
    for sizes in ((), (1,), (4,), (3, 3)):
        with pytest.raises(ValueError, match="sizes: expected different odd numbers, 3 or more"):
            build_loss("adaptive_affinity", num_classes=2, sizes=sizes)
    with pytest.raises(ValueError, match="preds: expected at most 32767 classes, got 32768"):
        build_loss("bce", num_classes=32768)(torch.zeros(1, 32768, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))


@pytest.mark.parametrize("name", ["ce", "affinity", "adaptive_affinity", "pyramid"])
def test_a_softmax_over_one_class_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"num_classes: expected at least 2 for a softmax, .*, got 1; use Binary"):
        build_loss(name, num_classes=1)


@pytest.mark.parametrize("name", ["bce", "rmi", "cwmi", "dice", "jaccard", "tversky", "lovasz", "focal"])
def test_a_loss_of_one_class_has_a_gradient(name: str) -> None:
    logits = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    build_loss(name, num_classes=1)(logits, (logits > 0.5).long()).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() > 1e-6


@pytest.mark.parametrize("name", ["ce", "bce", "focal", "dice", "jaccard", "tversky", "lovasz"])
def test_infinite_logits_that_are_right_cost_what_large_ones_do(name: str) -> None:
    values = []
    for size in (1e4, torch.inf):
        logits = torch.tensor([[[[0.0, 1.0]], [[-size, -size]]]], requires_grad=True)
        values.append(build_loss(name, num_classes=2)(logits, torch.zeros(1, 1, 2, dtype=torch.long)))
        values[-1].backward()
        assert logits.grad.isfinite().all()
    assert values[0] == values[1]


def test_progress_keeps_its_digits_in_a_module_of_half_precision() -> None:
    loss = torch.nn.ModuleList([build_loss("affinity", num_classes=2)]).bfloat16()[0]
    loss.progress = 0.999
    assert loss.progress == 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_learned_weights_of_half_precision_are_computed_in_full(batch: Batch, dtype: torch.dtype) -> None:
    """A precision of `bf16-true` converts the parameters; those of zero, all weights a third, lose nothing by it."""
    logits, labels = batch(height=40, width=50)
    loss = build_loss("adaptive_affinity", num_classes=3, stride=2)
    expected = loss(logits, labels)
    torch.testing.assert_close(loss.to(dtype)(logits, labels), expected, rtol=1e-6, atol=0)


def test_multi_hot_of_a_class_that_is_ruled_out_is_the_same_as_labels() -> None:
    logits = torch.tensor([0.0, -torch.inf]).view(1, 2, 1, 1)
    multi_hot = torch.tensor([1, 0]).view(1, 2, 1, 1)
    loss = build_loss("ce", num_classes=2)
    assert loss(logits, multi_hot) == loss(logits, torch.zeros(1, 1, 1, dtype=torch.long)) == 0


def test_cross_entropy_of_probabilities_is_minus_their_log() -> None:
    probs = torch.tensor([[0.25, 1e-6], [0.75, 1 - 1e-6]]).reshape(1, 2, 1, 2)
    loss = build_loss("ce", num_classes=2, with_logits=False)
    assert loss(probs, torch.tensor([[[1, 0]]])).item() == pytest.approx(-(np.log(0.75) + np.log(1e-6)) / 2, rel=1e-6)


def test_works_in_a_metric_collection(batch: Batch) -> None:
    logits, labels = batch()
    made = {key: build_loss(name, num_classes=3, **arguments) for key, (name, arguments) in VARIANTS.items()}
    collection = MetricCollection({key: loss.clone() for key, loss in made.items()})
    values = collection(logits.requires_grad_(), labels)
    for _ in range(2):
        collection.update(logits, labels)
    computed = collection.compute()
    for key, loss in made.items():
        torch.testing.assert_close(values[key], loss(logits, labels))
        for _ in range(2):
            loss.update(logits, labels)
        torch.testing.assert_close(computed[key], loss.compute())
    sum(values.values()).backward()


def test_variants_of_one_loss_stay_apart_in_a_metric_collection(batch: Batch) -> None:
    logits, labels = batch()
    few = labels.where(labels == 255, labels % 2)  # a class is absent
    made = {absent: build_loss("rmi", num_classes=3, absent_classes=absent) for absent in ("include", "skip")}
    collection = MetricCollection({key: loss.clone() for key, loss in made.items()})
    for target in (labels, few):
        collection.update(logits, target)
        for loss in made.values():
            loss.update(logits, target)
    computed = collection.compute()
    assert made["include"].compute() < made["skip"].compute()
    for key, loss in made.items():
        torch.testing.assert_close(computed[key], loss.compute())


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    saved = torch.load(f"{folder}/batch.pt")
    part = slice(0, 1) if rank == 0 else slice(1, 4)
    for key, (name, arguments) in VARIANTS.items():
        if name in OVERLAP:
            continue
        loss = build_loss(name, num_classes=3, **arguments)
        batch_value = loss(saved["logits"][part], saved["labels"][part])
        whole = build_loss(name, num_classes=3, **arguments)
        expected = whole(saved["logits"], saved["labels"])
        torch.testing.assert_close(loss.compute(), expected, msg=key)
        # the batch's own value is not reduced, and the state goes on from this rank's part
        assert batch_value != expected
        loss(saved["logits"][part], saved["labels"][part])
        twice = whole(saved["logits"].repeat(2, 1, 1, 1), saved["labels"].repeat(2, 1, 1))
        torch.testing.assert_close(loss.compute(), twice, msg=key)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_does(batch: Batch, tmp_path: Path) -> None:
    logits, labels = batch(4)
    labels[0, :15] = 255  # unequal numbers of valid pixels
    labels[3] = 255
    torch.save({"logits": logits, "labels": labels}, tmp_path / "batch.pt")
    spawn(_one_of_two, (str(tmp_path),), nprocs=2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_lightning_logs_it(batch: Batch, tmp_path: Path, precision: Any) -> None:
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 1)
            self.loss = build_loss("rmi", num_classes=3, downsampling_factor=2)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss = self.loss(self.layer(batch[0]), batch[1])
            self.log("loss", self.loss, on_step=True, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.0)

    logits, labels = batch(4)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        precision=precision,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(list(zip(logits, labels, strict=True)), batch_size=3))
    expected = build_loss("rmi", num_classes=3, downsampling_factor=2)(module.layer(logits), labels)
    tolerance = 1e-5 if precision == "32-true" else 1e-2
    assert trainer.callback_metrics["loss_epoch"].item() == pytest.approx(expected.item(), rel=tolerance)
    assert np.isfinite(trainer.callback_metrics["loss_step"].item())
