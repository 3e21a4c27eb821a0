"""The figures of `m7b bench`: what was measured, its statistics, its shapes on paper. Runs no model."""
