"""What every benchmark writes: records {name, value, unit, reference, reference_value, ratio, bar, holds}."""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

REAL_DATA = Path(os.environ.get("BRAINJANUS_REAL_DATA", Path(__file__).parents[2] / "shared/data"))


@dataclass(frozen=True)
class Claim:
    """One measured figure. reference: what it is compared with. ratio: value / reference_value.

    bar: the least ratio, if there is a reference; else the least value (the greatest, if `at_most`). None: no claim.
    """

    name: str
    value: float
    unit: str
    reference: str | None = None
    reference_value: float | None = None
    bar: float | None = None
    at_most: bool = False

    def record(self) -> dict:
        ratio = None if self.reference_value is None else self.value / self.reference_value
        figure = self.value if ratio is None else ratio
        holds = None if self.bar is None else bool(figure <= self.bar if self.at_most else figure >= self.bar)
        facts = asdict(self) | {"ratio": ratio, "holds": holds}
        del facts["at_most"]
        return facts


def arguments(description: str, *, flags: Mapping[str, str] | None = None, **folders: str) -> argparse.Namespace:
    """--quick, --out FILE.json, and --work FOLDER for datasets and runs, from which a stopped benchmark goes on.

    folders: further ones that may be named; flags: further switches; each with what it is for.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller numbers: to see that it runs; bars may fail")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the records")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder for datasets and runs")
    parser.add_argument("--seed", type=int, default=0)
    for name, purpose in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=purpose)
    for name, purpose in folders.items():
        parser.add_argument(f"--{name}", type=Path, help=purpose)
    return parser.parse_args()


def write(claims: list[Claim], out: Path) -> None:
    """Print the claims as a table and write them as records."""
    records = [claim.record() for claim in claims]
    for r in records:
        versus = "" if r["ratio"] is None else f"  {r['ratio']:.3f} of {r['reference']} ({r['reference_value']:.3f})"
        verdict = {True: "holds", False: "FALLS SHORT", None: ""}[r["holds"]]
        bar = "" if r["bar"] is None else f"  bar {r['bar']:g} {verdict}"
        print(f"{r['name']:<44}{r['value']:>9.4f} {r['unit']}{versus}{bar}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(records, indent=1) + "\n")
