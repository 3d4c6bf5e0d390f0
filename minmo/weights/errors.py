"""What can go wrong with weights, in words that say how to go on."""


class WeightsError(Exception):
    """Weights cannot be fetched, converted or loaded; the message says why and what to do."""


class AbsentWeightsError(WeightsError):
    """There are none: nobody has fetched, imported or trained them here."""
