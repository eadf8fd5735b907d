"""`launch.py audit`: are there known holes in what is installed? Asks the Python package index, so it needs a network.

Runs inside .venv. Exit code 0 only where every package was looked up and none has a known hole.
"""

import json
import subprocess
import sys
from typing import Any, Dict, List, NamedTuple, Sequence

COMMAND = ["-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off", "--timeout", "15"]
UNREACHED = (
    "the index of known holes cannot be asked: {reason}\n"
    "connect this machine to a network that reaches Python's package index, and run it again"
)
SHOWN = 8  # names of packages that nothing is known of


class Verdict(NamedTuple):
    lines: List[str]
    code: int


def verdict(packages: Sequence[Dict[str, Any]]) -> Verdict:
    """What pip-audit's list of packages means. Those that it left out were not checked, whatever else it says."""
    checked = [package for package in packages if "skip_reason" not in package]
    skipped = sorted(package["name"] for package in packages if "skip_reason" in package)
    holes = [(package, hole) for package in checked for hole in package.get("vulns", [])]
    lines = [_line(package, hole) for package, hole in holes]
    known = f"{len(holes)} known holes" if holes else "no known hole"
    lines.append(f"packages that were looked up: {len(checked)}; {known}")
    if skipped:
        names = ", ".join(skipped[:SHOWN]) + (", ..." if len(skipped) > SHOWN else "")
        lines.append(f"not looked up, for the index does not know them: {len(skipped)} ({names})")
    return Verdict(lines, 1 if holes or skipped else 0)


def _line(package: Dict[str, Any], hole: Dict[str, Any]) -> str:
    fixed = ", ".join(hole.get("fix_versions") or ["no version yet"])
    return f"{package['name']} {package['version']}: {hole['id']}, fixed in {fixed}"


def main() -> int:
    asked = subprocess.run([sys.executable, *COMMAND], capture_output=True, check=False)
    try:
        found = verdict(json.loads(asked.stdout.decode("utf-8"))["dependencies"])
    except (ValueError, KeyError, TypeError):
        said = asked.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        found = Verdict([UNREACHED.format(reason=said[-300:] or "it said nothing")], 1)
    print("\n".join(found.lines))
    return found.code


if __name__ == "__main__":
    sys.exit(main())
