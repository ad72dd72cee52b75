"""Tables and pictures from what was trained."""
