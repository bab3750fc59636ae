"""Report: artifacts as tables, figures and one page. It runs no model."""
