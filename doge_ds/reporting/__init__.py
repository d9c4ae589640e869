"""WING 5, run directories to one HTML page."""
