"""The line that copying would give: a baseline without a model for the completion of lines."""

from __future__ import annotations

_MOST_LINES = 8


def copied_line(prompt: str) -> str:
    """The line that followed, where the last lines of a prompt stood before in it; empty where none of them did.

    The place with the most equal lines before it counts, of several the last. White space round lines does not count.

    Args:
        prompt: Context and prefix, up to the line that is asked for.
    """
    lines = [line.strip() for line in prompt.rstrip().split("\n")]
    visible = [line for line in lines if line]
    if len(visible) < 2:
        return ""
    best, found = 0, ""
    for place in range(len(visible) - 2, -1, -1):
        if visible[place] != visible[-1]:
            continue
        equal = 1
        while equal < min(_MOST_LINES, place + 1) and visible[place - equal] == visible[-1 - equal]:
            equal += 1
        if equal > best:
            best, found = equal, visible[place + 1]
            if best == _MOST_LINES:
                break
    return found
