"""Read data sets for all commands: folders, lists, tables, archives and stores become numbered images with labels.

The rules are in ``docs/data.md``. `source` finds the shards, `shards` reads them, `labels` decides classes and splits,
and `splits` makes the sets for a training.
"""
