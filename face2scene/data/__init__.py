"""Data: how InScene sets are built, what one record holds, and how trainings read them."""
