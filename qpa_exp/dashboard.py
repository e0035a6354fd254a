"""``qpa-exp dashboard``: the paper's panels as a workspace in W&B.

The same: ``python -m qpa_exp.dashboard``.

Examples:
  qpa-exp dashboard project=qpa_exp                every run of the project
  qpa-exp dashboard project=qpa_exp study=fig2     those of one sweep
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpa_exp.cli import option, options_page, parse_options, run_command
from qpa_exp.errors import InputError, one_line
from qpa_exp.task import TASKS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "QPA: the paper's panels"
_SIZE = "trainable_params"


def build(entity: str, project: str, study: str | None, task: str = "causal_lm") -> Workspace:
    """Return the workspace, not saved anywhere yet.

    Its sections are Figures 2 to 9 (each metric, the qubits and the time against the size), the
    settings (Figure 4: rank and depth; the ansatz, shots and noise of Figures 7 to 9), and curves.

    Args:
        entity: a W&B user or team.
        project: of ``logger.project``.
        study: show the runs of this study alone, by the group that a sweep gives them.
        task: whose metrics the panels show.

    Raises:
        InputError: the package that makes workspaces is not installed, or there is no such task.
    """
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports.v2 import interface
    except ImportError as error:
        raise InputError("The dashboard needs: pip install 'qpa-exp[sweeps]'.") from error
    metrics, ranked_by = TASKS[task].metrics, TASKS[task].ranked_by().name
    names = {m.name: m.name for m in metrics if m.restates is None}
    ranking = set(names)
    names |= {"qubits": "n_qubits", "seconds of training": "train_seconds"}
    summary, config = interface.SummaryMetric, interface.Config
    size, best = summary(_SIZE), summary(ranked_by)
    sections: dict[str, list[Any]] = {
        "Parameters": [
            interface.ScatterPlot(
                title=f"{title} against trainable parameters",
                x=size, y=summary(name), log_x=True, running_ymin=name in ranking,
            )
            for title, name in names.items()
        ],
        "Settings": [
            *(
                interface.ScatterPlot(title=f"{ranked_by} against {k}", x=config(k), y=best)
                for k in ("peft.r", "qpa.n_layers", "qpa.n_mlp")
            ),
            *(
                interface.BarPlot(
                    title=f"{ranked_by} by {k}", metrics=[best], groupby=config(k),
                    groupby_rangefunc="stddev",
                )
                for k in ("peft.method", "qpa.variant", "qpa.ansatz", "qpa.shots", "qpa.noise")
            ),
        ],
        "Curves": [
            interface.LinePlot(title=name, x="trainer/global_step", y=[name])
            for name in ("train/loss", "validation/loss", f"validation/{ranked_by}")
        ],
    }  # fmt: skip
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME if study is None else f"{NAME}, {study}",
        sections=[
            workspaces.Section(name=name, panels=panels, is_open=True)
            for name, panels in sections.items()
        ],
        settings=workspaces.WorkspaceSettings(max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=[] if study is None else f"Group == {study!r}",
            pinned_columns=[f"summary:{name}" for name in (*(m.name for m in metrics), _SIZE)],
        ),
    )


def save(entity: str | None, project: str, study: str | None, task: str = "causal_lm") -> str:
    """Create the workspace in W&B and return its address.

    Raises:
        InputError: no key is set up, or W&B cannot be reached or refuses.
    """
    import wandb

    from qpa_exp.runs.loggers.wandb import WITHOUT_NETWORK, mode

    try:
        if (here := mode()) in WITHOUT_NETWORK:
            raise InputError(
                f"The dashboard lives in W&B, which is {here} here: log in with wandb login, send "
                "the runs with wandb sync, then start this again without WANDB_MODE."
            )
        owner = entity or str(wandb.Api().default_entity)
        return str(build(owner, project, study, task).save().url)
    except InputError:
        raise
    except Exception as error:  # requests, gql and W&B have errors of their own
        raise InputError(f"W&B did not take the dashboard: {one_line(error)[:300]}") from error


@dataclass
class DashboardOptions:
    """What the command takes."""

    project: str = option("of logger.project", "qpa_exp")
    entity: str | None = option("a W&B user or team", None)
    study: str | None = option("the runs of this sweep alone", None)
    task: str = option("whose metrics the panels show", "causal_lm")


def main(arguments: list[str]) -> None:
    """Create the workspace that these options describe."""
    options = parse_options(DashboardOptions, arguments)
    print(save(options.entity, options.project, options.study, options.task))


if __name__ == "__main__":
    run_command(main, lambda: options_page(__doc__, DashboardOptions))
