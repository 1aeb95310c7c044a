"""The concepts and styles that the bundled model is trained on.

Chosen by eye from the captioned emoji set: things that look unlike each other at 128 pixels,
few enough that a small network on a CPU learns to draw each of them.
"""

EMOJI_STYLES = ("flat", "3d")

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

EMOJI_CONCEPTS: tuple[str, ...] = tuple(
    name
    for block in (_FOOD, _ANIMALS, _THINGS, _TRAVEL, _FACES)
    for name in " ".join(block.split()).split("; ")
)


EMOJI_MORE: tuple[str, ...] = tuple(
    " ".join(
        """
    receipt; cigarette; broom; shopping cart; accordion; spider; classical building;
    factory; sauropod; kite; mosque; building construction; racing car; telescope; woman's
    boot; zzz; locomotive; syringe; wastebasket; boomerang; passenger ship; turkey; pouring
    liquid; construction; fuel pump; ladder; swan; man's shoe; monkey; couch and lamp;
    headstone; musical score; spider web; trumpet; hospital; paw prints; crocodile; oil
    drum; mosquito; books; bowling; parrot; dna; triangular ruler; bikini; ferris wheel;
    performing arts; flying saucer; bathtub; satellite antenna; memo; satellite; crossed
    swords; snail; sunglasses; manual wheelchair; chicken; sweat droplets; adhesive bandage;
    microscope; monorail; zebra; headphone; eagle; bug; newspaper; wilted flower; party
    popper; chart increasing; boar; train; bat; skis; spade suit; beaver; chair; water
    pistol; fly; wind face; fax machine; cockroach; shower; baby bottle; chart decreasing;
    kimono; running shirt; stadium; yarn; roll of paper; gloves; worm; movie camera;
    military helmet; speaker high volume; fishing pole; seedling; loudspeaker; volleyball;
    admission tickets; lipstick; saxophone; convenience store; desert; glass of milk; 2nd
    place medal; fallen leaf; candy; shopping bags; red paper lantern; wood; graduation cap;
    spiral shell; toolbox; hot pepper; mountain; drum; socks; musical keyboard; dodo;
    bouquet; dragon face; lobster; tornado; desert island; face in clouds; cricket; sewing
    needle; piñata; teacup without handle; burrito; hippopotamus; ice skate; steaming bowl;
    hiking boot; school; horse; sandwich; statue of liberty; feather; ice hockey; dagger;
    musical notes; seal; falafel; bacon; sparkler; bed; fire extinguisher; chocolate bar;
    sloth; shield; diving mask; comet; world map; duck; printer; butter; spouting whale;
    confetti ball; handbag; mouse; roasted sweet potato; see-no-evil monkey; moai; hotel;
    hundred points; meat on bone; camping; japanese castle; luggage; studio microphone;
    floppy disk; shrimp; baseball; bar chart; goggles; chipmunk; money with wings; rooster;
    police car light; martial arts uniform; balance scale; bottle with popping cork;
    collision; hut; cocktail glass; two hearts; custard; rabbit; flying disc; bubbles;
    poultry leg; hammer and pick; potted plant; hedgehog; pushpin; squid; umbrella with rain
    drops; railway track; clinking glasses; white flower; drop of blood; flashlight;
    partying face; coconut; hatching chick; safety vest; poodle; magic wand; bucket; fortune
    cookie; coffin; firecracker; orangutan; circus tent; woman's hat; ballet shoes; tokyo
    tower; kitchen knife; yo-yo; woman's clothes; heart decoration; rock; one-piece
    swimsuit; rice ball; high-heeled shoe; cloud with lightning and rain; cupcake; soap;
    honey pot; church; fondue; salt; oyster; carpentry saw; hot springs; cucumber; violin;
    teddy bear; taco; snowman without snow; shaved ice; melon; curry rice; scarf; water
    buffalo; small airplane; toilet; wedding; open book; mouse face; stopwatch; leafy green;
    plunger; bird; watch; teapot; mango; spoon; bell pepper; onion; peacock; fireworks;
    bubble tea; pear; koala; bear; cookie; tractor; magnet; ambulance; television;
    briefcase; key; puzzle piece; artist palette; paintbrush; skateboard; american football;
    axe; tent; cow; dog; cat; whale; flamingo; kangaroo; wolf; t-rex; heart on fire;
    thinking face; clown face; winking face; cowboy hat face; pouting face; ship; taxi;
    pill; coin; scroll; hourglass done; maple leaf; glasses; jeans; backpack; spaghetti;
    shooting star; full moon; fish; motorcycle; pen; battery; window; cherry blossom;
    blueberries
    """.split()
    ).split("; ")
)
MANY_CONCEPTS = EMOJI_CONCEPTS + EMOJI_MORE
