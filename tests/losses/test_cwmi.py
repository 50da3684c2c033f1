"""CWMI: the published code's arrays, float64 loops, and inputs on which the published code stops."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from beyondpixel.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, CWMILoss
from beyondpixel.losses.functional import cwmi_log_det

Batch = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize("number", range(5))
def test_value_and_gradient_are_the_published_codes(shared: Path, number: int) -> None:
    arrays = np.load(shared / "reference" / "cwmi.npz")
    case = json.loads(bytes(arrays["meta"]))[number]
    get = {key.split("_", 1)[1]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith(case["id"] + "_")}
    options = {"levels": case["levels"], "orientations": case["orientations"], "complex": case["complex"]}
    probs = get["probs"].requires_grad_()
    log_det = cwmi_log_det(probs, get["labels"], **options, ridge=case["alpha"])
    loss = CWMILoss(case["shape"][1], **options, ridge=case["alpha"], pixel_loss=None, with_logits=False)
    value = loss(probs, get["labels"])
    value.backward()
    # recorded in float32, whose Cholesky factors have so many digits; in the others, only the filters are float32
    double = case["dtype"] == "float64"
    torch.testing.assert_close(log_det, get["logdet"].double(), rtol=1e-6 if double else 1e-5, atol=0)
    torch.testing.assert_close(value.double(), get["loss"].double(), rtol=1e-7 if double else 1e-6, atol=0)
    assert (probs.grad - get["grad"]).norm() <= (1e-6 if double else 5e-5) * get["grad"].norm()
    assert loss.jittered == 0


@pytest.mark.parametrize("complex", [True, False])
@pytest.mark.parametrize(("levels", "orientations", "size"), [(1, 2, (8, 10)), (2, 3, (12, 20)), (2, 4, (11, 14))])
def test_log_det_is_the_loops(
    loop_cwmi: ModuleType, complex: bool, levels: int, orientations: int, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (2, *size), generator=generator)
    labels[:, 1:4, 2:5] = 255
    probs = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    ours = cwmi_log_det(probs, labels, levels=levels, orientations=orientations, complex=complex)
    assert ours.shape == (levels, 2, 3)
    step = 2**levels
    for image in range(2):
        for number in range(3):
            maps = np.zeros((2, -(-size[0] // step) * step, -(-size[1] // step) * step))
            maps[0, : size[0], : size[1]] = labels[image] == number
            maps[1, : size[0], : size[1]] = probs[image, number] * (labels[image] != 255)
            expected = loop_cwmi.loop_log_det(*maps, levels=levels, orientations=orientations, one_sided=complex)
            np.testing.assert_allclose(ours[:, image, number].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("complex", [True, False])
def test_gradient_is_that_of_the_value(complex: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(1, 2, 10, 13, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(2, (1, 10, 13), generator=generator)
    labels[:, :3] = 255
    assert torch.autograd.gradcheck(
        lambda p: cwmi_log_det(p, labels, levels=2, orientations=3, complex=complex),
        (probs,),
        atol=1e-6,
        fast_mode=True,
    )


def test_void_pixels_have_no_effect_and_exactly_no_gradient(batch: Batch) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    loss = CWMILoss(3, levels=2, pixel_loss=None)
    value = loss(logits, labels)
    value.backward()
    void = (labels == 255)[:, None].expand_as(logits)
    assert not logits.grad[void].any()
    changed = torch.where(void, 7.0, logits.detach())
    assert torch.equal(loss(changed, labels), value)


def test_a_padded_map_is_one_with_void_pixels_there(batch: Batch) -> None:
    logits, labels = batch(height=21, width=30)
    larger = torch.randn(2, 3, 24, 32)
    larger[:, :, :21, :30] = logits
    with_void = torch.full((2, 24, 32), 255)
    with_void[:, :21, :30] = labels
    loss = CWMILoss(3, levels=3, pixel_loss="ce")
    torch.testing.assert_close(loss(larger, with_void), loss(logits, labels))


def test_terms_add_up(batch: Batch) -> None:
    logits, labels = batch()
    cwmi = cwmi_log_det(logits.sigmoid(), labels, levels=2).mean((1, 2)).sum()
    for name, pixel in {
        "bce": BinaryCrossEntropyLoss(3),
        "bce_mean": BinaryCrossEntropyLoss(3, reduction="mean"),
        "ce": CrossEntropyLoss(3),
    }.items():
        loss = CWMILoss(3, levels=2, pixel_loss=name, pixel_weight=0.25)  # type: ignore[arg-type]
        torch.testing.assert_close(loss(logits, labels), (0.25 * pixel(logits, labels) + cwmi).float())
        torch.testing.assert_close(loss.terms["cwmi"], cwmi.float())
        torch.testing.assert_close(loss.terms["pixel"], pixel(logits, labels))
    alone = CWMILoss(3, levels=2, pixel_loss=None)
    torch.testing.assert_close(alone(logits, labels), cwmi.float())


def test_defaults_weigh_the_mean_over_pixels_and_classes_by_nine_tenths(batch: Batch) -> None:
    logits, labels = batch()
    pixel = BinaryCrossEntropyLoss(3, reduction="mean")(logits, labels)
    cwmi = cwmi_log_det(logits.sigmoid(), labels, levels=4, orientations=4, complex=True, ridge=5e-4)
    torch.testing.assert_close(CWMILoss(3)(logits, labels), (0.9 * pixel + cwmi.mean((1, 2)).sum()).float())


def test_probabilities_are_taken_as_they_are(batch: Batch) -> None:
    logits, labels = batch()
    expected = CWMILoss(3, levels=2)(logits, labels)
    torch.testing.assert_close(CWMILoss(3, levels=2, with_logits=False)(logits.sigmoid(), labels), expected)


def test_better_predictions_have_lower_values(batch: Batch) -> None:
    _, labels = batch(void=False)
    labels[0, 0, 0], labels[0, 0, 1], labels[0, 0, 2] = 0, 1, 2
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
    noise = torch.rand(one_hot.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [
        cwmi_log_det(one_hot * (1 - share) + noise * share, labels, levels=2).mean().item()
        for share in (0, 1e-6, 1e-3, 0.1, 0.5, 1)
    ]
    assert values == sorted(values)


EDGES = ["absent", "everywhere", "half", "stripes", "one pixel", "frame"]


@pytest.mark.parametrize("complex", [True, False])
@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 1000.0])
def test_labels_that_leave_no_rank_have_finite_values_and_gradients(kind: str, scale: float, complex: bool) -> None:
    labels = torch.zeros(1, 64, 48, dtype=torch.long)  # without padding, whose edge has a shape
    if kind == "everywhere":
        labels[:] = 1
    elif kind == "half":
        labels[:, 33:] = 1
    elif kind == "stripes":
        labels[:, :, ::8] = 1
    elif kind == "one pixel":
        labels[:, 20, 30] = 1
    elif kind == "frame":
        labels[:, 10:-10, 10:-10] = 1
        labels[:, 5:9] = 255
    sign = torch.where(labels == 1, 1.0, -1.0)
    noise = torch.randn(1, 64, 48, generator=torch.Generator().manual_seed(0))
    logits = torch.stack([-sign, sign], 1) * scale + noise[:, None]
    logits.requires_grad_()
    loss = CWMILoss(2, complex=complex, pixel_loss=None)
    value = loss(logits, labels)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    # as in all cases where a class has a shape: nothing there that a step of ordinary length could not take
    assert logits.grad.norm() < 100
    if kind in ("absent", "everywhere"):
        assert loss.jittered > 0


def test_an_absent_class_is_the_ridges_constant() -> None:
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[:, 10:20, 10:25] = 1
    probs = torch.rand(1, 3, 40, 40, requires_grad=True)
    log_det = cwmi_log_det(probs, labels, orientations=3, ridge=1e-3)
    assert log_det[:, 0, 2].tolist() == pytest.approx([3 * np.log(1e-3)] * 4)
    log_det.sum().backward()
    assert not probs.grad[:, 2].any()
    loss = CWMILoss(3, levels=2)
    loss(probs, labels)
    assert loss.jittered == 2  # one a level
    loss(probs, labels)
    assert loss.jittered == 4


def test_images_of_void_alone_add_nothing(batch: Batch) -> None:
    logits, labels = batch()
    loss = CWMILoss(3, levels=2, pixel_loss=None)
    expected = loss(logits[:1], labels[:1]) / 2
    labels[1] = 255
    torch.testing.assert_close(loss(logits, labels), expected)


def test_float32_near_perfect_predictions_need_no_jitter(batch: Batch) -> None:
    _, labels = batch(1, 2, 128, 128, void=False)
    logits = (torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float() * 2 - 1) * 30
    logits.requires_grad_()
    loss = CWMILoss(2)
    loss(logits, labels).backward()
    assert loss.jittered == 0
    assert logits.grad.isfinite().all()


def test_wrong_arguments_are_named(batch: Batch) -> None:
    logits, labels = batch()
    with pytest.raises(ValueError, match=r"4 levels need maps larger than 16 × 16, got 16 × 23; use larger crops"):
        CWMILoss(3)(logits[:, :, :16], labels[:, :16])
    for complex, orientations, needed in ((True, 41, 123), (False, 31, 124)):
        text = (
            rf"coarsest of 2 levels has 10 × 12 positions, but {orientations} orientations need at least {needed}; use"
        )
        with pytest.raises(ValueError, match=text):
            CWMILoss(3, levels=2, orientations=orientations, complex=complex)(logits[:, :, :20], labels[:, :20])
        CWMILoss(3, levels=2, orientations=orientations - 1, complex=complex)(logits[:, :, :20], labels[:, :20])
    with pytest.raises(ValueError, match="levels: expected a positive integer, got 0"):
        CWMILoss(3, levels=0)
    with pytest.raises(ValueError, match="pixel_loss: expected one of 'bce', 'bce_mean', 'ce', None, got 'mse'"):
        CWMILoss(3, pixel_loss="mse")  # type: ignore[arg-type]
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="pixel_weight: expected a number from 0 to 1"):
            CWMILoss(3, pixel_weight=weight)
    for ridge in (0, -1e-3, float("nan")):
        with pytest.raises(ValueError, match="ridge: expected a positive number"):
            CWMILoss(3, ridge=ridge)
    with pytest.raises(ValueError, match="expected probabilities in"):
        cwmi_log_det(logits, labels, levels=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("complex", "backend", "heights"),
    # inductor takes half a minute for each size and orientation of each variant, so another size is for the rest alone
    [(True, "inductor", (20,)), (False, "inductor", (20,)), (True, "aot_eager", (20, 26))],
)
def test_compiles_into_one_graph_with_equal_values(
    batch: Batch, complex: bool, backend: str, heights: tuple[int, ...]
) -> None:
    make = lambda: CWMILoss(3, levels=1, orientations=2, complex=complex)  # noqa: E731
    compiled = torch.compile(make(), fullgraph=True, backend=backend)
    for height in heights:
        logits, labels = batch(height=height)
        inside, outside = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value, expected = compiled(inside, labels), make()(outside, labels)
        value.backward()
        expected.backward()
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        assert (inside.grad - outside.grad).norm() <= 1e-6 * outside.grad.norm()
