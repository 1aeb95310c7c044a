"""The concepts and styles that the bundled model is trained on.

Chosen by eye from the captioned emoji set: things that look unlike each other at 128 pixels,
few enough that a small network on a CPU learns to draw each of them.
"""

EMOJI_STYLES = ("flat", "3d")
FIVE_STYLES = ("flat", "3d", "color", "noto", "blob")

_FOOD = """
    red apple; green apple; banana; cherries; grapes; strawberry; watermelon; pineapple; peach;
    tomato; avocado; broccoli; ear of corn; mushroom; garlic; bread; croissant; pretzel;
    pancakes; cheese wedge; hamburger; pizza; hot dog; french fries; fried shrimp; sushi; dango;
    bento box; popcorn; doughnut; birthday cake; lollipop; soft ice cream; hot beverage; beer
    mug; wine glass; tumbler glass
"""
_ANIMALS = """
    dog face; cat face; fox; lion; tiger face; panda; pig face; frog; monkey face; rabbit face;
    gorilla; elephant; unicorn; penguin; owl; dove; dragon; turtle; snake; dolphin; shark;
    tropical fish; octopus; crab; butterfly; honeybee; lady beetle; rose; tulip; sunflower;
    cactus; palm tree; evergreen tree; four leaf clover
"""
_THINGS = """
    soccer ball; basketball; tennis; rugby football; game die; bullseye; trophy; balloon;
    wrapped gift; christmas tree; jack-o-lantern; guitar; microphone; camera; laptop; mobile
    phone; light bulb; candle; old key; locked; hammer; gear; scissors; pencil; closed book;
    envelope; compass; bell; alarm clock; crown; gem stone; top hat; closed umbrella; spiral
    calendar; money bag; bomb
"""
_TRAVEL = """
    automobile; bus; fire engine; bicycle; motor scooter; high-speed train; rocket; airplane;
    helicopter; sailboat; speedboat; parachute; house; castle; volcano; rainbow; sun; crescent
    moon; star; cloud; cloud with rain; snowflake; water wave; anchor
"""
_FACES = """
    grinning face; face with tears of joy; smiling face with sunglasses; smiling face with
    heart-eyes; angry face; crying face; sleepy face; pensive face; robot; ghost; alien; skull;
    pile of poo; red heart; green heart; blue heart; yellow heart; purple heart; broken heart;
    thumbs up
"""


def _names(block: str) -> tuple[str, ...]:
    return tuple(" ".join(block.split()).split("; "))


EMOJI_CONCEPTS: tuple[str, ...] = tuple(
    name for block in (_FOOD, _ANIMALS, _THINGS, _TRAVEL, _FACES) for name in _names(block)
)
