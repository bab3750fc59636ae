"""Report: artifacts in, tables, figures and one page out. Pure: nothing here runs a model."""
