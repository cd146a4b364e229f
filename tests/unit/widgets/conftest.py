"""A predictor that follows words, for the tests of this folder."""

import copy

import numpy as np
import pytest


@pytest.fixture(scope="session")
def Discs(Discs):
    """Discs that are wider by a pixel for each letter of the words; "absent" in them says that there is nothing."""

    class Worded(Discs):
        def predict(self, *args, words=None, **options):
            named = copy.copy(self)
            named.radius += len(words or "")
            found = super(Worded, named).predict(*args, **options)
            found.presence = None if words is None else np.array([0.2 if "absent" in words else 0.9])
            return found

        def segment(self, words):
            """Two discs."""
            height, width = self.image.shape[:2]
            points = np.array([[width // 4, height // 2], [width - width // 4, height // 2]])
            return self.predict(points, np.array([1, 1]), words=words)

    return Worded
