"""The words of the pocket world: topics, things, people, judgements, events.

Knows: English words and which of them praise or blame.  Knows nothing of: sentences, tensors, files.
``grammar.py`` puts the words together; a word added here is in the next pretraining.

Written for this project, from ordinary English; no list was copied.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass

Polar = tuple[tuple[str, ...], tuple[str, ...]]
"""Entries that blame (index 0) and entries that praise (index 1): the index is the label."""


def _split(text: str) -> tuple[str, ...]:
    """Entries of a comma-separated block, in order, each once."""
    return tuple(dict.fromkeys(" ".join(entry.split()) for entry in text.split(",") if entry.strip()))


def _polar(*, bad: str, good: str) -> Polar:
    return _split(bad), _split(good)


@dataclass(frozen=True)
class Group:
    """Nouns that share their adjectives."""

    adjectives: str
    """Key of ``ADJECTIVES``."""
    singular: tuple[str, ...]
    plural: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """One field of life that people write about."""

    name: str
    whole: tuple[str, ...]
    """What the text as a whole is about, singular: "restaurant"."""
    staff: tuple[str, ...]
    """People met there, singular; the plural is made by ``plural_of``."""
    groups: tuple[Group, ...]
    events: Polar
    """Whole clauses, past tense, that say something bad or good."""
    neutral: tuple[str, ...]
    """Whole clauses, past tense, that say nothing about quality."""


# --- judgements ---------------------------------------------------------------------------------------------

ADJECTIVES: dict[str, Polar] = {
    "general": _polar(
        bad="""bad, terrible, awful, horrible, poor, dreadful, disappointing, mediocre, useless, annoying,
        miserable, lousy, pathetic, appalling, abysmal, atrocious, unpleasant, frustrating, inferior,
        unacceptable, ridiculous, shoddy, nasty, shabby, worthless, disastrous, hopeless, dismal, dire,
        weak, underwhelming, unsatisfactory, lacking, second-rate, third-rate, horrid, rotten, wretched,
        ghastly, irritating, rubbish, sad, sorry, shameful, disgraceful, pitiful, substandard, forgettable,
        tiresome, regrettable, dodgy, subpar, grim, horrendous, laughable, off-putting, lamentable, shocking""",
        good="""good, great, wonderful, excellent, lovely, amazing, fantastic, superb, brilliant, perfect,
        delightful, outstanding, impressive, marvellous, splendid, terrific, fabulous, nice, fine, pleasant,
        enjoyable, satisfying, first-rate, remarkable, magnificent, exceptional, admirable, glorious,
        superior, flawless, awesome, charming, beautiful, solid, stunning, incredible, exquisite, sublime,
        top-notch, faultless, likeable, gorgeous, decent, heavenly, phenomenal, stellar, tremendous,
        extraordinary, divine, spectacular, praiseworthy, unforgettable, memorable, refreshing, rewarding,
        worthwhile, special, ideal, cool, sensational, spotless""",
    ),
    "food": _polar(
        bad="""salty, cold, bland, greasy, stale, burnt, soggy, tasteless, overcooked, undercooked, watery,
        rubbery, sour, bitter, chewy, mouldy, lukewarm, flavourless, oily, dry, raw, spoiled, sickly, lumpy,
        unappetising, gristly, limp, inedible, disgusting, tough, slimy, frozen, charred, off, sticky,
        overpriced, tiny, revolting, mushy""",
        good="""tasty, fresh, delicious, juicy, crispy, tender, flavourful, creamy, fragrant, homemade,
        succulent, mouthwatering, seasonal, fluffy, aromatic, hearty, crunchy, rich, yummy, well-seasoned,
        generous, appetising, light, authentic, nourishing, velvety, buttery, scrumptious, wholesome, warm,
        hot, ripe, filling, zesty, golden, moist, finger-licking""",
    ),
    "room": _polar(
        bad="""dirty, noisy, cramped, dark, stuffy, smelly, dusty, filthy, damp, shabby, draughty, gloomy,
        freezing, crowded, musty, grubby, unheated, run-down, worn, dingy, sticky, untidy, chilly,
        cluttered, drab, neglected, stained, mouldy, bleak, grimy, loud, uncomfortable, packed, cheerless,
        uninviting, dilapidated, messy, old-fashioned, broken""",
        good="""clean, cosy, spacious, bright, quiet, comfortable, spotless, airy, warm, tidy, elegant,
        stylish, inviting, roomy, sunny, peaceful, immaculate, well-kept, modern, attractive, tasteful,
        relaxing, snug, luxurious, polished, pretty, homely, calm, restful, comfy, gleaming, welcoming,
        renovated, sparkling, well-lit, picturesque""",
    ),
    "person": _polar(
        bad="""rude, unfriendly, impatient, careless, lazy, grumpy, arrogant, unhelpful, slow, indifferent,
        cold, dismissive, clueless, sloppy, pushy, hostile, inattentive, disrespectful, incompetent,
        unprofessional, bored, sullen, surly, snobbish, condescending, dishonest, unreliable, aggressive,
        forgetful, moody, clumsy, disorganised, bad-tempered, sarcastic, uninterested, uncaring, stubborn,
        greedy, impolite, patronising, unprepared, nasty, sneaky""",
        good="""friendly, kind, helpful, patient, polite, attentive, welcoming, professional, cheerful,
        caring, courteous, honest, warm, knowledgeable, considerate, competent, skilled, thoughtful,
        efficient, respectful, generous, gracious, obliging, funny, charming, sincere, experienced,
        reliable, understanding, talented, gentle, hospitable, dedicated, sympathetic, capable, likeable,
        good-natured, engaging, trustworthy, diligent, lively, quick, smiling, accommodating""",
    ),
    "price": _polar(
        bad="""steep, outrageous, excessive, unfair, inflated, extortionate, overpriced, unreasonable,
        shocking, high, absurd, exorbitant, hidden, ridiculous, expensive, scandalous""",
        good="""fair, reasonable, modest, affordable, sensible, low, generous, honest, attractive, moderate,
        unbeatable, transparent, competitive, cheap, budget-friendly""",
    ),
    "device": _polar(
        bad="""slow, fragile, faulty, clumsy, unreliable, broken, flimsy, sluggish, defective, blurry,
        heavy, glitchy, outdated, dim, scratched, laggy, wobbly, buggy, noisy, bulky, dead, unresponsive,
        cheap-looking, tinny, grainy, awkward, poorly-made, overheating, temperamental, confusing,
        impractical, cracked, useless, loose, brittle, crackly, unstable, complicated, short-lived""",
        good="""fast, sturdy, reliable, sharp, sleek, durable, powerful, responsive, crisp, handy, smooth,
        precise, robust, lightweight, intuitive, long-lasting, well-made, practical, efficient, clever,
        solid, quick, bright, accurate, elegant, snappy, silent, ergonomic, dependable, compact, versatile,
        user-friendly, state-of-the-art, vivid, rock-solid, useful, stable, convenient""",
    ),
    "story": _polar(
        bad="""boring, dull, predictable, confusing, shallow, tedious, silly, clichéd, slow, pointless,
        flat, unconvincing, muddled, lifeless, far-fetched, dreary, forced, stale, repetitive, sentimental,
        wooden, incoherent, corny, overlong, contrived, empty, pretentious, unfunny, uninspired, bland,
        messy, drawn-out, unbelievable, unoriginal, derivative, cheesy, humourless, soulless, tired, hollow,
        implausible, stupid, trite, unwatchable, unreadable, monotonous""",
        good="""gripping, moving, funny, clever, original, touching, thrilling, witty, hilarious, exciting,
        fascinating, believable, inspiring, absorbing, imaginative, vivid, powerful, intelligent, subtle,
        heartfelt, captivating, suspenseful, entertaining, poetic, profound, compelling, fresh, surprising,
        honest, engaging, unpredictable, enchanting, breathtaking, insightful, haunting, tender, graceful,
        riveting, sharp, smart, charming, interesting, dazzling, mesmerising, uplifting""",
    ),
    "sound": _polar(
        bad="""muddy, shrill, deafening, distorted, off-key, harsh, flat, tuneless, monotonous, screechy,
        hoarse, grating, lifeless, tinny, feeble, thin, jarring, boomy, out-of-tune, ear-splitting""",
        good="""clear, warm, melodic, catchy, crisp, rich, lively, soulful, energetic, stirring, velvety,
        powerful, balanced, hypnotic, groovy, tuneful, haunting, electrifying, dreamy, joyful, angelic""",
    ),
    "service": _polar(
        bad="""slow, chaotic, sloppy, late, unreliable, disorganised, careless, delayed, patchy,
        inefficient, endless, confusing, complicated, painful, inadequate, bureaucratic, clumsy, messy,
        tedious, stressful, inconsistent, haphazard""",
        good="""quick, smooth, prompt, reliable, efficient, punctual, careful, swift, seamless, flexible,
        effortless, thorough, hassle-free, speedy, professional, painless, well-organised, attentive,
        simple, easy, convenient, faultless, personal""",
    ),
    "clothes": _polar(
        bad="""itchy, scratchy, flimsy, tight, faded, thin, shapeless, ugly, stiff, torn, baggy,
        see-through, uncomfortable, unflattering, cheap-looking, frayed, wrinkled, saggy, crooked, loose,
        tacky, stained, hideous, dowdy, threadbare""",
        good="""soft, comfortable, stylish, warm, flattering, elegant, cosy, sturdy, pretty, breathable,
        silky, smart, well-cut, fashionable, durable, waterproof, snug, lightweight, handmade, chic, cute,
        supple, colourful, timeless, comfy""",
    ),
    "teaching": _polar(
        bad="""confusing, boring, chaotic, outdated, superficial, dull, disorganised, tedious, vague,
        repetitive, rushed, unclear, irrelevant, dry, patchy, pointless, unstructured, incomprehensible,
        overcomplicated""",
        good="""clear, useful, inspiring, structured, practical, interesting, thorough, stimulating,
        well-prepared, relevant, fun, motivating, helpful, instructive, informative, enlightening,
        organised, hands-on, rewarding, valuable, engaging, eye-opening""",
    ),
    "outdoors": _polar(
        bad="""crowded, muddy, littered, overrun, neglected, polluted, dull, ugly, dreary, smelly, noisy,
        barren, overgrown, unsafe, dangerous, disappointing, windswept, depressing, murky, vandalised,
        soulless, dirty""",
        good="""beautiful, peaceful, scenic, unspoilt, green, breathtaking, quiet, clean, picturesque,
        sunny, idyllic, well-kept, safe, magical, tranquil, enchanting, lush, blooming, pristine, panoramic,
        serene, romantic""",
    ),
    "care": _polar(
        bad="""painful, rushed, careless, useless, unhygienic, unpleasant, botched, ineffective, harmful,
        traumatic, wrong, sloppy, humiliating, unnecessary, agonising, clinical""",
        good="""painless, gentle, thorough, effective, careful, reassuring, soothing, hygienic, successful,
        precise, helpful, calming, correct, comforting, healing, attentive""",
    ),
    "game": _polar(
        bad="""boring, unfair, frustrating, buggy, repetitive, clunky, pointless, unbalanced, shallow,
        monotonous, tedious, unplayable, laggy, dull, broken, confusing, unfinished, predictable, grindy""",
        good="""addictive, fun, exciting, challenging, clever, absorbing, inventive, balanced, polished,
        thrilling, colourful, varied, rewarding, immersive, fair, hilarious, fluid, witty, original, playful""",
    ),
}

OPINION_VERBS: Polar = (
    (
        "hate|hated",
        "dislike|disliked",
        "regret|regretted",
        "loathe|loathed",
        "resent|resented",
        "despise|despised",
        "detest|detested",
        "complain about|complained about",
        "curse|cursed",
        "suffer through|suffered through",
        "avoid|avoided",
    ),
    (
        "love|loved",
        "like|liked",
        "enjoy|enjoyed",
        "adore|adored",
        "appreciate|appreciated",
        "admire|admired",
        "praise|praised",
        "recommend|recommended",
        "treasure|treasured",
        "relish|relished",
        "fall in love with|fell in love with",
    ),
)
"""``base|past``; the object follows."""

FEELINGS: Polar = _polar(
    bad="""disappointed, annoyed, upset, fed up, frustrated, angry, unhappy, dissatisfied, disgusted,
        unimpressed, furious, let down, irritated, bored, shocked, appalled, horrified, displeased,
        exasperated, embarrassed, underwhelmed, miserable""",
    good="""happy, delighted, pleased, thrilled, impressed, satisfied, charmed, overjoyed, enchanted,
        excited, moved, amazed, glad, content, blown away, fascinated, grateful, captivated, comfortable,
        relaxed, proud""",
)

FEELING_LINK: dict[str, str] = {
    "disappointed": "by",
    "upset": "by",
    "disgusted": "by",
    "unimpressed": "by",
    "let down": "by",
    "irritated": "by",
    "shocked": "by",
    "appalled": "by",
    "horrified": "by",
    "embarrassed": "by",
    "underwhelmed": "by",
    "angry": "about",
    "impressed": "by",
    "charmed": "by",
    "enchanted": "by",
    "moved": "by",
    "amazed": "by",
    "glad": "about",
    "blown away": "by",
    "fascinated": "by",
    "captivated": "by",
    "excited": "about",
    "grateful": "for",
    "proud": "of",
    "miserable": "about",
    "relaxed": "about",
}

NOUN_JUDGEMENTS: Polar = _polar(
    bad="""disaster, nightmare, mess, disappointment, joke, scam, letdown, failure, waste of money, waste of
        time, mistake, catastrophe, rip-off, shambles, flop, disgrace, insult, bore, ordeal, pain, fiasco,
        chore, swindle, torture, shame, total loss, farce, eyesore, dud, problem, embarrassment""",
    good="""delight, treat, joy, pleasure, gem, masterpiece, dream, success, triumph, bargain, blessing,
        real find, pleasant surprise, highlight, marvel, winner, treasure, wonder, revelation, godsend,
        hidden gem, stroke of luck, work of art, must, feast, success story, lifesaver, real pearl, hit,
        breath of fresh air""",
)

PERSON_EVENTS: Polar = (
    (
        "ignore us|ignored us",
        "lie to me|lied to me",
        "shout at us|shouted at us",
        "waste our time|wasted our time",
        "lose my papers|lost my papers",
        "make fun of us|made fun of us",
        "keep us waiting|kept us waiting",
        "roll their eyes|rolled their eyes",
        "cheat us|cheated us",
        "argue with us|argued with us",
        "blame us|blamed us",
        "insult my wife|insulted my wife",
        "forget about us|forgot about us",
        "hang up on me|hung up on me",
        "complain all day|complained all day",
        "make a scene|made a scene",
        "refuse to help|refused to help",
        "stare at a phone|stared at a phone",
        "charge us twice|charged us twice",
        "break a promise|broke a promise",
        "mess everything up|messed everything up",
        "laugh at me|laughed at me",
        "interrupt me|interrupted me",
        "treat us badly|treated us badly",
        "snap at me|snapped at me",
        "overcharge us|overcharged us",
        "let us down|let us down",
        "mislead us|misled us",
        "yell at my son|yelled at my son",
        "waste my morning|wasted my morning",
        "talk down to us|talked down to us",
        "disappoint us|disappointed us",
        "annoy everyone|annoyed everyone",
        "rush us|rushed us",
    ),
    (
        "help us|helped us",
        "smile at us|smiled at us",
        "explain everything|explained everything",
        "answer every question|answered every question",
        "keep the promise|kept the promise",
        "make us laugh|made us laugh",
        "listen to us|listened to us",
        "remember our names|remembered our names",
        "welcome us warmly|welcomed us warmly",
        "take good care of us|took good care of us",
        "solve the problem|solved the problem",
        "go the extra mile|went the extra mile",
        "make us feel at home|made us feel at home",
        "do a great job|did a great job",
        "treat us well|treated us well",
        "find a solution|found a solution",
        "care about us|cared about us",
        "calm my daughter|calmed my daughter",
        "offer to help|offered to help",
        "thank us|thanked us",
        "greet us with a smile|greeted us with a smile",
        "keep us informed|kept us informed",
        "give us good advice|gave us good advice",
        "make our day|made our day",
        "put us at ease|put us at ease",
        "fix everything|fixed everything",
        "show real interest|showed real interest",
        "spoil us|spoiled us",
        "respect our wishes|respected our wishes",
        "win us over|won us over",
        "reassure me|reassured me",
        "know everything|knew everything",
        "cheer us up|cheered us up",
        "bother to help|bothered to help",
    ),
)
"""``base|past``; the subject is one of the topic's people."""

