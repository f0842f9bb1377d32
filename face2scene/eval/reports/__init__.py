"""Pages and figures: the quickstart's report, galleries, charts."""
