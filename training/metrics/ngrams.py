"""BLEU, ROUGE-L and CIDEr-D of tokenised captions, as in the COCO caption tools.

The reference implementations are `bleu/bleu_scorer.py`, `rouge/rouge.py` and `cider/cider_scorer.py` of pycocoevalcap
1.2. A tokenised caption is a string of tokens separated by single spaces, as `ptb_tokenize` returns it. Candidates and
their lists of references are in the same order.
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

MAX_N = 4
NGram = tuple[str, ...]
Vector = tuple[dict[NGram, float], list[float], int]


@functools.lru_cache(maxsize=1024)  # captions of dense videos are compared with many others
def ngrams(caption: str) -> Counter[NGram]:
    """Counts the n-grams of 1 to 4 tokens; callers share the result, and do not change it."""
    tokens = caption.split()
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to BLEU-4 of the corpus, (4,), and of each candidate, (candidates, 4).

    Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002: modified n-gram
    precision (section 2.1), and the brevity penalty (section 2.2) for the reference length closest to the candidate's,
    of two equally close ones the shorter. Equal to `Bleu(4)` of pycocoevalcap, which adds a tiny number to each
    precision, so that a precision of 0 does not make the product 0.
    """
    statistics = []
    for candidate, its_references in zip(candidates, references, strict=True):
        counts, length = ngrams(candidate), len(candidate.split())
        allowed: Counter[NGram] = Counter()
        for reference in its_references:
            allowed |= ngrams(reference)
        matched = [0] * MAX_N
        for ngram, count in (counts & allowed).items():
            matched[len(ngram) - 1] += count
        lengths = [len(reference.split()) for reference in its_references]
        closest = min(lengths, key=lambda reference_length: (abs(reference_length - length), reference_length))
        statistics.append([length, closest, *matched, *(max(0, length - n) for n in range(MAX_N))])
    corpus = [sum(column) for column in zip(*statistics, strict=True)]
    return _bleu(corpus), [_bleu(row) for row in statistics]


def _bleu(statistics: Sequence[int]) -> list[float]:
    length, reference_length = statistics[:2]
    matched, possible = statistics[2 : 2 + MAX_N], statistics[2 + MAX_N :]
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    brevity_penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(MAX_N):
        product *= (matched[n] + 1e-15) / (possible[n] + 1e-9)
        scores.append(product ** (1 / (n + 1)) * brevity_penalty)
    return scores


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> list[float]:
    """ROUGE-L of each candidate: the F-measure of the longest common subsequence. The corpus score is the mean.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, equations 2 to 4. Equal to `Rouge()` of
    pycocoevalcap, which combines the best precision and the best recall over the references.
    """
    scores = []
    for candidate, its_references in zip(candidates, references, strict=True):
        # Not split(): the reference implementation counts an empty caption as one empty token.
        tokens, reference_tokens = candidate.split(" "), [reference.split(" ") for reference in its_references]
        common = [_common_subsequence(tokens, other) for other in reference_tokens]
        precision = max(length / len(tokens) for length in common)
        recall = max(length / len(other) for length, other in zip(common, reference_tokens, strict=True))
        weighted = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / weighted if weighted else 0.0)
    return scores


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if token == other else max(row[j], row[j - 1])
    return row[-1]


class CiderD:
    """CIDEr-D against the references of a fixed set of clips.

    Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015: tf-idf vectors of n-grams
    (equation 1), their clipped cosine similarity and a Gaussian penalty on the difference in length (equations 4, 5).
    Equal to `Cider()` of pycocoevalcap, which prints it as "CIDEr" and measures the length of a caption in bigrams.

    Args:
        references: clip -> its tokenised references. They give the document frequencies, where a document is a clip.
            With a single clip every score is 0, since every n-gram is in every document.
        sigma: the standard deviation of the penalty, in tokens.

    Raises:
        ValueError: there are no clips, or a clip has no references.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], sigma: float = 6.0):
        if not references or not all(references.values()):
            raise ValueError("CIDEr-D needs at least one clip, and at least one reference for each clip.")
        self.references = references
        self.sigma = sigma
        self.document_frequency: Counter[NGram] = Counter()
        for captions in references.values():
            self.document_frequency.update(set().union(*map(ngrams, captions)))
        self.log_documents = math.log(len(references))

    def __call__(self, candidates: Sequence[str], clips: Sequence[str]) -> list[float]:
        """Scores (0 to 10) of tokenised candidates against the references of their clips, which may be repeated."""
        vector = functools.cache(self._vector)
        vectors = {clip: [vector(caption) for caption in self.references[clip]] for clip in set(clips)}
        return [self._score(vector(caption), vectors[clip]) for caption, clip in zip(candidates, clips, strict=True)]

    def _score(self, candidate: Vector, references: Sequence[Vector]) -> float:
        vector, norms, length = candidate
        total = 0.0
        for reference_vector, reference_norms, reference_length in references:
            products = [0.0] * MAX_N
            for ngram, weight in vector.items():
                other = reference_vector.get(ngram, 0.0)
                products[len(ngram) - 1] += min(weight, other) * other
            penalty = math.exp(-((length - reference_length) ** 2) / (2 * self.sigma**2))
            for product, norm, reference_norm in zip(products, norms, reference_norms, strict=True):
                if product:
                    total += penalty * product / (norm * reference_norm)
        return 10 * total / MAX_N / len(references)

    def _vector(self, caption: str) -> Vector:
        """The tf-idf weights of the n-grams, the norm of the weights for each n, and the number of bigrams."""
        vector, squares, bigrams = {}, [0.0] * MAX_N, 0
        for ngram, count in ngrams(caption).items():
            weight = count * (self.log_documents - math.log(max(1, self.document_frequency[ngram])))
            vector[ngram] = weight
            squares[len(ngram) - 1] += weight**2
            bigrams += count if len(ngram) == 2 else 0
        return vector, [math.sqrt(square) for square in squares], bigrams
