"""Ontologies as graphs: the text form of paths, masks of frequent edges, graphs from paths, pruning, files."""
