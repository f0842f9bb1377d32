"""Parameters, arithmetic, memory and time of the compared methods."""
