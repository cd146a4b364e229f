"""Prints what became of the fuzzed inputs at the end of a run, also where several processes shared them."""


def pytest_terminal_summary(terminalreporter):
    """One line for each kind of input: how many, and how many of them were used or refused with one sentence."""
    reports = [r for group in terminalreporter.stats.values() for r in group if getattr(r, "when", "") == "call"]
    rows = [properties for r in reports if "inputs" in (properties := dict(r.user_properties))]
    for row in rows:
        line = "{kind:12} {inputs:6} inputs {used:6} used {refused:6} refused, slowest {slowest:.1f} s".format(**row)
        terminalreporter.write_line(f"fuzz: {line}")
