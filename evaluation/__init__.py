"""A checkpoint and a labelled set -> accuracy with its interval, next to the published figure; and why it said so."""
