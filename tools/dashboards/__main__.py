"""Write the dashboards: `python -m tools.dashboards [--out FOLDER] [--runbooks URL]`.

Without options it writes what is committed. `--runbooks` says where your copy of docs/runbooks is,
so that the links to it open in a browser.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.dashboards.registry import DASHBOARDS

FOLDER = Path(__file__).resolve().parent.parent.parent / "deploy" / "grafana" / "dashboards"
RUNBOOKS = "docs/runbooks"


def write(folder: Path, runbooks: str = RUNBOOKS) -> list[Path]:
    """Writes all dashboards into a folder; returns their files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for dashboard in DASHBOARDS:
        path = folder / f"{dashboard.name}.json"
        path.write_text(dashboard.to_json(runbooks.rstrip("/")))
        written.append(path)
    return written


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the files")
    parser.add_argument("--runbooks", default=RUNBOOKS, help="URL of the runbooks' folder")
    options = parser.parse_args()
    for path in write(options.out, options.runbooks):
        print(path)


if __name__ == "__main__":
    main()
