"""Face2Scene: the face in a degraded photo measures the degradation, and the whole photo is restored with it."""

__version__ = "0.1.0"
