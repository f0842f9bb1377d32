"""Face detectors, landmark and identity networks of third parties."""
