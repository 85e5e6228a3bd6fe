"""What the words of a caption were read from: frames and places of the clip, as data, as pictures and as a page."""

from swinbert.captioning.explaining.explanation import Explanation, Word, explain
from swinbert.captioning.explaining.words import RunnerUp

__all__ = ["Explanation", "RunnerUp", "Word", "explain"]