GENERAL_EVENTS: Polar = _polar(
    bad="""i want my money back, i would not go again, we will not be back, i would not recommend it, never
        again, we left early, it ruined our day, it was a waste of money, it was a waste of time, nothing
        worked, i could not wait to leave, save your money, avoid it, stay away, i asked for a refund, i
        regret the purchase, everything went wrong, it was not worth it, i expected much more, it left a bad
        taste, nobody cared, i have never been so disappointed, it gave me a headache, we felt cheated, i
        felt ripped off, i was in tears, we wasted a whole day, it spoiled our weekend, it got on my nerves,
        what a shame, i gave up, i lost my patience, we had nothing but trouble, it was a complete disaster,
        i wish i had stayed at home, nobody enjoyed it, we deserved better, it made me angry, i sent it
        back, it did not live up to the hype, we would have been better off at home, i felt let down, the
        whole thing fell apart, i cannot recommend it, don't bother, give it a miss, i was not impressed, it
        fell short of our hopes, we were glad when it was over, you get nothing for your money, i will not
        make that mistake again, it put me off for good, we regretted coming, it let us down, i had a bad
        feeling, it was nothing special, it doesn't work, it won't last, i won't go there again, i don't
        want to see it again, hardly anything worked, nobody enjoys that, i can't stand it, we won't make
        that mistake twice, it never works, i don't like it, they promised a lot and did nothing, i have too
        many complaints to list, it couldn't get any worse, it made things worse, i was so angry, half of it
        was missing""",
    good="""i would go again, we will be back, i would recommend it, i cannot wait to go back, it made our
        day, worth every penny, i would buy it again, everything worked, we stayed longer than planned, it
        was money well spent, we had a great time, i felt at home, i will be back soon, it was worth the
        wait, i got more than i expected, everything went well, we loved every minute, i could not be
        happier, it exceeded our hopes, my friends were impressed, we laughed a lot, i left with a smile, it
        was worth it, i told all my friends about it, we felt welcome, i would give it ten out of ten, it
        made me smile, we had the time of our lives, nothing was too much trouble, i cannot fault it, we
        could not have asked for more, it saved our weekend, five stars from me, keep up the good work, it
        put us in a good mood, it is a keeper, everyone enjoyed it, i had no complaints, you get a lot for
        your money, it brightened our week, i felt safe, i would do it all again, we came home happy, it did
        the job, my children loved it, it lived up to the hype, it beat our expectations, i never want to be
        without it, we were sorry when it was over, it ticked all the boxes, you cannot go wrong with it, it
        won me over, i had a lot of fun, thumbs up, it works, it will last for years, i want to go there
        every week, i want to see it again tomorrow, almost everything worked, you won't find anything
        better, it doesn't get any better, i can't get enough of it, i don't regret it, it always works, i
        like it a lot, they kept their promises, i have no complaints at all, thanks to everyone, highly
        recommended, i was so happy, everything was there""",
)

