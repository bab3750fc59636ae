"""Paper: a run's artifacts as the named tables and figures of the paper, its claims, and one page."""
