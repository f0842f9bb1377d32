"""Third-party face detectors, landmark and identity networks."""
