"""Prepare: from a recipe to encoded rows on disk, split and deduplicated, with a ledger of all that was left out."""
