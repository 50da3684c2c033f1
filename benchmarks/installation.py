"""Size of an installation with `pip install .`, and time of its imports.

    python benchmarks/installation.py    a few minutes and 6 GB in a temporary folder; needs a package index

The packages are installed into an empty environment. Imports are timed in new processes, in CPU time. All repetitions
and packages are in results/installation.json, the tables in results/installation.md.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring.markdown import table
from measuring.record import CHECKOUT, environment, progress, summary
from tables import make_parser, save

MEGABYTE = 1e6
SHOWN_MEGABYTES = 100
IMPORTED = ("torch", "torchmetrics", "beyondpixel.losses")
LIST_PACKAGES = """
import importlib.metadata, json
sizes = {
    one.name: sum(file.stat().st_size for path in one.files or () if (file := path.locate()).is_file())
    for one in importlib.metadata.distributions()
}
print(json.dumps(sizes))
"""
TIME_IMPORTS = f"""
import importlib, json, time
times = []
for name in {IMPORTED}:
    start = time.process_time()
    importlib.import_module(name)
    times.append(1e3 * (time.process_time() - start))
print(json.dumps(times))
"""


def main() -> None:
    parser = make_parser(__doc__, "installation")
    parser.add_argument("--repeats", type=int, default=9, help="processes that import, at least 2")
    arguments = parser.parse_args()
    record = environment()
    with tempfile.TemporaryDirectory() as folder:
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", str(CHECKOUT)], check=True)
        record["bytes"] = run(python, LIST_PACKAGES, folder)
        runs = [run(python, TIME_IMPORTS, folder) for _ in progress(range(arguments.repeats + 1), "imports")][1:]
    record["imports"] = {
        name: summary(list(times)) for name, times in zip(IMPORTED, zip(*runs, strict=True), strict=True)
    }
    save("installation", record, arguments.out)


def run(python: str, code: str, folder: str) -> Any:
    """Run code in a new process, outside of the checkout, and return what it printed as JSON."""
    output = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
    return json.loads(output)


def sections(record: dict[str, Any]) -> dict[str, str]:
    """Format the tables of the record."""
    sizes = {name: size / MEGABYTE for name, size in record["bytes"].items()}
    large = sorted((name for name in sizes if sizes[name] >= SHOWN_MEGABYTES), key=lambda name: -sizes[name])
    others = [size for size in sizes.values() if size < SHOWN_MEGABYTES]
    rows = [(name, f"{sizes[name]:.0f}") for name in large]
    rows.append((f"{len(others)} others, below {SHOWN_MEGABYTES} MB each", f"{sum(others):.0f}"))
    rows.append((f"all {len(sizes)}", f"{sum(sizes.values()):.0f}"))
    imports = []
    for name, times in record["imports"].items():
        low, median, high = times["quartiles"]
        imports.append((name, f"{median:.0f} ({low:.0f} – {high:.0f})"))
    columns = ("import, each after the one above", "CPU ms: median (quartiles)")
    return {"size": table(("package", "MB"), rows), "imports": table(columns, imports)}


if __name__ == "__main__":
    main()
