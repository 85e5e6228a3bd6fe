"""The tokenizer of the COCO caption tools in Python: PTB tokens, lower case, without punctuation.

The tools run a Java program, the `PTBTokenizer` of Stanford CoreNLP 3.4.1 (`pycocoevalcap.tokenizer`). The rules here
were derived from its output for millions of short texts: every BMP character in a dozen contexts, all short strings of
letters, digits, marks and ASCII punctuation, all words of up to four letters before a full stop, and word lists.

The tokens are equal in all texts that were tried (`tests/test_metrics.py`): words of all scripts, contractions,
hyphens, numbers, currencies, abbreviations, initials, ellipses, quotation marks, brackets, emoticons, handles and
hashtags, entities and tags. Addresses of pages, mail and files are covered in their usual forms only. A line separator
inside a caption is a space here; in the tools, those other than "\\n" shift all later captions of the set by one.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from swinbert.training.metrics.ptb_characters import DIGITS, LETTERS, MARKS, SYMBOLS

# Tokens that the COCO tools remove. They list brackets as "-LRB-", which never matches: tokens are lower case by then.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

TWO_WORDS = ("cannot", "gonna", "gotta", "wanna", "gimme", "lemme")  # split after three letters
# Abbreviations whose full stop is part of the token, whatever follows.
TITLES = (
    "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen "
    "gov govs hon insp invt jos lieut lt maj mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof profs pvt rep "
    "reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"
)
# Abbreviations likewise, except that a letter directly after the full stop starts another token ("jan.x", not "dr.x").
ENDINGS = (
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga "
    "inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc ppte pptes "
    "ppty pptys pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)
CAPITAL_ENDINGS = "Az La Pa Ark Del Ill Ore Tex Mass Miss Wash"  # capitalised or in capitals only
BEFORE_NUMBERS = "ca no op pp art fig nos figs prop"
# Before one of these, a full stop after a single letter ends the sentence ("vitamin C. The").
SENTENCE_STARTS = (
    "A An As At He If In It So We But Her Now One Our She The Yet You Here Last Many More Once Some Such That Then "
    "They This What When About According Additionally After Earlier However Other Since Their There These While"
)
FILE_TYPES = (
    "c h x gz pl ps py bat bmp cgi cpp dll doc exe gif htm jar jpg mov pdf php png ppt sql tar txt wav xml zip docx "
    "html java jpeg"
)


def _any(words: str) -> str:
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


SOFT_HYPHEN = "\xad"
LETTER, MARK, DIGIT = f"A-Za-z{LETTERS}", MARKS, f"0-9{DIGITS}"
ALNUM, ANY = f"[{LETTER}{DIGIT}]", f"[{LETTER}{MARK}{DIGIT}{SOFT_HYPHEN}]"
END = f"(?!{ANY})"
WORD = f"(?:{SOFT_HYPHEN}*[{DIGIT}]+[{LETTER}][{LETTER}{DIGIT}]*|{SOFT_HYPHEN}*[{LETTER}{MARK}]{ANY}*)"
DOTTED = rf"{SOFT_HYPHEN}*[{LETTER}{MARK}]{ANY}*(?:[.!?]{SOFT_HYPHEN}*[{LETTER}{MARK}]{ANY}*)+"
CURLY = "(?:[’\x92]|&apos;)"
APOSTROPHE = f"(?:'|{CURLY})"
QUOTE = f"(?:[`‘\x91]|{APOSTROPHE})"
FRENCH = f"[dloDLO]{QUOTE}{ALNUM}{{2,}}"  # or Irish
PART = f"[{LETTER}{DIGIT}{SOFT_HYPHEN}]+"
VOWEL = "[aeiouyAEIOUY]"
INITIALS = r"[A-Za-z](?:\.[A-Za-z])+\."
SEGMENT = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
NAME = "[A-Za-z][A-Za-z0-9_:.-]*"  # of a tag
TAG = rf"(?:<{NAME}(?:[ \t]+{NAME}(?:=\"[^\"]*\"|='[^']*')?)*[ \t]*/?>|</{NAME}>|<[!?][A-Za-z-][^>\n]*>)"
BLANK = " \t\n\r\f\v"
PATH = rf"/[^{BLANK}\"<>|()]+[^{BLANK}\"<>|(){{}}.!?,-]"
HOST = rf"(?:[^{BLANK}\"<>|().!?,$'/:;=[\]\\^_`{{}}@A-Z0-9-]+\.)+(?i:com|org|net|edu)"
PLAIN_QUOTES = {quote: "`" for quote in "‘‛‹\x91"} | {quote: "'" for quote in "’›\x92"}
PLAIN_QUOTES |= {quote: "``" for quote in "“«\x93"} | {quote: "''" for quote in "”»\x94"}
NAMES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "¢": "cents", "£": "#"}
NAMES |= {"€": "$", "\x80": "$", "¤": "$", "₠": "$", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
NAMES |= {"…": "...", "\x85": "..."}
ENTITIES = {"&lt;": "<", "&gt;": ">", "&amp;": "&", "&nbsp;": "", "&mdash;": "--", "&ndash;": "--", "&md;": "--"}


def _plain(token: str) -> str:
    """Replaces curly apostrophes by ASCII ones."""
    return re.sub(CURLY, "'", token).replace("‘", "`").replace("\x91", "`")


def _brackets(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def _joined(token: str) -> str:
    """Replaces spaces inside a token by no-break spaces, and removes soft hyphens."""
    return _brackets(token.replace(" ", "\xa0").replace(SOFT_HYPHEN, ""))


def _entity(token: str) -> str:
    return {"&quot;": "''", "&apos;": "'"}.get(token, ENTITIES.get(token.lower(), token))


# A pattern of a token, and the function that gives its text (`None`: unchanged). At each place the longest match wins,
# of equally long ones the first. If the pattern has a group, the token is the group, and the rest is only context.
Rule = tuple[str, Callable[[str], str] | None]

WORDS: list[Rule] = [
    # Words that are two tokens, and contractions.
    (rf"(?i:{'|'.join(TWO_WORDS)}){END}", lambda token: f"{token[:3]} {token[3:]}"),
    (rf"([A-Za-z{SOFT_HYPHEN}]*[A-MO-Za-mo-z]{SOFT_HYPHEN}*)[nN]{QUOTE}[tT]", _joined),
    (rf"(?i:n{QUOTE}t)", _plain),
    (rf"({DOTTED}|{WORD}){APOSTROPHE}(?i:[smd]|re|ve|ll)", _joined),
    (WORD, _joined),
    # Apostrophes that stay within a word: o'clock, d'arcy, Hawai'i.
    (
        rf"(?i:[dlj]{APOSTROPHE}|(?:ol|somethin|dunkin){APOSTROPHE}(?![smd])|(y{APOSTROPHE})(?![smd])[{LETTER}])",
        None,
    ),
    (rf"{FRENCH}|[nA-HJ-XZ]{QUOTE}[{LETTER}]{{2,}}", None),
    (rf"[{LETTER}]+{VOWEL}{QUOTE}[aeiouA-Z][{LETTER}]*", None),
    (
        rf"(?i:c{QUOTE}(?:est|mon)|o{QUOTE}o|e{QUOTE}er|li{QUOTE}l|cap{QUOTE}n|ev{QUOTE}ry|nat{QUOTE}l|s{QUOTE}mores)",
        None,
    ),
    # Abbreviations behind which a letter starts a word.
    (rf"((?i:{_any(ENDINGS)})\.)(?:-[0-9]|\S)", None),
    (rf"({_any(CAPITAL_ENDINGS + ' ' + CAPITAL_ENDINGS.upper())}\.)(?:-[0-9]|\S)", None),
    (r"((?i:ph|ed)\.[dD]\.)(?:-[0-9]|\S)", None),
    # Hyphens, underscores, slashes, full stops (names of files among them) and ampersands within a word.
    (rf"(?:{FRENCH}|{PART})(?:-(?:{FRENCH}|{PART}))+", _joined),
    (rf"(?:{FRENCH}|{ALNUM}+)(?:[-_](?:{FRENCH}|{ALNUM}+))+", None),
    (rf"[A-Za-z0-9][A-Za-z0-9.,{SOFT_HYPHEN}]*(?:-(?:{INITIALS}|[A-Za-z0-9]+))+", _joined),
    (rf"{SEGMENT}(?:\\?/{SEGMENT}){{1,2}}", None),
    (rf"{PART}(?:\.{PART})*\.(?i:{_any(FILE_TYPES)})(?=[.,!?\s]|$)", None),
    (DOTTED, _joined),
    (r"[A-Z]+(?:(?:&(?:amp;)?|\+)[A-Z]+)+", lambda token: token.replace("amp;", "")),
    (r"[A-Z]+\$", None),
    (r"(?i:c\+\+|[cf]#)", None),
    # Abbreviations.
    (rf"((?:(?:{FRENCH}|{ALNUM}+)(?:[-_](?:{FRENCH}|{ALNUM}+))*|{DOTTED})\.)[,;:]", None),
    (rf"{INITIALS}|(?i:ph|ed)\.[dD]\.", None),
    (rf"[A-Za-z]\.(?!\s+(?:{_any(SENTENCE_STARTS + ' ' + SENTENCE_STARTS.upper())}|M[rRsS]\.|{TAG})(?:\s|$))", None),
    (rf"(?i:{_any(TITLES + ' ' + ENDINGS)})\.", None),
    (rf"{_any(CAPITAL_ENDINGS + ' ' + CAPITAL_ENDINGS.upper())}\.", None),
    (rf"((?i:{_any(BEFORE_NUMBERS)})\.)\s?[{DIGIT}]", None),
    # Addresses.
    (rf"(?i:https?://[^{BLANK}\"<>|(){{}}]+[^{BLANK}\"<>|(){{}}.!?,-])", None),
    (rf"(?i:www\.(?:[^{BLANK}\"<>|(){{}}.!?,/]+\.)+[A-Za-z]{{2,4}}(?:{PATH})?)", None),
    (rf"(?i:www\.(?:[^{BLANK}\"<>|(){{}}.!?,]+\.)+[A-Za-z]{{2,4}}(?:{PATH})?)", None),
]
NUMBERS: list[Rule] = [
    (
        rf"[+-]?(?:[{DIGIT}{SOFT_HYPHEN}]+(?:[.,:٫٬][{DIGIT}{SOFT_HYPHEN}]+)*|[.,:][{DIGIT}]+(?:[.,:][{DIGIT}]+)*)",
        _joined,
    ),
    (rf"(?:[{DIGIT}]{{1,4}}[- \xa0])?[{DIGIT}]{{1,4}}\\?/[{DIGIT}]{{1,4}}", _joined),
    (r"[0-9]{1,2}[/-][0-9]{1,2}[/-][0-9]{2,4}", None),  # dates
    # Telephone numbers.
    (
        r"(?:\+?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0]|\([0-9]{2,3}\)[ \xa0]?)[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
        _joined,
    ),
]
EITHER: list[Rule] = [
    (rf"{HOST}(?:{PATH})?", None),
    (r"['\-<=>^~x]_['\-<=>^~x]|\(['\-<=>^x~][-._]?['\-<=>^x~]\)", _brackets),  # Eastern emoticons
    (
        rf"<?[A-Za-z0-9][^{BLANK}\xa0\"<>(){{}}|]*@[^{BLANK}\xa0\"<>(){{}}|.]+(?:\.[^{BLANK}\xa0\"<>(){{}}|.]+)*>?",
        None,
    ),  # e-mail
]
MARKS_AND_SIGNS: list[Rule] = [
    (rf"(?:'(?i:[smd]|re|ve|ll)(?![A-Za-z])|{CURLY}(?i:[smd]|re|ve|ll))", _plain),
    (r"('[tT])(?i:is|was)", None),
    (rf"(?i:{APOSTROPHE}(?:em|til|cause|n{APOSTROPHE}|n(?=\s|$)|[0-9][0-9](?=\s|$)|[2-9]0s)|{CURLY}n)", None),
    (rf"[@][A-Za-z_][A-Za-z0-9_]*|@+|#[{LETTER}{MARK}{SOFT_HYPHEN}]+|#+", None),
    (r"[!?]+|\*+|(?:\\\*)+|_+|<<|>>", None),
    (r"\.{3,5}|\.(?: \.){2,3}", lambda token: "..."),
    (r"-+|[–—―\x96\x97]", lambda token: token if len(token) > 4 else "--"),
    (r"[<>]?[:;=][-o*']?(?:[][()@\\{|]|[dpDPO])(?![A-Za-z0-9])", _brackets),
    (TAG, _joined),
    (r"&(?:(?i:lt|gt|amp|nbsp|quot|apos|[mn]dash|md|[aeiou](?:uml|acute|grave))|#[0-9]+);", _entity),
    (r"''|``|[\"']", lambda token: "'"),
    (r"[`‘’“”„‚«»‹›‛\x91-\x94]{1,2}", lambda token: "".join(PLAIN_QUOTES.get(quote, quote) for quote in token)),
    (rf"[!-/:-@\[-_{{-~{SYMBOLS}{re.escape(''.join(NAMES))}]", lambda token: NAMES.get(token, token)),
]

_SIMPLE = re.compile(rf"(?!(?i:{'|'.join(TWO_WORDS)})\b)[A-Za-z]+(?=[,;!?]?(?:[ \n]|$))")
_compiled = [
    [(re.compile(pattern), write) for pattern, write in rules]
    for rules in ([*WORDS, *NUMBERS, *EITHER], [*MARKS_AND_SIGNS, *NUMBERS, *EITHER])
]
_WORD_START = re.compile(f"[{LETTER}{MARK}{DIGIT}{SOFT_HYPHEN}]")


def ptb_tokenize(captions: Iterable[str]) -> list[str]:
    """Tokenises captions as the COCO tools do. Each result is a string of tokens separated by single spaces.

    Like the tools, this tokenises all captions as one text, in which the start of the next caption can decide whether
    a full stop after a single letter is part of its token ("vitamin C."). Pass captions one by one to avoid that.
    """
    text = "\n".join(" ".join(re.split("[\n\r\v\f\u2028\u2029]", caption)) for caption in captions)
    lines: list[list[str]] = [[]]
    for token in _tokens(text):
        if token == "\n":
            lines.append([])
        else:
            lines[-1].append(token.lower())
    tokens = (" ".join(line).rstrip().split(" ") for line in lines)  # some rules write two tokens, or none
    return [" ".join(token for token in line if token and token not in PUNCTUATION) for line in tokens]


def _tokens(text: str) -> Iterator[str]:
    """Yields the tokens before lower-casing, and "\n" at the end of each line but the last."""
    place = 0
    while place < len(text):
        if match := _SIMPLE.match(text, place):
            place = match.end()
            yield match[0]
            continue
        if text[place] == "\n":
            yield "\n"
        if text[place] in BLANK:
            place += 1
            continue
        longest, end, write = None, place, None
        for pattern, its_write in _compiled[0 if _WORD_START.match(text, place) else 1]:
            match = pattern.match(text, place)
            if match and match.end() > end:
                longest, end, write = match, match.end(), its_write
        if longest is None:  # an unknown character
            place += 1
            continue
        token = longest[longest.lastindex or 0]
        place += len(token)
        yield write(token) if write else token
