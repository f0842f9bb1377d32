"""Faces: found in a picture, recognised, brought into a standard pose and put back."""
