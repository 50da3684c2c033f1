"""Project, name, group, tags, id and config of a run in W&B."""

from __future__ import annotations

import os
import secrets
from typing import Any

PROJECT = "beyondpixel"
# axes whose values are tags as well, to filter runs with one click
TAGGED_AXES = ("loss", "model", "memory", "dataset")


def run_arguments(config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """W&B's arguments for a run: project, name, group, job type, tags, id and config; see `wandb_logger`."""
    axes = {name: value for name, value in record["axes"].items() if value is not None}
    return {
        "project": project_name(),
        "name": f"{record['name']}/seed{record['seed']}",
        "group": record["name"],
        "job_type": "train",
        "tags": [record["table"], *(str(axes[name]) for name in TAGGED_AXES if name in axes)],
        "id": record["wandb_id"],
        "config": {
            **record["axes"],
            "table": record["table"],
            "row": record["row"],
            "reference": record.get("reference") or None,
            "git_commit": record["git_commit"],
            "environment": record["environment"],
            "config": config,
        },
    }


def project_name() -> str:
    """W&B's project: `WANDB_PROJECT`, or this package's name."""
    return os.environ.get("WANDB_PROJECT", PROJECT)


def new_wandb_id() -> str:
    """An id for a new run; a resumed run keeps the one in its record.

    The agent of a W&B sweep has already chosen the id, and identifies the run by it.
    """
    return os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
