"""The catalogue of silent failures by number, and why some of its entries are not planted."""

from luthier.check.catalogue import ENTRIES as ENTRIES

# What the design makes impossible in a run of Luthier, and the test that proves it.
PREVENTED = {
    4: (
        "every check is run against its planted defects, and one that fails itself has caught none",
        "tests/faults/test_planted.py",
    ),
    11: ("what is trained is told by spans, never found by searching ids", "tests/property/test_encoding.py"),
    26: (
        "the ledger counts every record and row that is dropped, by reason",
        "tests/property/test_ledger.py",
    ),
    28: (
        "a recipe refuses keys that it does not know, and names the nearest",
        "tests/faults/test_bad_input.py",
    ),
    29: ("a run reads every option of its recipe", "tests/e2e/test_options_are_read.py"),
    38: ("evaluation is one weighted mean over all tokens", "tests/property/test_invariance.py"),
    78: ("the order of rows depends on seed and position alone", "tests/faults/test_kill.py"),
    80: ("loss and gradients do not depend on how rows are grouped", "tests/property/test_invariance.py"),
    81: ("golden loss curves, and exact versions in a lock file", "tests/golden/test_curves.py"),
}

# What no check here can see, and why.
OUT_OF_REACH: dict[int, str] = {
    49: "models of images are not trained here",
}
