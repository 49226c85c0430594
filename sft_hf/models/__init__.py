"""Architectures of ours: a file each, with config and model classes that the Auto classes know."""
