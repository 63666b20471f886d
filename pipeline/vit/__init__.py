"""Run models on some of an image's patches."""
