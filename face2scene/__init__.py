"""Face2Scene: the face in a damaged photo measures the damage, and the whole photo is restored with it."""

__version__ = "0.1.0"
