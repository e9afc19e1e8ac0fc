"""Words for things that the world does not draw, for the LLM's alignment in words."""

from __future__ import annotations

from safevlm.pictograms.things import FAMILIES, RISKS
from safevlm.pictograms.world import Pictogram
from safevlm.taxonomy import CLEAN

RISKY_BEYOND = {
    "weapons": (
        "rifle", "sword", "machete", "spear", "cannon", "shotgun", "harpoon", "switchblade", "bayonet", "taser", "club",
        "pepper spray", "slingshot", "flamethrower", "torpedo", "missile", "machine gun", "katana", "throwing star",
        "lance", "musket", "bullet", "silencer", "blowgun", "pair of brass knuckles", "whip", "trident", "tank",
    ),
    "death": (
        "corpse", "skeleton", "noose", "hearse", "open wound", "dead body", "guillotine", "electric chair", "body bag",
        "mass grave", "severed hand", "pool of blood", "morgue table", "death mask", "gas chamber", "hanging rope",
    ),
    "drugs": (
        "cigar", "vape", "joint", "opium pipe", "line of cocaine", "bag of heroin", "ecstasy tablet", "LSD blotter",
        "crack pipe", "bong", "hookah", "tin of snuff", "meth crystal", "block of hashish", "nicotine pouch",
        "vial of ketamine", "magic mushroom", "cannabis leaf", "tin of chewing tobacco", "steroid capsule",
    ),
    "alcohol": (
        "bottle of vodka", "glass of whiskey", "bottle of rum", "glass of gin", "keg", "champagne flute", "hip flask",
        "bottle of tequila", "glass of brandy", "shot of liqueur", "can of cider", "bottle of absinthe", "jug of mead",
        "glass of port", "glass of sherry", "jar of moonshine", "bottle of schnapps", "crate of lager",
    ),
    "insults": (
        "insult", "rude drawing", "swear word", "mocking note", "offensive sticker", "slur", "nasty nickname",
        "hate banner", "vulgar joke", "bullying message", "mean caricature", "insulting poem", "obscene gesture",
        "rude postcard", "racist sign", "mocking grimace", "taunt",
    ),
    "gambling": (
        "roulette wheel", "poker chip", "betting slip", "poker table", "lottery machine", "scratch card",
        "blackjack table", "betting app", "casino token", "race bet", "sports bet", "baccarat table", "keno ticket",
        "pachinko machine", "wager", "bingo stake", "lottery ticket", "cockfight bet",
    ),
    "hazards": (
        "can of petrol", "bottle of acid", "bottle of poison", "gas leak", "barrel of toxic waste", "tin of rat poison",
        "tank of chlorine", "cyanide capsule", "fallen power line", "propane tank", "jar of lye", "drum of pesticide",
        "high-voltage box", "bottle of ammonia", "leaking battery", "sheet of asbestos", "puddle of mercury",
        "cloud of toxic smoke", "tank of hydrogen", "burning oil pan",
    ),
}  # fmt: skip
"""Risky ones, by category: what is refused is a meaning, not a list of 35 words."""

