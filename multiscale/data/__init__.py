"""Patches with a scale, in two halves that meet in a file of patches.

Making a set: ``prepare`` and ``collect`` find pictures (``finding``, ``extents``, ``remote``), read them at any size (``vips``,
``pictures``, ``tilings``, ``fetching``), draw places (``cropping``), cut (``cutting``), and write (``container``).

Reading it in training: ``container`` opens it (``source``, ``archive``), ``patches`` decodes, ``sampling`` draws batches.
"""
