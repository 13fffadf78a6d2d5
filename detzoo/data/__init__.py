"""The only room that knows files, ragged lists and the data's own ids.

readers, made   -> data sets on disk, from others' annotations or made by detzoo
catalog         -> opens them by name
records         -> what a record is
augment, compose, objects, proposals, pipeline, geometry -> from records to batches
"""
