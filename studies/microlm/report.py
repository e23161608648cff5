"""wip"""

from pathlib import Path

HERE = Path("studies/microlm")


def write_report(results):
    pass