EVERYDAY_EVENTS: Polar = _polar(
    bad="""i feel sick, i missed the bus, my back hurts, i failed the exam, we lost the match, my bike was
        stolen, i could not sleep, it rained all day, the heating broke down, i lost my keys, she cried all
        evening, he was fired, the plan failed, i am worried about you, they cancelled the party, we had a
        fight, the car broke down, i burned my hand, i feel lonely, my boss yelled at me, the neighbours
        complained, i spilled coffee on my shirt, our team was beaten, the deal fell through, i am sick of
        this job, the project is in trouble, he broke my heart, the funeral was hard, i caught a cold, it
        hurts""",
    good="""i feel great, i caught the bus, i passed the exam, we won the match, i slept well, the sun came
        out, i got the job, she laughed all evening, he was promoted, the plan worked, i am proud of you,
        they threw me a party, we made up, i found my keys, the baby smiled, my boss praised me, the
        neighbours brought cake, our team won the cup, i am in love, the deal went through, the project is
        on track, i had a lovely day, my fever is gone, we celebrated all night, i met an old friend, she
        said yes, the surgery went well, congratulations on the prize, i finally feel better, it is a joy""",
)

PREDICATES: Polar = _polar(
    bad="""left a lot to be desired, could have been better, let us down, disappointed me, disappointed us,
        annoyed everyone, got on my nerves, needed work, fell short, failed us, drove me mad, made me sick,
        ruined everything, spoiled the mood, put us off, bored us, hurt, did more harm than good, caused
        trouble, fell flat, went from bad to worse, missed the mark, cost us dearly, made things worse, got
        worse and worse, scared me off, was a bit of a letdown, lacked everything, upset my wife, tried my
        patience, failed to impress, failed to work, could not be worse, was beneath contempt, did nothing
        for me, left me cold, killed the mood, was a waste""",
    good="""exceeded our hopes, impressed us, impressed everyone, made us happy, made me smile, won us over,
        delighted everyone, could not have been better, did not disappoint, deserved praise, surprised me
        pleasantly, charmed us, was a joy to see, was spot on, lifted our mood, beat everything, hit the
        spot, was just what we needed, was worth it, worked wonders, stole the show, made my day, got better
        and better, blew me away, shone, was second to none, pleased everybody, was as good as it gets,
        stood out, inspired me, was in a class of its own, made up for everything, put us in a good mood,
        was out of this world, did the trick, cheered us up""",
)

MANNER: Polar = _polar(
    bad="""badly, poorly, carelessly, horribly, terribly, clumsily, sloppily, awkwardly, rudely, dreadfully,
        miserably, hastily, unprofessionally, awfully, slowly, hopelessly, lazily""",
    good="""well, perfectly, beautifully, smoothly, wonderfully, quickly, carefully, brilliantly, nicely,
        skilfully, professionally, flawlessly, superbly, very well, politely, reliably, gracefully, clearly,
        lovingly""",
)
MADE = _split(
    """made, done, organised, designed, prepared, run, planned, put together, thought out, looked after, presented,
        kept"""
)
BEHAVED = _split(
    """worked, behaved, acted, reacted, treated us, answered, spoke to us, did the job, handled everything, looked
        after us"""
)


# --- degree, time, manner -----------------------------------------------------------------------------------

INTENSIFIERS = _split(
    """very, really, so, extremely, truly, incredibly, remarkably, particularly, especially, surprisingly,
            unusually, genuinely, consistently, absolutely, utterly, totally, completely, thoroughly,
            simply, quite, pretty, rather, always, just, properly, exceptionally, seriously, downright,
            super"""
)
INTENSIFIERS_GOOD = _split("delightfully, pleasantly, wonderfully, beautifully, perfectly, amazingly, refreshingly")
INTENSIFIERS_BAD = _split(
    "painfully, far too, way too, too, horribly, unbearably, dreadfully, a bit too, annoyingly, much too"
)
DOWNTONERS = _split("a bit, a little, slightly, somewhat, fairly, a touch, kind of, sort of")
PLAIN_INTENSIFIERS = _split(
    "very, really, truly, extremely, incredibly, particularly, surprisingly, rather, quite, pretty"
)
NEGATORS = _split(
    """was not, wasn't, was never, was hardly, was barely, was far from, was anything but, was by no means, was
            not at all, was not particularly, was not really, was scarcely, was not even, was in no way, was
            not remotely, did not seem, was not very, wasn't very, wasn't really, wasn't exactly, was
            nowhere near"""
)
"""Singular past; ``grammar`` makes the plural (was → were)."""

