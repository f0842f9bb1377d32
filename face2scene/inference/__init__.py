"""From a photo and references to a restored photo."""
