"""Every run spec that comes with the package runs what its table says."""

import inspect
import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from beyondpixel.datamodules import CamVidDataModule, VOCDataModule
from beyondpixel.experiments.axes import NETWORKS, RMI_AXES, axes_of
from beyondpixel.experiments.build import build_all
from beyondpixel.experiments.inference.inferers import parse_inferer
from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.merge import Keys
from beyondpixel.experiments.plan import plan_runs
from beyondpixel.experiments.resolve import import_class, resolve
from beyondpixel.experiments.spec import RUNS, RunSpec, load_specs
from beyondpixel.experiments.specs_command import header_of, resolved_text
from beyondpixel.lightning_modules.networks import MCIBI, DeepLab
from beyondpixel.losses import LOSSES, build_loss

SPECS = load_specs([RUNS])
OF_THE_RMI_PAPER = ("rmi_table1_voc", "rmi_table3a", "rmi_table3b", "rmi_table4_camvid")
all_rows = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


@cache
def resolved(name: str) -> dict[str, Any]:
    return resolve(next(spec for spec in SPECS if spec.name == name))


def table(name: str) -> dict[str, dict[str, Any]]:
    """Resolved configs of a table by row."""
    return {spec.row: resolved(spec.name) for spec in SPECS if spec.table == name}


def leaves(tree: dict[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def signature_default(cls: type, name: str) -> Any:
    """The default that the class, or the base that it hands the argument on to, declares."""
    networks = {"DeepLabModule": [DeepLab], "MCIBIModule": [MCIBI, *MCIBI.__mro__]}
    functions = [
        getattr(base, method)
        for base in cls.__mro__
        for method in ("__init__", "configure_network")
        if hasattr(base, method)
    ]
    functions += [network.__init__ for network in networks.get(cls.__name__, [])]
    for function in functions:
        parameter = inspect.signature(function).parameters.get(name)
        if parameter is not None and parameter.kind is not parameter.VAR_KEYWORD:
            return parameter.default
    raise AssertionError(f"{cls} has no argument {name}")


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


@all_rows
def test_every_value_is_given_or_the_default_of_its_own_class(spec: RunSpec) -> None:
    """What the row, a fragment or an override does not give comes from no other class than the row's own."""
    config = resolved(spec.name)
    given = dict(leaves(spec.config))
    loss = config["model"]["init_args"]["loss"]
    for keys, value in leaves(config):
        if keys[-1] in ("class_path", "seed_everything") or keys in given:
            continue
        if keys[:3] == ("model", "init_args", "loss"):
            if ("model", "init_args", "loss") in given or isinstance(loss, list):
                continue
            default = signature_default(LOSSES[loss["name"]], keys[-1]) if keys[-1] != "name" else "ce"
        elif keys[0] == "trainer":
            default = signature_default(Trainer, keys[-1])
        elif keys[2:4] == ("optimizer", "init_args"):
            optimizer = getattr(torch.optim, config["model"]["init_args"]["optimizer"]["class_path"].rpartition(".")[2])
            default = signature_default(optimizer, keys[-1])
        else:
            default = signature_default(import_class(config[keys[0]]["class_path"], keys[0]), keys[-1])
        assert value == plain(default), keys
        assert spec.merged.source_of(keys, default="default") == "default"


@all_rows
def test_what_is_given_is_what_is_resolved(spec: RunSpec) -> None:
    values = dict(leaves(resolved(spec.name)))
    for keys, value in leaves(spec.config):
        if keys == ("model", "init_args", "loss") and isinstance(value, list):
            for complete, given in zip(values[keys], value, strict=True):
                assert given.items() <= complete.items()
        elif keys == ("model", "init_args", "loss"):
            assert values[(*keys, "name")] == value
        elif not isinstance(value, list):
            assert values[keys] == value, keys


@all_rows
def test_resolved_stored_and_built_are_the_same(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instantiated = []

    def instantiate(parser: LightningArgumentParser, config: Namespace, **_: Any) -> Namespace:
        instantiated.append(yaml.safe_load(parser.dump(config, skip_validation=True, skip_unset=False)))
        return Namespace(model=None, data=None, trainer={})

    monkeypatch.setattr(LightningArgumentParser, "instantiate", instantiate)
    (run,) = plan_runs([spec.file.parent / spec.row], seeds=[3], output=tmp_path, overrides={})
    run.prepare()
    stored = run.folder.config
    expected = resolved(spec.name)
    assert {**stored, "trainer": None, "seed_everything": None} == {
        **plain(expected),
        "trainer": None,
        "seed_everything": None,
    }
    assert stored["seed_everything"] == 3
    assert stored["trainer"] == {**plain(expected["trainer"]), "default_root_dir": str(run.folder.path)}
    build_all(stored)
    assert instantiated == [stored]


def test_the_text_of_a_resolved_row_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rmi_table4_camvid/v3_rmi", "rmi_table3a/int_df4", "demo/ce"):
        spec = next(spec for spec in SPECS if spec.name == name)
        text = resolved_text(spec)
        assert yaml.safe_load(text) == plain(resolved(name))
        for line in text.splitlines():
            assert line.endswith(":") or re.search(r"# (default|row|base/[\w/]+)$", line), line
    assert "crop_size: 479  # base/data/camvid" in resolved_text(
        next(spec for spec in SPECS if spec.name == "rmi_table4_camvid/v3_rmi")
    )


def test_the_examples_of_the_readme_and_the_tutorial(tmp_path: Path) -> None:
    pages = (RUNS.parent / "README.md", RUNS.parents[1] / "docs" / "tutorials" / "slurm_grid.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"```yaml.*?\n(.*?)```", text, flags=re.DOTALL)
    for name, text in zip(("row", "evaluations", "grid", "affinity", "cluster"), blocks, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.yaml").write_text(text)
    (row,) = load_specs([tmp_path / "row"])
    assert row.config == next(spec for spec in SPECS if spec.name == "rmi_table1_voc/v3_rmi").config
    words = yaml.safe_load((tmp_path / "evaluations" / "evaluations.yaml").read_text())["evaluations"]
    assert len({parse_inferer(one).slug for one in words}) == len(words)
    grid = [spec.config for spec in load_specs([tmp_path / "grid"])]
    assert grid == [spec.config for spec in SPECS if spec.table == "rmi_table3b"]
    runs = plan_runs([tmp_path / "affinity"], seeds=[1, 2], output=tmp_path, overrides={})
    settings = [run.config["model"]["init_args"]["loss"] for run in runs]
    assert [(loss["margin"], loss["distance"]) for loss in settings[::2]] == [
        (margin, distance) for margin in (1.0, 3.0) for distance in (1, 2, 3)
    ]


# values of the papers and of their published code, written out by hand
RMI_MODEL = {
    "encoder": "resnet101s",
    "decoder": "paper",
    "dilate_last_stage": False,
    "output_stride": 16,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay_norm_and_bias": False,
    "norm_momentum": 0.05,
    "lr_power": 0.9,
    "min_lr": 1e-6,
    "dropout": 0.1,
    "atrous_rates": None,
}
RMI_VOC = {
    "data": {
        "train_split": "trainaug",
        "test_split": "val",
        "crop_size": 513,
        "image_size": None,
        "scales": [0.5, 2.0],
        "scale_step": 0.25,
        "batch_size": 16,
        "flip": True,
        "resampling": "bicubic_antialias",
    },
    "model": {**RMI_MODEL, "lr": 0.007, "warmup_iters": 1500},
    "trainer": {"max_steps": 30406, "limit_test_batches": None, "accumulate_grad_batches": 1},
}
RMI_CAMVID = {
    "data": {
        "variant": "12",
        "train_split": "trainval",
        "crop_size": 479,
        "image_size": None,
        "scales": [0.75, 1.25],
        "scale_step": None,
        "batch_size": 16,
        "flip": True,
        "resampling": "bicubic_antialias",
    },
    "model": {**RMI_MODEL, "lr": 0.025, "warmup_iters": 300, "head_lr_multiplier": 10.0},
    "trainer": {"max_steps": 5800, "limit_test_batches": None, "accumulate_grad_batches": 1},
}
CAMVID_LOSSES = {  # a quarter of the steps, on two encoders
    "data": RMI_CAMVID["data"],
    "model": {
        **{key: value for key, value in RMI_CAMVID["model"].items() if key != "encoder"},
        "warmup_iters": 75,
        "variant": "v3plus",
    },
    "trainer": {"max_steps": 1450, "precision": "bf16-mixed"},
}
MCIBI_VOC = {
    "data": {
        "train_split": "trainaug",
        "test_split": "val",
        "crop_size": 512,
        "image_size": None,
        "scales": [0.5, 2.0],
        "scale_step": None,
        "batch_size": 16,
    },
    "model": {
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "decay_norm_and_bias": True,
        "head_lr_multiplier": 1.0,
        "warmup_iters": 0,
        "output_stride": 8,
        "lr_power": 0.9,
        "min_lr": 1e-4,
        "lr_decay_to": "min_lr",
    },
    "trainer": {"max_steps": 60 * 661},
}
SMALL_CAMVID = {
    "data": {"variant": "11", "train_split": "trainval", "image_size": [180, 240], "batch_size": 8},
    "model": {"encoder": "resnet18", "encoder_weights": None, "output_stride": 16},
    "trainer": {"max_steps": 800},
}
WIDE_RATES = {**SMALL_CAMVID, "model": {**SMALL_CAMVID["model"], "atrous_rates": [12, 24, 36], "dropout": 0.5}}
PRETRAINED = {
    "data": {**SMALL_CAMVID["data"], "normalization": "inception"},
    "model": {**WIDE_RATES["model"], "encoder": "tu-tf_efficientnet_lite0", "encoder_weights": "imagenet"},
}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("rmi_table1_voc", RMI_VOC),
        ("rmi_table3a", RMI_VOC),
        ("rmi_table3b", RMI_VOC),
        ("rmi_table4_camvid", RMI_CAMVID),
        ("mcibi_contexts_voc", MCIBI_VOC),
        ("mcibi_ablation_voc", MCIBI_VOC),
        (
            "mcibipp_voc",
            {**MCIBI_VOC, "model": {**MCIBI_VOC["model"], "context": "upernet_aspp", "memory": "statistics"}},
        ),
        ("camvid_losses", CAMVID_LOSSES),
        ("camvid_small", WIDE_RATES),
        ("camvid_small_table3a", {**PRETRAINED, "trainer": {"max_steps": 400}}),
        ("camvid_small_table3b", {**PRETRAINED, "trainer": {"max_steps": 400}}),
        ("camvid_small_losses", WIDE_RATES),
        ("camvid_small_baseline", SMALL_CAMVID),
        ("camvid_small_search", {**WIDE_RATES, "trainer": {}}),
        ("mcibi_camvid_small", WIDE_RATES),
        ("camvid_small_pretrained", PRETRAINED),
    ],
)
def test_recipes_are_those_of_the_papers(name: str, facts: dict[str, dict[str, Any]]) -> None:
    rows = table(name)
    assert rows
    for row, config in rows.items():
        for part, values in facts.items():
            found = config[part] if part == "trainer" else config[part]["init_args"]
            assert {key: found[key] for key in values} == values, row


def test_learning_rates_of_the_head() -> None:
    for name in ("rmi_table1_voc", "rmi_table3a", "rmi_table3b"):
        for row, config in table(name).items():
            model = config["model"]["init_args"]
            assert model["head_lr_multiplier"] == (5.0 if model["variant"] == "v3plus" else 10.0), row


def test_the_search_gives_ce_and_rmi_as_many_trials() -> None:
    """Each row differs from camvid_small's row of the same loss in one key at most; seven rows for each loss."""
    rows = {row: plain(config) for row, config in table("camvid_small_search").items()}
    steps = {row: config["trainer"]["max_steps"] for row, config in rows.items()}
    assert {row for row in rows if steps[row] == 1600} == {"ce_steps1600", "rmi_steps1600"}
    assert set(steps.values()) == {800, 1600}
    settings = {name: plain(config)["model"]["init_args"] for name, config in table("camvid_small").items()}
    for loss in ("ce", "rmi"):
        trials = [config["model"]["init_args"] for row, config in rows.items() if row.startswith(f"{loss}_")]
        changes = [changed_keys(settings[loss], trial) for trial in trials]
        assert len(trials) == 7
        assert changes.count([]) == 2  # as camvid_small, and the same for longer
        assert all(len(keys) <= 1 for keys in changes), changes


ADAMW_LOSSES = (
    "ce",
    "bce",
    "affinity",
    "rmi_df4",
    "rmi_df4_weight0.9",
    "rmi_df2",
    "rmi_r1",
    "rmi_ce",
    "cwmi",
    "lovasz",
)


@pytest.mark.parametrize(
    ("name", "losses", "lengths"),
    [
        ("camvid_small_pretrained", ("ce", "rmi_df4"), (400, 1600)),
        ("camvid_small_adamw", ADAMW_LOSSES, (400, 1600, 3200)),
    ],
)
def test_a_pretrained_table_has_losses_with_fewer_and_more_steps(
    name: str, losses: tuple[str, ...], lengths: tuple[int, ...]
) -> None:
    rows = {row: plain(config) for row, config in table(name).items()}
    others = {f"{loss}_steps{steps}": (loss, steps) for loss in losses for steps in lengths}
    assert {row: config["trainer"]["max_steps"] for row, config in rows.items()} == {
        row: others[row][1] if row in others else 800 for row in rows
    }
    for row, (loss, _) in others.items():
        assert rows[row]["model"] == rows[loss]["model"]
        assert rows[row]["data"] == rows[loss]["data"]


def test_the_table_with_adamw_differs_from_the_one_with_sgd_in_its_optimizer_alone() -> None:
    sgd, adamw = (
        {row: plain(config) for row, config in table(f"camvid_small_{name}").items()}
        for name in ("pretrained", "adamw")
    )
    both = sorted(sgd.keys() & adamw.keys())
    assert {"ce", "bce", "rmi_df4", "rmi_r1", "cwmi", "lovasz"} <= set(both)
    for row in both:
        one, other = dict(leaves(sgd[row])), dict(leaves(adamw[row]))
        differing = {keys for keys in {*one, *other} if one.get(keys) != other.get(keys)}
        assert {keys[:3] for keys in differing} == {
            ("model", "init_args", "optimizer"),
            ("model", "init_args", "head_lr_multiplier"),
        }, row


def changed_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Keys with another value, those of the loss by themselves."""
    flat = [{**{k: v for k, v in c.items() if k != "loss"}, **c["loss"]} for c in (one, other)]
    return [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]


def test_the_baseline_table_separates_three_changes() -> None:
    models = [(c["model"]["init_args"], c["data"]["init_args"]) for c in table("camvid_small_baseline").values()]
    settings = {(tuple(model["atrous_rates"]), model["dropout"], data["crop_size"]) for model, data in models}
    assert settings == set(itertools.product([(6, 12, 18), (12, 24, 36)], [0.1, 0.5], [176, 177]))


def test_classes_of_the_data_sets() -> None:
    assert VOCDataModule("nowhere").num_classes == 21
    assert [CamVidDataModule("nowhere", variant=variant).num_classes for variant in ("11", "12")] == [11, 12]


def test_table_3_covers_the_papers_grid() -> None:
    def settings(name: str) -> set[tuple[Any, ...]]:
        losses = [config["model"]["init_args"]["loss"] for config in table(name).values()]
        assert {loss["name"] for loss in losses} == {"rmi"}
        return {(loss["pooling"], loss["downsampling_factor"], loss["region_size"]) for loss in losses}

    of_a = {("interp", 4, 3), ("max", 4, 3), *(("avg", df, 3) for df in (2, 3, 4, 5, 6))}
    of_b = {*(("avg", 4, r) for r in (1, 2, 3, 4)), *(("avg", 6, r) for r in (2, 3, 4, 5))}
    for prefix in ("rmi", "camvid_small"):
        assert settings(f"{prefix}_table3a") == of_a
        assert settings(f"{prefix}_table3b") == {("avg", df, r) for df in (4, 6) for r in (1, 2, 3, 4, 5)}
    published = {spec.row for spec in SPECS if spec.table == "rmi_table3b" and "value" in spec.reference}
    assert published == {f"df{df}_r{r}" for _, df, r in of_b}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("rmi_table3a", {"pooling", "downsampling_factor"}),
        ("rmi_table3b", {"region_size", "downsampling_factor"}),
        ("camvid_small_table3a", {"pooling", "downsampling_factor"}),
        ("camvid_small_table3b", {"region_size", "downsampling_factor"}),
    ],
)
def test_rows_of_a_table_differ_in_nothing_else(name: str, keys: set[str]) -> None:
    configs = [plain(config) for config in table(name).values()]
    losses = [config["model"]["init_args"].pop("loss") for config in configs]
    assert all(config == configs[0] for config in configs)
    assert {key for key in losses[0] if len({loss[key] for loss in losses}) > 1} == keys


@all_rows
def test_the_command_in_the_header_launches_the_row(spec: RunSpec) -> None:
    header = header_of(spec.file)
    assert {"Table", "Hardware", "Command"} <= set(header)
    words = header["Command"].partition(",")[0].split()
    if words[:2] == ["beyondpixel", "launch"]:
        places = words[2 : next((i for i, word in enumerate(words) if word.startswith("--")), len(words))]
        assert spec.name in [found.name for found in load_specs(places)]
    else:
        assert words == ["beyondpixel", "demo"]


@all_rows
def test_the_header_says_what_is_expected(spec: RunSpec) -> None:
    if spec.table not in OF_THE_RMI_PAPER:
        return
    header = header_of(spec.file)
    assert list(header)[:6] == ["Paper", "Table", "Row", "Hardware", "Expected", "Command"]
    value = spec.reference.get("value")
    if value is not None:
        numbers = [float(number) for number in re.findall(r"\d\d\.\d\d", header["Expected"])]
        assert min(numbers) <= value <= max(numbers)
        assert spec.reference["metric"] == "test/mIoU"


def test_equal_runs_have_equal_published_scores() -> None:
    scores: dict[str, dict[str, float]] = {}
    for spec in SPECS:
        if "value" in spec.reference:
            key = json.dumps(resolved(spec.name), sort_keys=True)
            scores.setdefault(key, {})[spec.name] = spec.reference["value"]
    shared = [found for found in scores.values() if len(found) > 1]
    assert any({"rmi_table1_voc/v3_rmi", "rmi_table3a/avg_df4", "rmi_table3b/df4_r3"} <= set(found) for found in shared)
    for found in shared:
        assert len(set(found.values())) == 1, found


def test_table_1_has_its_crf_scores() -> None:
    published = {
        "v3_ce": {"crf:1": 78.32, "crf:5": 78.40, "crf:10": 78.28},
        "v3plus_ce": {"crf:1": 78.90, "crf:5": 78.75, "crf:10": 78.60},
    }
    for row, values in published.items():
        (spec,) = load_specs([f"rmi_table1_voc/{row}"])
        assert spec.evaluations == tuple(values)
        found = {words: reference["value"] for words, reference in spec.reference["evaluations"].items()}
        assert found == values


def test_table_4_prints_eleven_classes_and_the_mean_of_twelve() -> None:
    names = CamVidDataModule("nowhere", variant="12").class_names
    implied = {}
    for spec in load_specs(["rmi_table4_camvid"]):
        published = {spec.row: spec.reference}
        published |= {f"{spec.row}_{words}": found for words, found in spec.reference.get("evaluations", {}).items()}
        for row, reference in published.items():
            assert list(reference["per_class"]) == names[:11]
            implied[row] = 12 * reference["value"] - sum(reference["per_class"].values())
        if "ce" in spec.row:
            assert spec.evaluations == ("crf:1", "crf:5", "crf:10")
    # one wrong digit in the tens of any class or mean shows here; v3+ with CRF is the paper's own misprint
    assert implied.pop("v3plus_ce_crf") == pytest.approx(42.01, abs=0.07)
    assert len(implied) == 7
    assert all(30.5 < iou < 33.2 for iou in implied.values()), implied


@pytest.mark.parametrize("data", ["voc", "camvid"])
def test_contexts_of_mcibi(data: str) -> None:
    rows = {row: axes_of(config) for row, config in table(f"mcibi_contexts_{data}").items()}
    methods = {"": (None, ""), "_mcibi": ("features", "mcibi_"), "_mcibipp": ("statistics", "mcibi++_")}
    contexts = {context: network for context, network in NETWORKS.items() if context != "upernet_aspp"}
    assert set(rows) == {network + method for network in contexts.values() for method in methods}
    for context, network in contexts.items():
        for suffix, (memory, prefix) in methods.items():
            found = rows[network + suffix]
            assert (found["context"], found["memory"], found["model"]) == (context, memory, prefix + network)
            assert (found["loss"], found["dataset"]) == ("ce", data)
            assert found["momentum_rule"] == {None: None, "features": "poly", "statistics": "constant"}[memory]


@pytest.mark.parametrize("data", ["voc", "camvid"])
def test_ablations_of_mcibi_change_one_thing(data: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "mcibi": {},
        "update_mean": {"update_strategy": "mean"},
        "no_refinement": {"refinement": False},
        "consistency": {"consistency": True},
        "slots_2": {"slots": 2},
        "slots_4": {"slots": 4},
        "random_pixel": {"initialization": "random_pixel"},
        "momentum_lr": {"momentum_rule": "lr", "memory_momentum": 1.0},
        "momentum_constant": {"momentum_rule": "constant", "memory_momentum": 0.1},
        "hard": {"aggregation": "hard"},
    }
    rows = {row: axes_of(config) for row, config in table(f"mcibi_ablation_{data}").items()}
    assert set(rows) == {*changes, "rmi", "no_memory", "no_memory_rmi"}
    for row, change in changes.items():
        assert rows[row] == {**rows["mcibi"], **change}
    of_the_loss = {axis: rows["no_memory_rmi"][axis] for axis in ("loss", *RMI_AXES)}
    assert of_the_loss["loss"] == "rmi"
    assert rows["rmi"] == {**rows["mcibi"], **of_the_loss}
    assert rows["no_memory"]["memory"] is rows["no_memory_rmi"]["memory"] is None


@all_rows
def test_the_loss_of_a_row(spec: RunSpec) -> None:
    """It can be built as the row sets it, and trains logits where pixels are labeled, only there."""
    loss = resolved(spec.name)["model"]["init_args"]["loss"]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 40, 40, generator=generator, requires_grad=True)
    target = torch.randint(3, (2, 40, 40), generator=generator)
    target[:, :9] = 255
    value = build_loss(loss, num_classes=3)(logits, target)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[:, :, 9:].any()
    assert not logits.grad[:, :, :9].any()


TWO_STEPS = {
    "data.batch_size": 2,
    "data.num_workers": 0,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 2,
    "trainer.check_val_every_n_epoch": 1000,
    "trainer.logger": False,
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
    "model.warmup_iters": 1,
    "model.encoder": "test_resnet",
    "model.encoder_weights": None,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder"), [("rmi_table4_camvid/v3_ce", "CamVid"), ("rmi_table1_voc/v3plus_rmi", "VOC2012")]
)
def test_a_test_counts_every_valid_pixel_of_the_data_set(name: str, folder: str, shared: Path, tmp_path: Path) -> None:
    """A row's real run: what trains and tests is the data set at its own size, not a plan of it."""
    cheap = {"model.variant": "v3", "model.decoder": "smp", "model.output_stride": 16, "model.boundary_metrics": []}
    overrides = {**TWO_STEPS, **cheap, "data.root": str(shared / "data" / folder)}
    (run,) = plan_runs([name], seeds=[1], output=tmp_path, overrides=overrides)
    run.prepare()
    run.folder.record = {**run.folder.record, "evaluations": []}
    run_job(run.folder.path)
    with np.load(run.folder.confusion_file) as archive:
        counted = int(archive["matrix"].sum())
    if folder == "CamVid":
        assert counted == 40_262_400  # 233 images of 480x360
    root = shared / "data" / folder
    names = (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split() if folder == "VOC2012" else []
    files = [root / "SegmentationClass" / f"{name}.png" for name in names] or sorted((root / "testannot").glob("*.png"))
    masks = [np.asarray(Image.open(file)) for file in files]
    assert counted == sum(int((mask != 255).sum()) for mask in masks)


def traits_of(spec: RunSpec) -> dict[str, str]:
    """What two steps on tiny data can see of a row."""
    config = plain(resolved(spec.name))
    model = config["model"]["init_args"]
    loss = model.pop("loss")
    names = [entry["name"] for entry in (loss if isinstance(loss, list) else [loss])]
    seen = ("variant", "decoder", "output_stride", "context", "memory", "slots", "aggregation", "refinement")
    return {
        "network": json.dumps({"model": config["model"]["class_path"], **{key: model.get(key) for key in seen}}),
        "data": f"{config['data']['class_path']}, one size: {config['data']['init_args']['image_size'] is not None}",
        "loss": f"{names} of {config['model']['class_path']}",
    }


def rows_to_train() -> list[Any]:
    """Rows that have a trait which none before them has."""
    found: list[Any] = []
    seen: set[str] = set()
    for spec in SPECS:
        traits = set(traits_of(spec).values())
        if traits - seen:
            found.append(pytest.param(spec, id=spec.name))
        seen |= traits
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*names .* of the .* images of VOC")
@pytest.mark.parametrize("spec", rows_to_train())
def test_a_row_trains_and_tests(spec: RunSpec, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Two steps, a checkpoint and a test of one image, as the launcher does them, on tiny copies of the data sets.

    Trained are the rows with a network, a data set or a loss that no row before them has; the others differ from these
    in encoders, schedules, widths, and settings of the loss, which `test_the_loss_of_a_row` looks at.
    """
    config = resolved(spec.name)
    overrides: dict[str, Any] = {**TWO_STEPS, "data.eval_batch_size": 1, "trainer.limit_test_batches": 1}
    dataset = config["data"]["class_path"].rpartition(".")[2]
    if dataset == "ShapesDataModule":
        overrides |= {"data.num_train": 4, "data.num_val": 2, "data.num_test": 2, "data.image_size": [48, 64]}
    else:
        name = {"VOCDataModule": "tiny_voc", "CamVidDataModule": "tiny_camvid"}[dataset]
        overrides |= {"data.root": str(request.getfixturevalue(name)), "data.crop_size": 33}
        overrides |= {"data.image_size": [36, 48]} if config["data"]["init_args"]["image_size"] else {}
    if config["model"]["class_path"].endswith("MCIBIModule"):
        overrides |= {"model.channels": 16, "model.attention_channels": 8}
    if config["model"]["init_args"].get("consistency_from_epoch") is not None:
        overrides["model.consistency_from_epoch"] = 0
    (run,) = plan_runs([spec.file.parent / spec.row], seeds=[1], output=tmp_path, overrides=overrides)
    assert run.spec.name == spec.name
    run.prepare()
    run_job(run.folder.path)
    assert run.folder.state["status"] == "done"
    assert run.folder.state["step"] == 2
    assert run.folder.last_checkpoint.exists()
    made = [evaluation.record["evaluation"]["words"] for evaluation in run.folder.evaluations()]
    assert made == sorted(
        spec.evaluations, key=lambda words: [int(part) if part.isdigit() else 0 for part in words.split(":")]
    )


def test_the_built_objects_are_what_the_config_says(tiny_camvid: Path, tmp_path: Path) -> None:
    overrides = {**TWO_STEPS, "data.root": str(tiny_camvid)}
    (run,) = plan_runs(["rmi_table4_camvid/v3_rmi"], seeds=[5], output=tmp_path, overrides=overrides)
    module, datamodule, trainer = build_all(run.config)
    assert (module.num_classes, module.ignore_index, datamodule.seed) == (12, 255, 5)
    assert (datamodule.crop_size, datamodule.image_size) == ((479, 479), None)
    loss = run.config["model"]["init_args"]["loss"]
    assert (module.loss.pixel_weight, loss["pixel_weight"]) == (0.5, 0.5)
    assert trainer["max_steps"] == 2