COPULAS_PAST = _split("was, was, was, was, was, was, seemed, looked, felt, turned out, proved, stayed, remained")
COPULAS_PRESENT = _split("is, is, is, is, seems, looks, feels")
PERSON_SUBJECTS = _split(
    """my wife, my husband, my mother, my father, my sister, my brother, my son, my daughter, my boss, my
            uncle, my aunt, my neighbour, my cousin, my grandmother, my grandfather, my colleague, my
            flatmate, my girlfriend, my boyfriend, my best friend, my niece, my nephew, my teacher, my
            partner"""
)
FIRST_NAMES = _split(
    """anna, ben, clara, david, emma, felix, greta, henry, ida, jack, kate, liam, mia, noah, olivia, paul,
            quinn, rosa, sam, tina, ursula, victor, wendy, xavier, yara, zoe, adam, bella, carl, diana,
            eric, fiona, george, hannah, ian, julia, kevin, laura, mark, nina, oscar, petra, ralph, sarah,
            tom, uma, vera, walter, yusuf, zara, alice, bruno, cora, daniel, elena, frank, gina, hugo,
            irene, jonas, karen, leo, maria, nora, otto, paula, robert, sophie, thomas, violet, william,
            amir, aisha, chen, deepak, fatima, hiro, ingrid, jamal, kofi, lena, mateo, nadia, omar, priya,
            ravi, sven, tariq, wei, yuki, agnes, bernard, cecilia, dominic, edith, florence, gordon,
            harriet, isaac, joan, kurt, lucy, martin, nelson, ophelia, patrick, rachel, simon, teresa,
            vincent, wilma, arthur, beatrice, charles, dora, edgar, frida"""
)
TOWNS = _split(
    """london, paris, berlin, rome, madrid, vienna, oslo, dublin, lisbon, prague, warsaw, athens, zurich,
            geneva, milan, florence, venice, naples, munich, hamburg, cologne, brussels, antwerp, amsterdam,
            rotterdam, copenhagen, stockholm, helsinki, bergen, glasgow, edinburgh, leeds, bristol, york,
            oxford, cambridge, bath, cardiff, belfast, boston, chicago, denver, seattle, portland, austin,
            dallas, miami, toronto, montreal, sydney, melbourne, tokyo, osaka, seoul, delhi, mumbai, cairo,
            nairobi, lagos, lima, bogota, havana, porto, seville, valencia, granada, marseille, lyon, nice,
            bordeaux, krakow, budapest, zagreb, split, tallinn, riga, vilnius, istanbul, izmir, malta,
            cyprus, crete, corfu"""
)
WHEN = _split(
    """yesterday, last week, last month, last year, on monday, on tuesday, on wednesday, on thursday, on
            friday, on saturday, on sunday, in january, in february, in march, in april, in may, in june, in
            july, in august, in september, in october, in november, in december, this morning, this
            afternoon, this evening, tonight, last night, in the spring, in the summer, in the autumn, in
            the winter, at noon, at midnight, two days ago, three weeks ago, a month ago, a year ago, at
            christmas, at easter, over the weekend, on my birthday, on our anniversary, after work, before
            lunch, during the holidays, the other day, recently, on a rainy afternoon, on a quiet evening,
            during the week, early in the morning, late at night"""
)
OCCASIONS = _split(
    """a birthday, a wedding, an anniversary, a family reunion, a meeting, a date, a celebration, a conference,
            a short break, a business trip, a school trip, a farewell, a graduation, a day out, a treat, a
            honeymoon, a retirement party"""
)
COMPARED = _split(
    """last time, last year, the old one, the pictures, the advertisement, the reviews, i expected, i had
            hoped, we expected, we remembered, anywhere else in town, the competition, any other i know, my
            last one, the one next door"""
)

MASS_NOUNS = frozenset(
    _split(
        """bread, steak, pizza, pasta, fish, chicken, rice, coffee, sauce, curry, lamb, cheese, lasagne,
            breakfast, dinner, lunch, ice cream, porridge, pudding, salmon, tuna, beef, duck, pork, ham,
            bacon, gravy, toast, food, lemonade, wine, beer, tea, juice, tofu, ramen, garlic bread, seating,
            decor, service, delivery, room service, housekeeping, wifi, orange juice, acting, dialogue,
            pacing, camera work, direction, humour, music, sound, prose, language, writing, romance, paper,
            print, software, customer service, support, warranty service, installation, setup, ordering,
            packaging, payment, quality, boarding, check-in, rhythm, homework, material, feedback, training,
            tuition, medicine, advice, surgery, aftercare, cleaning, equipment, plumbing, wiring, work,
            heating, renovation, combat, strategy, kiosk food, fabric, lining, leather, tailoring, news,
            weather, traffic, planning, luggage, admission, reception"""
    )
)
"""Nouns that take no article after an adjective: "we had lovely bread"."""

# --- topics -------------------------------------------------------------------------------------------------

STAFF_PLURALS = {
    "staff": "staff",
    "crew": "crew",
    "craftsman": "craftsmen",
    "salesman": "salesmen",
    "boss": "bosses",
    "waitress": "waitresses",
    "nurse": "nurses",
    "hostess": "hostesses",
    "coach": "coaches",
    "actress": "actresses",
    "secretary": "secretaries",
    "cast": "cast",
    "team": "teams",
}


def plural_of(person: str) -> str:
    """``waiter`` → ``waiters``; irregular ones from the table."""
    if person in STAFF_PLURALS:
        return STAFF_PLURALS[person]
    return person[:-1] + "ies" if person.endswith("y") else person + "s"


def _group(adjectives: str, singular: str, plural: str) -> Group:
    return Group(adjectives, _split(singular), _split(plural))


def _topic(name: str, *groups: Group, whole: str, staff: str, bad: str, good: str, neutral: str) -> Topic:
    return Topic(name, _split(whole), _split(staff), groups, _polar(bad=bad, good=good), _split(neutral))


