"""How much of a step the data take, in words: drawing samples and degrading them."""

MUCH = 0.25
"""Share of the time of a step from which on the data are worth a look."""
LEAST_ITERATIONS = 50  # of a run, before its share says something


def data_words(share: float, by_plugin: dict[str, float]) -> str:
    """The share of a step that the data take, by plugin, with the remedy when it is much.

    :param share: of all plugins together, 0..1, and of each in `by_plugin`.
    """
    told = sorted(by_plugin.items(), key=lambda one: -one[1])
    parts = ", ".join(f"{name} {part:.0%}" for name, part in told if part >= 0.005)
    line = f"the data take {share:.0%} of a step" + (f": {parts}" if parts else "")
    if share < MUCH or not told:
        return line
    return (
        f"{line}. The networks wait for them: choose cheaper options of {told[0][0]}, or prepare "
        "its images once, as files"
    )


def told_at_the_end(sampling: float, stepping: float, iterations: int, recipe: object) -> str:
    """A line for the end of a run in which the data took much of the steps' time, else "".

    :param sampling: seconds in `sample_batch`, of the `stepping` seconds of all iterations.
    """
    share = sampling / max(stepping, 1e-9)
    if iterations < LEAST_ITERATIONS or share < MUCH:
        return ""
    return (
        f"the data took {share:.0%} of the steps' time; `ganlab bench {recipe}` shows which plugin "
        "takes it, and what helps"
    )
