"""How far a result may lie from the float64 reference: one function for all tests."""

import numpy as np


def tolerance(dtype, T, K, rows=1):
    """(rtol, atol) of a sum of K products carried over T steps and added up over `rows` rows.

    A sum of K rounded products is off by K·eps at worst and sqrt(K)·eps as a rule; T steps of a
    net that does not amplify add up to sqrt(T) of that, a gradient's sum over rows to
    sqrt(rows) of it.  The factor 16 covers what is worse than the rule.  The nets drawn by
    `strategies` do not amplify: where they would be chaotic no tolerance holds.  atol is meant
    relative to the largest element.
    """
    eps = np.finfo(dtype).eps
    error = 16 * eps * np.sqrt(K) * np.sqrt(1 + T) * np.sqrt(rows)
    return error, error