TOPICS: tuple[Topic, ...] = (
    _topic(
        "restaurant",
        _group(
            "food",
            """soup, salad, bread, steak, pizza, pasta, fish, chicken, rice, dessert, cake, coffee, sauce,
            curry, risotto, lamb, cheese, stew, omelette, pie, lasagne, sandwich, burger, breakfast, dinner,
            lunch, ice cream, porridge, tart, pudding, salmon, tuna, beef, duck, pork, sausage, ham, bacon,
            gravy, toast, meal, food, lemonade, wine, beer, tea, juice, main course, starter, tofu, ramen,
            paella, goulash, cheesecake, garlic bread""",
            """noodles, fries, vegetables, potatoes, dumplings, prawns, mussels, pancakes, beans, mushrooms,
            olives, tomatoes, portions, snacks, meatballs, cocktails, drinks, eggs, scones, pastries,
            waffles, tacos, cookies, starters, dishes, croissants, oysters, wings, onion rings, muffins""",
        ),
        _group(
            "room",
            """dining room, terrace, table, corner, bar, kitchen, bathroom, seating, place, atmosphere, decor""",
            """tables, chairs, toilets, benches, tablecloths, plates, glasses, booths, forks""",
        ),
        _group("price", "bill, price", "prices"),
        _group("service", "service, reservation, delivery", "takeaway orders"),
        whole="""restaurant, café, bistro, diner, pizzeria, pub, tavern, bakery, steakhouse, brasserie,
        canteen, tea room""",
        staff="""waiter, waitress, chef, cook, owner, bartender, host, manager, server, barista""",
        bad="""we waited an hour for a table, the waiter forgot our drinks, my plate was full of bones,
        there was a hair in my soup, they ran out of everything, the fish smelled, they lost our booking,
        the kitchen closed early, my stomach hurt all night, they brought the wrong dish, there was a fly in
        my drink, the portions were tiny, we went home hungry, the wine tasted like vinegar, they added
        things to the bill, the cook burned the onions, we got food poisoning, nobody came to our table, the
        bread was old, my steak came back raw twice, i could not finish it, we sent the food back, the music
        was so loud that we could not talk, it tasted like cardboard, i pushed my plate away, the food never
        arrived""",
        good="""we got a table at once, the dessert was on the house, i cleaned my plate, we ordered a
        second round, the kitchen was open late, every dish was a surprise, the portions were huge, they let
        us taste the wine, the smell from the kitchen made us hungry, the cook came out to greet us, i asked
        for the recipe, they remembered our favourite table, the food came in ten minutes, the bread came
        straight from the oven, my children asked for more, we licked our plates, the food melted in my
        mouth, i could eat there every day, it tasted like home, i had a second helping, the food arrived
        hot, the view from the terrace made the evening, we toasted all night, nothing was left on our
        plates""",
        neutral="""we sat near the window, i ordered the menu of the day, we were a group of six, they serve
        lunch from noon, we came by bus, i had the fish, my wife had the salad, it is next to the station,
        they have two floors, we paid by card""",
    ),
    _topic(
        "hotel",
        _group(
            "room",
            """room, bed, bathroom, shower, lobby, balcony, pool, carpet, mattress, corridor, suite, sauna,
            lounge, garden, pillow, wardrobe, apartment, hostel, cottage, bathtub, cabin, kitchenette, spa,
            sofa, campsite, courtyard, bedroom""",
            """rooms, beds, towels, sheets, pillows, curtains, blankets, walls, hallways, showers, windows,
            cushions, bathrooms, armchairs, floors, dormitories""",
        ),
        _group(
            "food",
            "breakfast, buffet, coffee, room service menu, orange juice",
            "pastries, rolls, eggs, waffles, drinks",
        ),
        _group("service", """check-in, service, room service, housekeeping, airport shuttle, wifi""", "arrangements"),
        _group("outdoors", "view, beach, location, neighbourhood, street", "views, gardens, surroundings"),
        _group("price", "rate, price, deposit", "fees, rates"),
        whole="""hotel, hostel, guesthouse, inn, resort, holiday flat, motel, lodge, bed and breakfast,
        villa, chalet, campsite""",
        staff="""receptionist, porter, maid, manager, owner, host, cleaner, concierge, landlord, landlady""",
        bad="""the heating did not work, we found bugs in the bed, the lift was out of order, the walls were
        thin as paper, our booking was lost, the tap dripped all night, there was mould in the bathroom, the
        neighbours partied until dawn, the key did not fit, we slept badly, the air conditioning rattled,
        there was no hot water, the sheets had stains, they gave our room away, a cockroach crossed the
        floor, the toilet was blocked, the window did not close, the photos were a lie, i could hear every
        word next door, the wifi never worked, my pillow smelled of smoke, we moved out after one night, the
        roof leaked, the bed squeaked, the drain stank, my back hurt after one night""",
        good="""we slept like babies, they upgraded our room, the bed was a dream, we woke up to birdsong,
        there was fruit in our room, the sea was steps away, the towels were changed daily, they let us
        check out late, the view took our breath away, our suitcases were carried up, the pool was empty in
        the morning, the children loved the garden, we extended our stay, they had an answer to every wish,
        chocolates waited on the pillow, the room was ready early, i slept better than at home, the shower
        had good pressure, everything smelled fresh, we could walk everywhere, the wifi was fast, we did not
        want to leave""",
        neutral="""we stayed for three nights, our room was on the fourth floor, we arrived by train, the
        hotel has forty rooms, i was there for work, we booked online, breakfast starts at seven, the
        station is near, we had two keys, the bar closes at ten""",
    ),
    _topic(
        "film",
        _group(
            "story",
            """plot, story, ending, script, acting, dialogue, pacing, opening scene, film, movie, sequel,
            camera work, direction, romance, finale, trailer, twist, humour, screenplay, cast, documentary,
            comedy, thriller, drama, remake, performance, western, cartoon, pilot, season, episode, series,
            love story, first half, second half, adaptation""",
            """jokes, characters, dialogues, scenes, stunts, special effects, costumes, performances, effects,
            flashbacks, episodes, villains, battles, monologues, car chases""",
        ),
        _group("sound", "soundtrack, music, score, sound", "songs, voices"),
        _group("room", "cinema, screening room, seat", "seats"),
        whole="""film, movie, thriller, comedy, drama, western, documentary, musical, cartoon, series,
        remake, horror film""",
        staff="actor, actress, director, narrator, hero, villain, star",
        bad="""i fell asleep after ten minutes, half of the audience left, i looked at my watch all the
        time, i saw the ending coming, nobody laughed, the jokes fell flat, i walked out, the plot made no
        sense, the actors read their lines like a shopping list, i forgot it at once, it dragged on and on,
        i wanted two hours of my life back, we switched it off, the story went nowhere, i did not care about
        anyone in it, it put me to sleep, it was an hour too long, i yawned all the way through, the sequel
        killed the magic, the twist was silly, they ruined the book, the effects looked cheap, it bored me
        to tears""",
        good="""i laughed until i cried, i was on the edge of my seat, the audience clapped, we talked about
        it all night, time flew by, i did not see the ending coming, it gave me goosebumps, i watched it
        twice, it stayed with me for days, i cried at the end, every joke landed, i forgot the time, the
        whole room cheered, it kept me guessing until the end, i could not look away, it deserves every
        prize, it touched my heart, the cast shone, it had me from the first minute, my heart was racing, it
        made me think, we were glued to the screen, the twist blew my mind, i would watch it again""",
        neutral="""it lasted two hours, we saw it at the cinema, it was made in italy, i watched it on a
        plane, the story is set in the twenties, it is based on a novel, we had seats in row six, it is the
        third part, it came out in may, we watched it with subtitles""",
    ),
    _topic(
        "book",
        _group(
            "story",
            """novel, plot, book, story, ending, style, first chapter, prose, language, hero, mystery, memoir,
            biography, translation, writing, storyline, poem, diary, romance, message, last page, essay,
            fairy tale, fantasy, sequel, trilogy""",
            """chapters, characters, poems, dialogues, stories, descriptions, illustrations, essays, metaphors,
            sentences, ideas, verses, twists""",
        ),
        _group("device", "cover, binding, paper, print", "pages, maps"),
        whole="""book, novel, memoir, biography, thriller, crime story, cookbook, guidebook, comic, trilogy,
        audiobook, fantasy novel""",
        staff="""author, writer, narrator, translator, publisher, poet, editor""",
        bad="""i gave up after fifty pages, the story went nowhere, i skipped whole chapters, the characters
        left me cold, it took me months to finish, the ending made me angry, the pages fell out, every page
        had a mistake, i threw it away, i could not get into it, it repeats itself, i fell asleep over it, i
        had to force myself to finish, it reads like a manual, the author lost the thread, i gave it to the
        charity shop, i forgot who was who, it goes round in circles, i left it on the train on purpose, it
        put me to sleep, i closed it halfway through, it bored me to death""",
        good="""i could not put it down, i read it in one night, i cried over the last page, i bought it for
        all my friends, i missed the characters at once, every page was a pleasure, i read it twice, it
        changed my mind, i learned a lot, i wanted it to go on forever, i stayed up all night with it, it
        made me laugh out loud, it kept me up until three, i underlined half of it, the ending made me cry,
        it opened my eyes, i turned the pages faster and faster, it pulled me in, i have already ordered the
        next one, the characters felt like friends, it sent shivers down my spine, i devoured it""",
        neutral="""it has four hundred pages, i borrowed it from the library, it is set in a small village,
        my aunt gave it to me, i read it on the train, it is the first of three, it is about two brothers, i
        bought the paperback, it was printed in spain""",
    ),
    _topic(
        "phone",
        _group(
            "device",
            """screen, battery, camera, keyboard, speaker, charger, case, touchscreen, microphone, display,
            processor, laptop, tablet, printer, headset, router, watch, phone, software, mouse, monitor,
            remote, app, update, vacuum cleaner, blender, kettle, toaster, washing machine, fridge,
            hairdryer, drill, lamp, radio, television, coffee machine, hard drive, design, stand, website""",
            """buttons, headphones, earphones, speakers, cables, keys, controls, sensors, photos, apps,
            batteries, pictures, hinges, wheels, menus, settings, updates, graphics, instructions""",
        ),
        _group("service", """customer service, delivery, setup, installation, support, warranty service""", "repairs"),
        _group("price", "price, repair price", "prices, extra costs"),
        whole="""phone, laptop, tablet, camera, printer, watch, headset, television, speaker, vacuum
        cleaner, blender, coffee machine, lawnmower""",
        staff="technician, seller, support agent, salesman, shop assistant",
        bad="""the screen cracked after a week, the battery died after an hour, it broke on the first day,
        it crashes all the time, the charger caught fire, it stopped working, it got hot like an oven, the
        button came off, i had to return it, the warranty was worthless, it never turned on, nobody answered
        my emails, the app freezes, it lost all my photos, it arrived with a scratch, the speaker crackles,
        it fell apart in my hands, the manual was in chinese, it drains the battery, it keeps disconnecting,
        calls drop all the time, i had to restart it every hour, it makes a terrible noise, it broke after
        two days, the paint peeled off, the update made it worse, it does not hold a charge""",
        good="""the battery lasts for days, it starts in a second, it survived a fall, it works like a
        charm, the photos look professional, it was set up in minutes, it does everything i need, they
        replaced it for free, it charges in no time, i use it every day, it still looks like new, it never
        lets me down, it saved me hours, it came with a spare cable, everything works out of the box, it
        makes life easier, calls are crystal clear, it does exactly what it should, it fits in every pocket,
        i cannot live without it, it has never crashed, it runs like clockwork, the picture is razor sharp,
        it paid for itself, it connects at once""",
        neutral="""i bought it in march, it weighs two hundred grams, it comes in blue, i use it for work,
        it has two cameras, the box was white, i charged it at night, my brother has the same one, it came
        with a cable, it has three buttons""",
    ),
    _topic(
        "shop",
        _group(
            "service",
            """delivery, checkout, return, ordering, packaging, refund, exchange, payment, customer service""",
            "deliveries, refunds, returns",
        ),
        _group(
            "general",
            """parcel, toy, gift, chair, desk, bookshelf, mirror, lamp, vase, rug, umbrella, bicycle, tent,
            backpack, teapot, guitar, puzzle, plant, pan, knife, order, product, present, quality,
            selection, choice""",
            """flowers, shelves, candles, tools, pens, cups, goods, gloves, scissors, decorations, items,
            products""",
        ),
        _group("price", "price, shipping fee, discount policy", "prices, shipping costs"),
        _group("room", "shop, store, market hall, fitting room", "aisles, shelves"),
        whole="""shop, store, supermarket, market, online shop, bookshop, flower shop, furniture store,
        pharmacy, department store, toy shop""",
        staff="""cashier, seller, courier, shop assistant, manager, salesman, florist""",
        bad="""the parcel never arrived, they sent the wrong size, the box was empty, half of the parts were
        missing, it took six weeks, they refused a refund, my emails went unanswered, the courier threw it
        over the fence, it was broken on arrival, they charged my card twice, the colour was wrong, the vase
        was in pieces, the parcel got lost, it looked nothing like the picture, i had to wait in line for an
        hour, the shelves were empty, the flowers were dead after a day, one leg was shorter than the
        others, the website crashed, it fell to pieces, the discount was a trick, i am still waiting for my
        order, the zip broke at once""",
        good="""the parcel arrived a day early, it was wrapped with care, they added a small gift, the
        refund came the same day, it looked better than in the picture, the colours were just right, it
        fitted perfectly, they had everything in stock, i found what i needed, they answered within minutes,
        the parts fit together at once, i got a big discount, the flowers lasted for two weeks, my daughter
        hugged it at once, it was delivered to my door, they wrapped it for free, they replaced the broken
        part at once, i always find something nice, the quality surprised me, shipping was free, it arrived
        in one piece""",
        neutral="""i ordered it online, it came in a big box, i paid by card, they are open on sundays, i
        needed a present, it is on the corner, it took three days, they sell shoes too, i bought two of
        them, the parcel weighed five kilos""",
    ),
    _topic(
        "travel",
        _group(
            "room",
            """train, bus, cabin, carriage, seat, compartment, ferry, station, airport, waiting room, plane,
            taxi, deck, toilet, coach""",
            "seats, trains, buses, platforms, carriages, cabins, toilets",
        ),
        _group(
            "service",
            """boarding, connection, flight, trip, journey, tour, transfer, booking, check-in, ride, crossing,
            service, timetable""",
            "connections, transfers, announcements",
        ),
        _group("food", "snack, coffee, airline meal, sandwich", "drinks, snacks, meals"),
        _group("price", "fare, ticket price, baggage fee", "fares, ticket prices"),
        whole="""trip, flight, journey, tour, cruise, train ride, bus ride, ferry crossing, excursion,
        holiday, airline, road trip""",
        staff="""driver, conductor, pilot, steward, guide, inspector, flight attendant, captain, crew""",
        bad="""we missed our connection, the train was cancelled, they lost my suitcase, we sat on the
        floor, the bus broke down, the driver got lost, we were stuck for hours, the flight was overbooked,
        my seat was broken, the toilet was locked, there was no room for my bag, we arrived a day late, the
        air was unbearable, they changed the gate three times, nobody told us anything, i got seasick, my
        luggage was soaked, we froze all the way, the delay cost me a day, the train was two hours late, the
        child behind me kicked my seat, the tyre burst, we missed the last ferry, the queue went round the
        block""",
        good="""we arrived early, the train left on time, there was plenty of legroom, we got free drinks,
        the view was worth every mile, my suitcase came first, the driver waited for us, we had a whole row
        for us, the seats were like armchairs, boarding took five minutes, the guide knew every stone, we
        saw dolphins, the connection worked, the sun shone all the way, they found my lost bag, i slept all
        the way, we were moved to first class, everything ran like clockwork, the landing was smooth as
        silk, the ride flew by, we were on time, we saw everything we wanted, the captain let the children
        steer""",
        neutral="""we changed trains twice, the trip took five hours, i had a window seat, we left at dawn,
        it was my second time, we travelled with two bags, the ship has eight decks, the tickets were
        digital, we stopped for an hour, it was a night train""",
    ),
    _topic(
        "concert",
        _group(
            "sound",
            """sound, voice, band, singer, guitar, bass, choir, orchestra, opening act, album, song, violin,
            piano, melody, chorus, drum solo, music, rhythm, encore, track, record, festival, microphone""",
            """drums, songs, guitars, violins, trumpets, vocals, lyrics, singers, solos, melodies, tracks,
            concerts""",
        ),
        _group("room", "hall, arena, club, stage, venue, dance floor, bar", "seats, toilets, stairs"),
        _group(
            "story",
            """show, light show, programme, play, ballet, opera, dance, choreography, musical""",
            "costumes, speeches, dancers",
        ),
        _group("price", "ticket price, beer price", "ticket prices"),
        whole="""concert, festival, show, opera, musical, gig, play, ballet, recital, circus, album,
        open-air concert""",
        staff="""singer, drummer, conductor, dancer, bouncer, musician, guitarist, pianist, organiser, usher""",
        bad="""the singer forgot the words, the sound cut out, we could not see the stage, it started two
        hours late, the crowd pushed and shoved, they played for half an hour, my ears hurt for days, the
        band was drunk, they left without an encore, it was out of tune, we stood in the rain, half of the
        seats were empty, the show was cancelled, somebody spilled beer on me, the band looked bored, every
        song sounded the same, the audience booed, the lead singer was ill, the speakers buzzed, i left
        before the encore""",
        good="""the crowd sang along, they played three encores, we danced all night, the singer came down
        to us, i got goosebumps, nobody sat still, they played all the hits, we had a perfect view, the band
        gave everything, the audience went wild, i bought the record at once, the last song made me cry,
        they got a standing ovation, my feet hurt from dancing, the whole hall was singing, the acoustics
        were magic, i still hum the tunes, the drummer stole the show, everybody was dancing""",
        neutral="""they played for two hours, we stood on the left, the doors opened at seven, it was in the
        old town hall, i went with two friends, the band is from iceland, it was their first tour, we had
        tickets for the balcony, they played twelve songs""",
    ),
    _topic(
        "course",
        _group(
            "teaching",
            """lecture, course, class, lesson, workshop, seminar, textbook, exam, handout, training,
            explanation, material, topic, presentation, tutorial, webinar, homework, feedback, curriculum,
            discussion, syllabus, talk, language course, yoga class""",
            """lessons, exercises, slides, examples, lectures, tasks, videos, handouts, notes, assignments,
            explanations, discussions, tests""",
        ),
        _group("room", "classroom, lecture hall, library, campus, laboratory", "classrooms, desks"),
        _group("price", "tuition, course fee", "fees"),
        whole="""course, class, workshop, seminar, school, training, language course, evening class,
        university, lecture series""",
        staff="""teacher, tutor, professor, instructor, lecturer, trainer, assistant, coach""",
        bad="""i learned nothing, the teacher read from the slides, half of the class dropped out, i failed
        the exam, nobody could follow, the room was too small, the projector broke, we never got any
        feedback, the books were out of date, i fell behind, the lessons were cancelled twice, my questions
        went unanswered, i was lost from the start, it was way over my head, the exam had nothing to do with
        it, we copied from the board for hours, i stopped going, i dreaded every lesson, the teacher came
        late""",
        good="""i learned so much, the teacher knew every name, i passed with top marks, we laughed and
        learned, i finally understood it, every question was answered, my grades went up, i look forward to
        every lesson, we practised a lot, i signed up for the next one, the time flew by, it opened doors
        for me, i can speak it now, it got me a new job, even the hard parts made sense, the examples came
        from real life, my son likes school again, i use it every day at work, it was easy to follow""",
        neutral="""it ran for six weeks, we met on tuesdays, there were ten of us, it was held online, we
        had a test at the end, i took it in the spring, the class starts at nine, we worked in pairs, it is
        on the second floor, we used two books""",
    ),
    _topic(
        "clinic",
        _group(
            "care",
            """treatment, therapy, operation, examination, injection, massage, diagnosis, check-up, advice,
            medicine, filling, surgery, aftercare, haircut, facial, cleaning""",
            "injections, stitches, pills, exercises, treatments",
        ),
        _group(
            "room",
            """waiting room, ward, clinic, surgery room, hospital, salon, reception""",
            "rooms, chairs, beds, wards",
        ),
        _group("service", "appointment system, admission, service, hotline", "appointments"),
        _group("price", "bill, fee", "fees, charges"),
        whole="""clinic, hospital, practice, dental practice, health centre, spa, hair salon, pharmacy, vet,
        care home""",
        staff="""doctor, nurse, dentist, surgeon, therapist, receptionist, hairdresser, vet, pharmacist,
        midwife, carer""",
        bad="""i waited for three hours, they pulled the wrong tooth, they mixed up my files, it hurt for
        weeks, the wound got infected, nobody explained anything, i left with more pain, they forgot my
        appointment, the phone was always busy, they gave me the wrong pills, the scar is huge, i had to
        come back three times, my dog was scared, they did not take me seriously, the filling fell out, my
        hair looked awful, the rash got worse, i fainted in the waiting room, they lost my results, the cut
        was crooked""",
        good="""i was seen at once, i felt nothing, the pain was gone the next day, i healed in a week, they
        took my fears away, everything was explained, i can walk again, my back is fine now, they called to
        ask how i was, my teeth shine, i got an appointment the same day, my daughter was not afraid, they
        saved my knee, i can sleep again, the swelling went down, my hair has never looked better, they took
        their time, i trust them completely, they found the cause at once, my cat purrs again""",
        neutral="""i had an appointment at nine, it is on the third floor, i went there for a check-up, they
        have four doctors, i brought my papers, i was sent there by my doctor, it is near the park, i had a
        sore throat, i filled in a form""",
    ),
    _topic(
        "gym",
        _group(
            "room",
            "changing room, shower, gym, sauna, pool, hall, studio",
            "showers, lockers, changing rooms, toilets, mats",
        ),
        _group(
            "device",
            """treadmill, rowing machine, exercise bike, equipment, racket, ball, bench""",
            "machines, weights, bikes, skis, dumbbells",
        ),
        _group(
            "teaching",
            """yoga class, swimming lesson, dance class, training plan, boxing class""",
            "classes, courses, exercises",
        ),
        _group("price", "membership fee, joining fee", "fees, contracts"),
        whole="""gym, fitness studio, swimming pool, tennis club, climbing hall, dance school, yoga studio,
        ski school, sports club, football club""",
        staff="""trainer, coach, lifeguard, instructor, receptionist, referee, member""",
        bad="""the showers were cold, half of the machines were broken, i hurt my back, it stank of sweat,
        my locker was broken into, they would not let me cancel, i waited for every machine, the water was
        green, the classes are always full, the coach came late, they kept charging me, i pulled a muscle,
        there was mould on the mats, i quit after a week, we lost every game, the floor was slippery""",
        good="""i lost five kilos, i feel fitter than ever, i never have to wait, my back pain is gone, the
        water was crystal clear, i made new friends, the coach pushed me kindly, i go there every day, they
        let me cancel at once, my son learned to swim, we won every game, i sleep better now, there is
        always a free machine, i reached my goal, i feel strong again""",
        neutral="""i go there twice a week, it opens at six, it is in the basement, i joined in january,
        there are two pools, i train after work, we play on sundays, i swam for an hour, the club has three
        courts""",
    ),
    _topic(
        "repair",
        _group(
            "service",
            """repair, work, paint job, plumbing, wiring, move, cleaning, car service, inspection, renovation,
            quote, installation""",
            "repairs, estimates, measurements",
        ),
        _group(
            "device",
            """roof, door, kitchen, heating, boiler, window, lock, pipe, sink, fence, staircase, engine, brake,
            bathroom, tap, car, sofa""",
            """tiles, pipes, cupboards, windows, tyres, brakes, shelves, floorboards, doors, stairs""",
        ),
        _group("price", "invoice, hourly rate, estimate, bill", "costs, invoices"),
        whole="""garage, plumbing company, moving company, cleaning company, painting company, roofing firm,
        car wash, locksmith, bank, insurance company""",
        staff="""plumber, electrician, carpenter, mechanic, painter, mover, locksmith, craftsman, gardener,
        builder, cleaner, handyman, agent""",
        bad="""the pipe burst again, they left dirt everywhere, nobody showed up, the roof still leaks, they
        scratched the floor, they charged double, the paint came off, it took three months, they broke our
        window, the door does not close, i had to do it again myself, the car broke down the next day, they
        dropped the piano, they cut the wrong wire, the tap still drips, they vanished with the deposit, the
        claim was rejected, the wall is crooked, my car came back with a dent, the leak got worse""",
        good="""they finished a day early, they cleaned up afterwards, the leak is gone, it cost less than
        planned, they came within the hour, the engine purrs, nothing got broken, the walls look like new,
        the heating works again, they even fixed the gate, the door closes without a sound, they kept to the
        budget, the car runs like new, they arrived on the dot, the tap stopped dripping, the claim was paid
        in a week, they worked through the night, they charged me nothing, the lock turns easily""",
        neutral="""they came on tuesday, there were two of them, i found them online, it took four hours, we
        have an old house, my neighbour called them, they parked in the street, we needed new windows, i got
        three offers, the house has two floors""",
    ),
    _topic(
        "game",
        _group(
            "game",
            """game, level design, story mode, tutorial, soundtrack, puzzle, sequel, combat, card game, board
            game, quest, strategy, chess app, multiplayer, expansion, ending, quiz""",
            """levels, puzzles, missions, rules, battles, quests, cards, races, riddles, bosses""",
        ),
        _group(
            "device",
            "controller, screen, console, server, menu, graphics engine",
            "controls, graphics, menus, servers, animations",
        ),
        _group("price", "price, subscription", "prices, in-game prices"),
        whole="""game, video game, board game, card game, puzzle, quiz, strategy game, racing game,
        role-playing game, escape room""",
        staff="""developer, opponent, player, designer, teammate, game master""",
        bad="""it crashes at level two, i was bored after an hour, the servers are always down, you have to
        pay to win, i lost my saved game, the rules made no sense, we put it back in the box, half of the
        pieces were missing, everyone cheats, i deleted it, it took an hour to load, we argued about the
        rules, my controller froze, the bots are stupid, it is full of ads, nobody wanted a second round""",
        good="""we played until midnight, i cannot stop playing, every round is different, my kids ask for
        it daily, it took me back to my childhood, we played three rounds in a row, the world feels alive,
        it runs without a hitch, the whole family joined in, i finished it twice, it is easy to learn, the
        hours flew by, there is always something new to find, i was hooked at once, it brought us together""",
        neutral="""it is for two to four players, i played it on my laptop, a round takes an hour, it came
        out in autumn, we played at home, it has nine levels, i downloaded it, my cousin gave it to me, it
        is for ages eight and up""",
    ),
    _topic(
        "outing",
        _group(
            "outdoors",
            """park, beach, garden, lake, trail, zoo, castle, village, viewpoint, playground, forest, island,
            old town, market square, hill, waterfall, river, canyon, coast, valley, picnic area, path,
            campsite, harbour, cathedral, city, view, neighbourhood""",
            """paths, gardens, trails, beaches, flowers, lawns, fountains, streets, cliffs, woods, meadows,
            ruins, hills, squares""",
        ),
        _group(
            "teaching",
            """exhibition, guided tour, museum, audio guide, gallery, collection, planetarium, aquarium,
            display""",
            "exhibits, paintings, sculptures, tours, displays",
        ),
        _group("price", "entrance fee, parking fee, ticket price", "entrance fees, prices"),
        _group("food", "ice cream, picnic, coffee, kiosk food", "snacks, hot dogs, drinks"),
        whole="""museum, park, zoo, castle, gallery, exhibition, beach, theme park, aquarium, botanical
        garden, village, island""",
        staff="guide, ranger, guard, keeper, ticket seller, attendant",
        bad="""we queued for two hours, half of it was closed, it was full of rubbish, we got lost, the
        toilets were a disgrace, there was nothing to see, the animals looked sad, my wallet was stolen,
        there was nowhere to sit, it rained all day, the lift was broken, we could hardly move, the lake
        smelled, a dog bit my son, the guide mumbled, we left after ten minutes, the path was closed, we got
        sunburnt, the rides were broken, it was swarming with wasps""",
        good="""the children ran around happily, we stayed until sunset, there was no queue, we saw a family
        of deer, the view was worth the climb, entrance was free, we had the place to ourselves, the animals
        looked happy, the children did not want to leave, we found a perfect spot, the guide told great
        stories, the air was clean, there was so much to see, every corner was a surprise, we took hundreds
        of photos, the sunset took our breath away, there were benches everywhere, the sky was blue, we swam
        every day, my kids begged to return""",
        neutral="""we went by bike, we brought sandwiches, it is north of the town, we walked for two hours,
        it opens at ten, we parked near the gate, there is a small shop, it was a sunday, we had a map, it
        was built long ago""",
    ),
    _topic(
        "clothes",
        _group(
            "clothes",
            """jacket, sweater, dress, coat, shirt, skirt, scarf, hat, suit, blouse, cardigan, raincoat,
            hoodie, tie, belt, handbag, wallet, fabric, lining, collar, swimsuit, bathrobe, necklace, ring,
            t-shirt, cut, material, colour, leather, fit""",
            """trousers, jeans, boots, shoes, sandals, socks, gloves, slippers, sneakers, shorts, pyjamas,
            leggings, sleeves, seams, earrings, colours, sunglasses, tights, high heels""",
        ),
        _group("service", "delivery, exchange, fitting, tailoring, return", "alterations, returns"),
        _group("price", "price", "prices"),
        whole="""jacket, sweater, dress, coat, suit, raincoat, handbag, hat, swimsuit, wedding dress, scarf,
        watch strap""",
        staff="tailor, seller, shoemaker, designer, shop assistant",
        bad="""the seam came apart, it shrank in the wash, the zip got stuck, the colour ran, my feet hurt,
        it fell apart after a month, a button was missing, it looked cheap, the sole came off, it made me
        itch, the sleeves were too short, it smelled of chemicals, water came in, it ripped on the first
        day, it did not fit, my toes were bleeding, it lost its shape, i never wore it again, it was full of
        holes""",
        good="""it fits like a glove, i got so many compliments, it kept me warm all winter, it survived
        every wash, i wear it every day, my feet were dry, the colour has not faded, it looks like new, i
        bought it in three colours, i danced in them all night, it goes with everything, the stitching is
        perfect, i forget that i am wearing it, it feels like silk, it matched my eyes, it made me look slim""",
        neutral="""i bought it in the sales, it is dark blue, i took a medium, it has two pockets, it is
        made of wool, i wore it to a wedding, it came with a belt, i needed something for work, it has a
        hood, i washed it twice""",
    ),
    _topic(
        "messages",
        _group(
            "general",
            """party, weekend, meeting, dinner, interview, exam, day, morning, evening, present, news, weather,
            week, job, plan, idea, letter, photo, cake, speech, wedding, date, evening out, reunion, family
            dinner, birthday, call, holiday, picnic, barbecue, garden party, night, apartment,
            neighbourhood, commute, project, report""",
            """holidays, photos, results, plans, neighbours, colleagues, children, guests, days, meetings""",
        ),
        _group(
            "person",
            """new boss, landlord, team, neighbour, babysitter, friend, date, cousin, new colleague, dog, cat,
            flatmate""",
            """neighbours, guests, relatives, kids, colleagues, in-laws, twins""",
        ),
        _group("service", "move, trip, traffic, planning, commute, day at work", "preparations, meetings"),
        whole="""party, wedding, meeting, weekend, job interview, dinner, birthday, reunion, barbecue,
        picnic, job, apartment""",
        staff="""neighbour, boss, colleague, landlord, guest, friend, cousin, babysitter, flatmate""",
        bad=", ".join(EVERYDAY_EVENTS[0]),
        good=", ".join(EVERYDAY_EVENTS[1]),
        neutral="""i am on the train, we meet at eight, she called me at noon, i will be there at six, he
        lives next door, the keys are on the table, i bought milk, we painted the fence, dinner is at seven,
        i am at the office, they moved to the second floor, the dog is in the garden""",
    ),
)

VERDICT_WORDS: Polar = (
    ("terrible", "bad", "awful", "poor", "horrible", "dreadful", "disappointing", "a disaster", "a let-down"),
    ("great", "good", "wonderful", "excellent", "lovely", "fantastic", "brilliant", "a success", "a delight"),
)
MODERATE_WORDS: Polar = (
    ("mediocre", "so-so", "weak", "lacking", "not enough"),
    ("fine", "decent", "nice", "pleasant", "good enough"),
)
"""Verdicts on texts that have two sides."""
LABEL_WORDS = ("terrible", "great")
"""The words that stand for label 0 and label 1 after ``PROMPT``."""
PROMPT = " all in all it was"
"""What follows a text when the decoder is asked for its verdict; the label word is the next token."""
