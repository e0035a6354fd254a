"""What ``python -m qpa_exp.benchmark`` measures: circuits, training steps, memory, growth."""
