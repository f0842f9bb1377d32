"""A module for each command that takes options of the configuration; `face2scene NAME` runs it."""
