"""The paper's panels as a W&B workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qpa_exp.errors import InputError, one_line
from qpa_exp.task import TASKS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "QPA: the paper's panels"
_SIZE = "trainable_params"


def build(entity: str, project: str, study: str | None, task: str = "causal_lm") -> Workspace:
    """The workspace, not saved anywhere yet.

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
    except ImportError as error:
        raise InputError("The dashboard needs: pip install 'qpa-exp[sweeps]'.") from error
    metrics = [metric.name for metric in TASKS[task].metrics]
    ranked_by = TASKS[task].ranked_by().name
    runs = workspaces.RunsetSettings(
        filters=[] if study is None else f"Group == '{study}'",
        pinned_columns=[f"summary:{name}" for name in (*metrics, _SIZE)],
    )
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME if study is None else f"{NAME}, {study}",
        sections=[_parameters(metrics), _settings(ranked_by), _curves(ranked_by)],
        settings=workspaces.WorkspaceSettings(max_runs=100),
        runset_settings=runs,
    )


def _parameters(metrics: list[str]) -> Section:
    """Figures 2 to 9: each metric against trainable parameters, and qubits, and time."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import ScatterPlot, SummaryMetric

    names = {metric: metric for metric in metrics}
    names |= {"qubits": "n_qubits", "seconds of training": "train_seconds"}
    panels: list[Any] = [
        ScatterPlot(
            title=f"{title} against trainable parameters",
            x=SummaryMetric(_SIZE), y=SummaryMetric(name), log_x=True,
            running_ymin=name in metrics,
        )
        for title, name in names.items()
    ]  # fmt: skip
    return workspaces.Section(name="Parameters", panels=panels, is_open=True)


def _settings(metric: str) -> Section:
    """Figure 4: rank and depth; and the ansatz, shots and noise of Figures 7 to 9."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import BarPlot, Config, ScatterPlot, SummaryMetric

    y = SummaryMetric(metric)
    panels: list[Any] = [
        ScatterPlot(title=f"{metric} against {key}", x=Config(key), y=y)
        for key in ("peft.r", "qpa.n_layers", "qpa.n_mlp")
    ]
    panels += [
        BarPlot(
            title=f"{metric} by {key}",
            metrics=[y], groupby=Config(key), groupby_rangefunc="stddev",
        )
        for key in ("peft.method", "qpa.variant", "qpa.ansatz", "qpa.shots", "qpa.noise")
    ]  # fmt: skip
    return workspaces.Section(name="Settings", panels=panels, is_open=True)


def _curves(metric: str) -> Section:
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import LinePlot

    names = ("train/loss", "validation/loss", f"validation/{metric}")
    panels: list[Any] = [LinePlot(title=name, x="trainer/global_step", y=[name]) for name in names]
    return workspaces.Section(name="Curves", panels=panels, is_open=True)


def save(entity: str | None, project: str, study: str | None, task: str = "causal_lm") -> str:
    """Create the workspace in W&B and return its address.

    Raises:
        InputError: no key is set up, or W&B cannot be reached or refuses.
    """
    import wandb

    from qpa_exp.runs.loggers.wandb import is_offline

    if is_offline():
        raise InputError(
            "The dashboard lives in W&B, where this machine is offline: log in with wandb login, "
            "send the runs with wandb sync, then start this again."
        )
    try:
        owner = entity or str(wandb.Api().default_entity)
        return str(build(owner, project, study, task).save().url)
    except InputError:
        raise
    except Exception as error:  # requests, gql and W&B have errors of their own
        raise InputError(f"W&B did not take the dashboard: {one_line(error)[:300]}") from error
