"""Measure accuracy on labelled images, compare it with the published figures, and show what a network looks at."""
