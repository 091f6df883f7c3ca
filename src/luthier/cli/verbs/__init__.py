"""The verbs, a file for each panel of ``luthier --help``: parsing and printing only."""
