"""The rank of this process among those of its run."""

import os


def process_rank() -> int:
    """0 for the process that writes the run's folder; as Lightning (where it started the process) or SLURM says."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")))
