"""Registers, spills and shared memory of the losses' Triton kernels.

    python benchmarks/triton_report.py    about two minutes

Every kernel and variant is compiled for compute capabilities 8.0 and 9.0, which needs no GPU. The record is in
results/triton_report.json, the table in results/triton_report.md.
"""

from typing import Any

from measuring.markdown import table
from measuring.record import environment, load_from_tests, progress
from tables import make_parser, save


def main() -> None:
    arguments = make_parser(__doc__, "triton_report").parse_args()
    record = environment()
    report = load_from_tests("losses/triton_kernels.py")
    cases = [(variant, capability) for variant in report.variants() for capability in (80, 90)]
    record["kernels"] = [
        report.compile_kernel(*variant, capability)._asdict() for variant, capability in progress(cases, "compiling")
    ]
    record["shared_limit"] = report.SHARED_LIMIT
    save("triton_report", record, arguments.out)


def sections(record: dict[str, Any]) -> dict[str, str]:
    """Format the table of the record."""
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for kernel in record["kernels"]:
        by_name.setdefault(kernel["name"], {})[kernel["capability"]] = kernel
    fields = ("registers", "spilled_bytes", "shared_bytes")
    rows = [
        (name, *(of_capability[capability][field] for field in fields for capability in (80, 90)))
        for name, of_capability in by_name.items()
    ]
    columns = [
        f"{what}, {target}" for what in ("registers", "spilled bytes", "shared bytes") for target in ("sm_80", "sm_90")
    ]
    limits = f"A thread can have 255 registers, and a block {record['shared_limit']} bytes of shared memory."
    return {"kernels": f"{limits}\n\n{table(('kernel', *columns), rows)}"}


if __name__ == "__main__":
    main()
