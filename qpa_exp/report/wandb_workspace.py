"""The paper's panels as a W&B workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qpa_exp.errors import InputError, one_line
from qpa_exp.report.analysis import METRICS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "QPA: the paper's panels"


def build(entity: str, project: str, study: str | None) -> Workspace:
    """The workspace, not saved anywhere yet.

    Args:
        entity: a W&B user or team.
        project: of ``logger.project``.
        study: show the runs of this study alone, by the group that a sweep gives them.

    Raises:
        InputError: the package that makes workspaces is not installed.
    """
    try:
        from wandb_workspaces import workspaces
    except ImportError as error:
        raise InputError("The dashboard needs: pip install 'qpa-exp[sweeps]'.") from error
    runs = workspaces.RunsetSettings(
        filters=[] if study is None else f"Group == '{study}'",
        pinned_columns=[f"summary:{metric}" for metric in (*METRICS, "trainable_params")],
    )
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME if study is None else f"{NAME}, {study}",
        sections=[_results(), _settings(), _curves()],
        settings=workspaces.WorkspaceSettings(max_runs=100),
        runset_settings=runs,
    )


def _results() -> Section:
    """Figures 2 to 9: each perplexity against trainable parameters, and qubits."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import ScatterPlot, SummaryMetric

    size = SummaryMetric("trainable_params")
    panels: list[Any] = [
        ScatterPlot(
            title=f"{metric} against trainable parameters",
            x=size, y=SummaryMetric(metric), log_x=True, running_ymin=True,
        )
        for metric in METRICS
    ]  # fmt: skip
    panels.append(
        ScatterPlot(
            title="qubits against trainable parameters",
            x=size, y=SummaryMetric("n_qubits"), log_x=True,
        )
    )  # fmt: skip
    panels.append(
        ScatterPlot(
            title="seconds of training against trainable parameters",
            x=size, y=SummaryMetric("train_seconds"), log_x=True,
        )
    )  # fmt: skip
    return workspaces.Section(name="Parameters", panels=panels, is_open=True)


def _settings() -> Section:
    """Figure 4: rank and depth; and the ansatz, shots and noise of Figures 7 to 9."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import BarPlot, Config, ScatterPlot, SummaryMetric

    perplexity = SummaryMetric("perplexity")
    scatters = [
        ScatterPlot(title=f"perplexity against {key}", x=Config(key), y=perplexity)
        for key in ("peft.r", "qpa.n_layers", "qpa.n_mlp")
    ]
    bars = [
        BarPlot(
            title=f"perplexity by {key}",
            metrics=[perplexity], groupby=Config(key), groupby_rangefunc="stddev",
        )
        for key in ("peft.method", "qpa.variant", "qpa.ansatz", "qpa.shots", "qpa.noise")
    ]  # fmt: skip
    return workspaces.Section(name="Settings", panels=[*scatters, *bars], is_open=True)


def _curves() -> Section:
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import LinePlot

    names = ("train/loss", "validation/loss", "validation/perplexity")
    panels: list[Any] = [LinePlot(title=name, x="trainer/global_step", y=[name]) for name in names]
    return workspaces.Section(name="Curves", panels=panels, is_open=True)


def save(entity: str | None, project: str, study: str | None) -> str:
    """Create the workspace in W&B and return its address.

    Raises:
        InputError: no key is set up, or W&B cannot be reached or refuses.
    """
    import wandb

    from qpa_exp.runs.loggers import _is_offline

    if _is_offline():
        raise InputError(
            "The dashboard lives in W&B, where this machine is offline: log in with wandb login, "
            "send the runs with wandb sync, then start this again."
        )
    try:
        owner = entity or str(wandb.Api().default_entity)
        return str(build(owner, project, study).save().url)
    except InputError:
        raise
    except Exception as error:  # requests, gql and W&B have errors of their own
        raise InputError(f"W&B did not take the dashboard: {one_line(error)[:300]}") from error
