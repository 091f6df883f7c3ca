"""transformers' ``Trainer``: what it says while it is made and trains, and what loading the model says."""

import cases

from tools.common import distinct, each, heard, listen, train


def look(setup: cases.SetUp) -> list[dict[str, str]]:
    if error := train(cases.trainer(setup)):
        heard.append({"severity": "error", "text": error})
    return distinct(heard)


if __name__ == "__main__":
    listen()
    each(look)
