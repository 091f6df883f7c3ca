"""What terminal, notebook and pages share: text made safe, the look, and how findings are shown."""
