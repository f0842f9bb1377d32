"""How InScene sets are built: stages, filters, grouping, reports."""
