"""Programs that run in other interpreters; they import nothing of this package."""
