"""Values worked out by hand: the RMI authors' code and their paper, the MCIBI authors' code."""

import pytest
import torch

from beyondpixel.lightning_modules.schedules import WarmupPolyLR, warmup_poly


def test_authors_code_on_camvid() -> None:
    # lr 0.025, 300 warm-up iterations from 1e-4, 5800 in all
    recipe = {"lr": 0.025, "max_iters": 5800, "warmup_iters": 300}
    assert warmup_poly(1, **recipe) == pytest.approx(0.000183)  # 1e-4 + 0.0249 / 300
    assert warmup_poly(150, **recipe) == pytest.approx(0.01255)  # 1e-4 + 0.0249 / 2
    assert warmup_poly(300, **recipe) == pytest.approx(0.025)
    assert warmup_poly(3050, **recipe) == pytest.approx(0.0133971682, rel=1e-8)  # 0.025 * 0.5 ** 0.9
    assert warmup_poly(5799, **recipe) == pytest.approx(0.025 * 1.8181818e-4**0.9, rel=1e-6)
    assert warmup_poly(5800, **recipe) == 1e-6


def test_paper_has_no_start_and_no_floor() -> None:
    recipe = {"lr": 0.007, "max_iters": 30_406, "warmup_iters": 1500, "warmup_start_lr": 0.0, "min_lr": 0.0}
    assert warmup_poly(1, **recipe) == pytest.approx(0.007 / 1500)
    assert warmup_poly(750, **recipe) == pytest.approx(0.0035)
    assert warmup_poly(30_406, **recipe) == 0.0


def test_mcibi_authors_code() -> None:
    # (1 - t / T) ^ 0.9 * (0.01 - 0.0001) + 0.0001 with t = 0, 1, ... iterations done, T = 39660
    recipe = {"lr": 0.01, "max_iters": 39_660, "min_lr": 1e-4, "decay_to": "min_lr"}
    assert warmup_poly(1, **recipe) == pytest.approx(0.01, rel=1e-12)
    assert warmup_poly(2, **recipe) == pytest.approx(0.01 - 0.9 / 39_660 * 0.0099, rel=1e-9)  # to first order
    assert warmup_poly(19_831, **recipe) == pytest.approx(0.0054052786396, rel=1e-9)  # 0.5 ** 0.9 * 0.0099 + 0.0001
    assert warmup_poly(39_660, **recipe) == pytest.approx((1 / 39_660) ** 0.9 * 0.0099 + 1e-4, rel=1e-12)
    assert warmup_poly(50_000, **recipe) == warmup_poly(39_660, **recipe)
    # cut at the floor instead, it is 0.0053588673126 half-way
    assert warmup_poly(19_830, lr=0.01, max_iters=39_660, min_lr=1e-4) == pytest.approx(0.0053588673126, rel=1e-9)


def test_decay_to_min_lr_after_a_warmup() -> None:
    recipe = {"lr": 0.1, "max_iters": 6, "warmup_iters": 2, "warmup_start_lr": 0.0, "power": 1.0, "min_lr": 0.02}
    rates = [warmup_poly(t, **recipe, decay_to="min_lr") for t in range(1, 7)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.08, 0.06, 0.04])  # 0.08 * (1, 3/4, 1/2, 1/4) + 0.02


def test_without_warmup_the_first_iteration_has_decayed_once() -> None:
    assert warmup_poly(1, lr=1.0, max_iters=10, power=1.0) == pytest.approx(0.9)
    assert warmup_poly(5, lr=1.0, max_iters=10, power=2.0) == pytest.approx(0.25)


def test_a_warmup_from_above_is_cut_at_lr() -> None:
    assert warmup_poly(1, lr=1e-5, max_iters=10, warmup_iters=5, warmup_start_lr=1e-4) == 1e-5


def test_beyond_the_end_the_rate_stays() -> None:
    assert warmup_poly(11, lr=0.1, max_iters=10) == warmup_poly(10, lr=0.1, max_iters=10) == 1e-6


def test_scheduler_keeps_the_ratio_of_groups() -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (0.1, 1.0)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = WarmupPolyLR(optimizer, lr=0.1, max_iters=4, warmup_iters=2, warmup_start_lr=0.02, power=1.0)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    # iterations 1..4: 0.02 + 0.08/2, 0.1, 0.1 * (1 - 1/2), floor 1e-6; the second group ten times that
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([[0.06, 0.6], [0.1, 1.0], [0.05, 0.5], [1e-6, 1e-5]]))


def test_scheduler_decays_to_min_lr() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = WarmupPolyLR(optimizer, lr=0.1, max_iters=4, power=1.0, min_lr=0.02, decay_to="min_lr")
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.1, 0.08, 0.06, 0.04])


def test_scheduler_resumes() -> None:
    def make() -> WarmupPolyLR:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        return WarmupPolyLR(optimizer, lr=0.1, max_iters=10, warmup_iters=3)

    straight, resumed = make(), make()
    for _ in range(5):
        straight.optimizer.step()
        straight.step()
    resumed.optimizer.load_state_dict(straight.optimizer.state_dict())
    resumed.load_state_dict(straight.state_dict())
    for scheduler in (straight, resumed):
        scheduler.optimizer.step()
        scheduler.step()
    assert resumed.get_last_lr() == straight.get_last_lr() == [warmup_poly(7, lr=0.1, max_iters=10, warmup_iters=3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0, "max_iters": 10}, "lr must be above 0"),
        ({"lr": 0.1, "max_iters": 10, "warmup_iters": -1}, "warmup_iters must be 0 or more, got -1"),
        ({"lr": 0.1, "max_iters": 10, "decay_to": "min"}, "decay_to: expected one of 'zero', 'min_lr', got 'min'"),
        ({"lr": 0.1, "max_iters": 10, "warmup_iters": 10}, "warmup_iters=10 leaves none of the 10 training iter"),
    ],
)
def test_bad_numbers(arguments: dict[str, float], message: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=message):
        WarmupPolyLR(optimizer, **arguments)
