"""transformers' ``Trainer``: what it says while it is made and trains, and what loading the model says."""

import cases

from tools.common import Finding, distinct, each, heard, listen, train


def look(setup: cases.SetUp) -> list[Finding]:
    ended = train(cases.trainer(setup))
    return distinct(heard) + ended


if __name__ == "__main__":
    listen()
    each(look)
