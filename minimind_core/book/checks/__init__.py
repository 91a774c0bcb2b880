"""Checks of what a reader writes in an exercise."""