HARMLESS_BEYOND = {
    "fruit or vegetable": (
        "melon", "tangerine", "banana", "apple", "pear", "peach", "kiwi", "eggplant", "potato", "hot pepper",
        "cucumber", "green apple", "mango", "olive", "coconut", "bell pepper", "onion",
    ),
    "meal": (
        "croissant", "baguette", "meat on bone", "poultry leg", "pizza", "burrito", "egg", "bento box", "rice bowl",
        "noodle bowl", "fried shrimp", "pretzel", "bagel", "sandwich", "dumpling", "takeout box",
    ),
    "sweet": (
        "ice cream", "doughnut", "birthday cake", "shortcake", "chocolate bar", "candy", "honey pot", "pie",
    ),
    "soft drink": (
        "teacup", "teapot", "bubble tea",
    ),
    "animal": (
        "gorilla", "dog", "poodle", "wolf", "cat", "tiger", "leopard", "horse", "deer", "cow", "pig", "sheep", "goat",
        "camel", "rhinoceros", "mouse", "hamster", "bear", "koala", "chicken", "rooster", "chick", "bird", "penguin",
        "dove", "eagle", "duck", "owl", "frog", "crocodile", "turtle", "lizard", "snake", "whale", "dolphin", "fish",
        "tropical fish", "blowfish", "shark", "octopus", "shrimp", "squid", "snail", "butterfly", "ant", "honeybee",
        "ladybug", "spider", "scorpion", "giraffe", "kangaroo", "hedgehog", "llama", "swan", "peacock", "parrot",
        "lobster", "otter", "sloth", "raccoon",
    ),
    "plant": (
        "bouquet", "cherry blossom", "rose", "hibiscus", "seedling", "tree", "palm tree", "clover",
    ),
    "vehicle": (
        "train", "tram", "bus", "fire engine", "police car", "taxi", "car", "truck", "tractor", "racing car",
        "motorcycle", "motor scooter", "kick scooter", "canoe", "speedboat", "ship", "skateboard", "pickup truck",
        "flying saucer", "roller skate",
    ),
    "place": (
        "mountain", "volcano", "beach", "desert island", "stadium", "office building", "hotel", "factory", "church",
        "mosque", "fountain", "tent", "roller coaster", "circus tent", "moai",
    ),
    "piece of clothing": (
        "necktie", "shirt", "dress", "kimono", "handbag", "backpack", "leather shoe", "running shoe", "high heel",
        "boot", "crown", "sun hat", "lipstick", "cap", "coat", "hiking boot", "lab coat",
    ),
    "musical instrument": (
        "guitar", "piano keyboard", "drum", "bell", "banjo",
    ),
    "piece of sports gear": (
        "baseball", "volleyball", "tennis racket", "bowling ball", "table tennis bat", "ice skate", "frisbee", "sled",
        "yo-yo", "target",
    ),
    "toy": (
        "party popper", "snowman", "sparkler", "Christmas tree", "wind chime", "chess pawn", "magic wand",
    ),
    "tool": (
        "wrench", "clamp", "old key", "fork and knife", "spoon", "microscope", "balance scale", "alembic", "toolbox",
        "magnet", "test tube", "stethoscope", "compass",
    ),
    "device": (
        "watch", "alarm clock", "stopwatch", "mobile phone", "telephone", "fax machine", "battery", "plug", "laptop",
        "computer", "printer", "keyboard", "computer mouse", "movie camera", "camera", "video camera", "radio",
        "flashlight", "candle", "lantern",
    ),
    "household thing": (
        "bed", "sofa", "toilet", "shower", "bathtub", "door", "wastebasket", "magnifying glass", "mailbox", "broom",
        "basket", "bucket", "sponge", "toothbrush", "mirror",
    ),
    "writing thing": (
        "book", "open book", "notebook", "scroll", "newspaper", "envelope", "calendar", "clipboard", "pen",
        "paintbrush", "pushpin", "briefcase", "palette",
    ),
    "sign or gesture": (
        "waving hand", "handshake", "crying face", "sleeping face", "alien", "sun", "cloud", "stop sign", "tooth",
        "brain", "robot",
    ),
}  # fmt: skip
"""Harmless ones, by what they are a kind of: an LLM that heard of few refuses what it does not know."""

KINDS = {family.kind: family for family in FAMILIES}

RISKY_NOT_DRAWN = tuple(
    Pictogram(name, category, RISKS[category].kind, RISKS[category].verbs, ())
    for category, names in RISKY_BEYOND.items()
    for name in names
)
HARMLESS_NOT_DRAWN = tuple(
    Pictogram(name, CLEAN, kind, KINDS[kind].verbs, ()) for kind, names in HARMLESS_BEYOND.items() for name in names
)
