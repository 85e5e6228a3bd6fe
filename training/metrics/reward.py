"""CIDEr-D as a reward: made once of a training set's references, then given batches of raw captions."""

from collections.abc import Mapping, Sequence

from swinbert.training.metrics.ngrams import CiderD
from swinbert.training.metrics.ptb_tokenizer import ptb_tokenize


class CiderDReward:
    """CIDEr-D of captions against the references of their clips, with document frequencies of all clips.

    A reward does not depend on the other captions of a batch.

    Args:
        references: clip -> its reference captions, of the whole training set.

    Raises:
        ValueError: a clip without references, or no clip.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]):
        self._cider_d = CiderD({clip: tokenize_each(captions) for clip, captions in references.items()})

    def __call__(self, captions: Sequence[str], clips: Sequence[str]) -> list[float]:
        """Rewards, 0 to 10, in the order of the captions; a clip may come several times.

        Raises:
            KeyError: a clip that was not among the references.
        """
        return self._cider_d(tokenize_each(captions), clips)


def tokenize_each(captions: Sequence[str]) -> list[str]:
    """Tokens of captions that know nothing of each other."""
    return [ptb_tokenize([caption])[0] for caption in captions]
