"""Random captions that are difficult to tokenise: sentences with difficult pieces inserted, joined and shuffled.

    python tests/caption_fuzz.py 2000 SEED      # prints captions whose tokens differ from those of the Java tokenizer
    python tests/caption_fuzz.py store          # writes the fixture: captions with the tokens of the Java tokenizer

Both need the COCO tools (Java and pycocoevalcap). Control characters and unusual forms of URLs are not generated, since
captions do not hold them.
"""

import json
import random
import sys
from pathlib import Path

FIXTURE = Path(__file__).parent / "fixtures" / "ptb_tokens.json"

SENTENCES = [
    "a man is riding a horse on the beach",
    "two women play tennis while a crowd cheers",
    "the boy jumps over a fence and the dog follows him",
    "a chef is chopping onions and garlic in a pan",
    "someone shows how to fold a paper plane",
    "an old woman sings in front of a church",
    "a cartoon cat runs away from a mouse",
    "people are dancing in the street at night",
    "the player scores and the fans go wild",
    "a girl cannot open the box",
]
PIECES = {
    "contractions": """can't won't don't isn't they're we've I'm I'd he'll it's IT'S Let's who's y'all ma'am o'clock
        couldn't've
        'tis 'Twas 'em 'til 'cause rock'n'roll fish 'n' chips gonna GOTTA Wanna gimme lemme cannot CANNOT ain't boys'
        kids'
        James's d'Arcy O'Brien l'eau qu'il Hawai'i Mo'Nique dancin' somethin' ol' cap'n c'mon s'mores don’t it’s ’em
        o’clock
        boys’ ‘hello’ “hello” n't 's 'round jack-o'-lantern""",
    "hyphens": """t-shirt T-shirt 10-year-old state-of-the-art mid-air x-ray e-mail half- -ish well--known
        semi---final a-b-c hip-hop
        Jean-Luc 3-on-3 re-enter pre-1990 post-WWII U.S.-based non-U.S. check-in/out""",
    "numbers": """1 2nd 3rd 21st 1,000 1,000,000 3.5 .5 -5 +3 10:30 10:30am 3:00-4:00 1990s '90s '80s '99 90's 1/2 1
        1/2 ½ 2½ 24/7 9/11 12/25/2003
        50% 50-60% 5x 10x10 3D 2-1 #1 No.5 no. 7 1st. 5' 5'6" 5ft 6in. 20° 20°C 4K 555-1234 (555) 123-4567 +44 20
        7946 0958 007 1.2.3""",
    "currency": "$5 $5.50 $1,000 US$20 5$ £10 €20 20€ 5¢ ¥100 $ C$3 $5-a-day $1m",
    "abbreviations": """Mr. Mrs. Dr. St. mr. dr. Jr. vs. vs etc. e.g. i.e. a.m. p.m. U.S. U.K. u.s. USA D.C. Ph.D.
        Inc. Co. Ltd. Jan. Feb.
        Sat. Mt. Ave. no. fig. 3 J.K. Rowling A. B. vitamin C. T.V. tv. ft. lb. approx. Prof. Sgt. Gen. L.A. N.Y. La.
        Miss. art. 5""",
    "addresses": """www.site.com http://site.com/page?x=1 https://t.co/abc youtube.com abc.com/xyz me@mail.com
        clip.mp4 photo.jpg file.txt
        end.Start hello.world www.a-b.org/c_d.html""",
    "emoji": "🏃 😀😀 ❤️ 👍🏽 ♥ ★ :) :-) :( ;) :D :P :-/ <3 XD ^_^ (^_^) >_< T_T o_O -_- :'( =)",
    "marks": """& AT&T R&B a&b &amp; &lt; &quot; + = * ** *** / // and/or he/she w/o a/c \\ | _ a_b __ ~ ^ % @ @user
        #tag #1 @@ ##
        < > << >> <b> </b> <br /> -> => --> <-> C++ c# ( ) (a) (s) [b] {c} ((x)) [sic] ... .... ..... . . . … – — ―
        -- --- « » „x“
        ! !! ?! !?! ??? yes/no a!b what?no , ,, ; : :: " '' `` ` ' ''' © ® ™ ° • · § ¿ ¡ × ÷ ± ² ³ ™""",
    "letters": """café naïve Tōkyō crêpe Zürich El Niño ÀÉÎ ß Straße İstanbul ﬁlm 一个男人 跑步 улица हिन्दी עברית
        العربية ไทย 한국어 かな Ωμέγα
        e\u0301 n\u0303o a\u00adb zero\u200bwidth １２３ ＡＢＣ ①② ٣٤""",
}
MARKS = [*".,,..!?;:'\"()[]{}-/&%$#@*+=<>_~`^|\\’“”–…", "...", "--", "''", "``", " .", " ,", "  ", "\t", "\xa0"]


def random_captions(number: int, seed: int) -> list[str]:
    stream = random.Random(seed)
    # Pieces are separated by blanks; pairs of neighbours make pieces that contain one.
    pieces = [
        [*text.split(), *(" ".join(pair) for pair in zip(text.split(), text.split()[1:], strict=False))]
        for text in PIECES.values()
    ]
    return [_caption(stream, pieces) for _ in range(number)]


def _caption(stream: random.Random, pieces: list[list[str]]) -> str:
    def piece() -> str:
        return stream.choice(stream.choice(pieces))

    kind = stream.random()
    words = stream.choice(SENTENCES).split()
    if kind < 0.15:
        caption = " ".join(words)
    elif kind < 0.65:
        for _ in range(stream.randint(1, 4)):
            words.insert(stream.randint(0, len(words)), piece())
        caption = " ".join(words)
        for _ in range(stream.choice([0, 0, 1, 2])):
            place = stream.randint(0, len(caption))
            caption = caption[:place] + stream.choice(MARKS) + caption[place:]
    elif kind < 0.85:
        caption = "".join(piece() + stream.choice(["", " ", " ", stream.choice(MARKS)]) for _ in range(6))
    else:
        caption = "".join(stream.choices("aabcdeinorstxyABTSIN0123  ..,,''---:;!?/&()_\"@#$%<>`é’—", k=20))
    caption += stream.choice(["", "", ".", ".", " .", "!", "...", "?"])
    return stream.choice([str, str, str, str.capitalize, str.capitalize, str.upper, str.title])(caption)


def java_tokens(captions: list[str]) -> list[str]:
    """Tokenises captions with the COCO tools, as one set."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenised = PTBTokenizer().tokenize({number: [{"caption": caption}] for number, caption in enumerate(captions)})
    return [tokens for (tokens,) in tokenised.values()]


def main() -> None:
    if sys.argv[1:] == ["store"]:
        captions = random_captions(300, seed=3)
        stored = {"captions": captions, "tokens": java_tokens(captions)}
        FIXTURE.write_text(json.dumps(stored, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        return
    from swinbert.training.metrics import ptb_tokenize

    number, seed = map(int, sys.argv[1:])
    captions = random_captions(number, seed)
    for caption, java, ours in zip(captions, java_tokens(captions), ptb_tokenize(captions), strict=True):
        if java != ours:
            print(f"{caption!r}\n  java {java!r}\n  ours {ours!r}")


if __name__ == "__main__":
    main()
