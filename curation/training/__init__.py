"""What a training loop needs to train on a part of an archive, and on another part later.

Nothing here knows a model, and only the modules that say so import Ray.
"""
