"""Face detection, alignment, pose, identity, and matching with reference photos."""
