"""What users point at -> numbered images and, where there are any, their labels. One reader for all commands.

The rules are in ``docs/data.md``. `source` finds the shards, `shards` reads them, `labels` decides classes and splits,
and `splits` makes the sets for a training.
"""
