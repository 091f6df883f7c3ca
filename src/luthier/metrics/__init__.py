"""Metrics of generated text, registered with ``@metric``, and the quantities that come from losses."""
