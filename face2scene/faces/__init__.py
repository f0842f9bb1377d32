"""Faces: found in an image, recognised, brought into a standard pose and put back."""
