"""Makes tables, figures and pages of run directories."""
