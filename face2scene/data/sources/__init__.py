"""Where the images of a set come from."""
