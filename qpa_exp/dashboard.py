"""``python -m qpa_exp.dashboard``: the paper's panels as a workspace in W&B.

``python -m qpa_exp.dashboard project=qpa_exp study=fig2`` shows the runs of one sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpa_exp.cli import parse_options, run_command
from qpa_exp.report.wandb_workspace import save


@dataclass
class DashboardOptions:
    """What the command takes."""

    project: str = "qpa_exp"
    entity: str | None = None
    study: str | None = None
    task: str = "causal_lm"


def main(arguments: list[str]) -> None:
    """Create the workspace that these options describe."""
    options = parse_options(DashboardOptions, arguments)
    print(save(options.entity, options.project, options.study, options.task))


if __name__ == "__main__":
    run_command(main)
