"""Third-party weights and photos by name: the catalogue, downloads, conversions."""
