"""Running code that a model wrote: apart from this process, with limits, and without a network where that can be had."""
