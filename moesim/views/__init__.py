"""Results as people look at them: reports, charts, timelines and framework commands."""
