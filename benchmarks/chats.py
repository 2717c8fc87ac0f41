"""Conversations for benchmarks, as alternating turns of user and assistant.

The last turn is the user's and waits for an answer. As in real conversations, several turns quote
or repeat what came before.
"""

CHATS: tuple[tuple[str, ...], ...] = (
    ("Hi! Can you help me plan a birthday party for my sister? She turns thirty next month.",),
    ("I keep waking up at three in the morning. What could I try before I see a doctor?",),
    ("My neighbour plays the drums every evening. How do I bring it up without a quarrel?",),
    (
        "Which is better for a beginner, a guitar or a ukulele?",
        "A ukulele is easier to start with: it has four soft strings, small chords and costs "
        "little. A guitar has a wider range and more music written for it, but the first weeks "
        "are harder on the fingers.",
        "I have small hands and about an hour a week. Which one would you choose for me, and why?",
    ),
    (
        "What should I cook tonight? I have rice, eggs, carrots and some soy sauce.",
        "Fried rice! Cook the rice and let it cool. Dice the carrots and fry them for five "
        "minutes. Push them aside, scramble the eggs in the same pan, add the rice and two "
        "spoonfuls of soy sauce, and fry everything until it is hot.",
        "Sounds good. Write the recipe as a numbered list, with amounts for two people.",
    ),
    (
        "Write a short message to my landlord: the heating has been broken since Monday.",
        "Dear Mr. Keller,\n\nthe heating in my flat has been broken since Monday, and the rooms "
        "do not get warmer than 15 degrees. Please send somebody to repair it this week.\n\nKind "
        "regards,\nPaula Stein",
        "Make it a little firmer, and ask him to answer until Friday. Keep the rest as it is.",
    ),
    (
        "I am going to Lisbon for three days in May. What should I see?",
        "On the first day walk through Alfama up to the castle. On the second take the tram to "
        "Belém for the tower and the monastery. Keep the third for the tile museum and an evening "
        "by the river.",
        "We will have a toddler with us.",
        "Then take it slower: the oceanarium is a sure success, the gardens in Belém have room to "
        "run, and a tram ride is an attraction in itself. Leave the steep lanes of Alfama for "
        "the morning, when it is cool, and use a carrier instead of a pushchair.",
        "Put all of that together into a plan for the three days, morning and afternoon.",
    ),
    (
        'What does this error mean? TypeError: can only concatenate str (not "int") to str',
        "You are joining a text and a number with `+`. Python does not turn the number into text "
        'by itself: use `str(number)`, or an f-string such as `f"total: {number}"`.',
        'Here is my line: print("You have " + count + " new messages"). Please correct it, and '
        "show me both ways.",
    ),
    (
        "Let's play a game: you think of an animal and give me hints.",
        "Gladly! First hint: I live in cold water, but I breathe air.",
        "Are you a whale?",
        "Not quite, but we might meet. Second hint: I have whiskers and long teeth, and I like to "
        "lie on the ice with many others of my kind.",
        "A walrus! Your turn: ask me questions until you know which animal I think of.",
    ),
    (
        "Explain what inflation is, in simple words.",
        "Inflation means that prices rise over time, so the same money buys less than before. If "
        "bread costs two euros this year and two euros ten next year, that is an inflation of "
        "five percent.",
        "And why does the central bank raise interest rates then?",
    ),
)
