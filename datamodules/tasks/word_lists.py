"""Pairs of words with one relation: opposites, plurals, past tenses, nationalities, sums of number words."""

from datamodules.tasks.capitals import CAPITALS
from datamodules.tasks.wording import pairs_of, words_of

Pairs = tuple[tuple[str, str], ...]

OPPOSITES = pairs_of(
    """
    hot/cold, big/small, tall/short, fast/slow, young/old, rich/poor, happy/sad, good/bad, early/late, hard/soft,
    high/low, full/empty, open/closed, strong/weak, wet/dry, clean/dirty, near/far, thick/thin, wide/narrow,
    deep/shallow, loud/quiet, heavy/light, true/false, right/wrong, up/down, inside/outside, before/after,
    above/below, first/last, more/less, many/few, always/never, everything/nothing, love/hate, friend/enemy,
    war/peace, day/night, black/white, north/south, east/west, male/female, man/woman, boy/girl, king/queen,
    husband/wife, brother/sister, father/mother, son/daughter, uncle/aunt, life/death, summer/winter, begin/end,
    start/stop, buy/sell, push/pull, win/lose, give/take, accept/reject, increase/decrease, positive/negative,
    maximum/minimum, public/private, guilty/innocent, alive/dead, asleep/awake, rough/smooth, sharp/dull,
    simple/complex, easy/difficult, cheap/expensive, ancient/modern, active/passive, internal/external,
    import/export, success/failure, victory/defeat, profit/loss, teacher/student, question/answer, top/bottom,
    front/back, entrance/exit, arrive/depart, laugh/cry, sweet/sour, brave/afraid, safe/dangerous, tight/loose,
    solid/liquid, superior/inferior, major/minor, artificial/natural, physical/mental, urban/rural,
    vertical/horizontal, forward/backward, hero/villain, optimistic/pessimistic, temporary/permanent,
    theory/practice, remember/forget, attack/defend, cause/effect, input/output
    """
)

PLURALS = pairs_of(
    """
    cat/cats, dog/dogs, car/cars, tree/trees, house/houses, book/books, city/cities, country/countries,
    child/children, man/men, woman/women, person/people, foot/feet, tooth/teeth, mouse/mice, leaf/leaves,
    life/lives, wife/wives, family/families, story/stories, party/parties, company/companies, army/armies,
    lady/ladies, enemy/enemies, box/boxes, church/churches, class/classes, glass/glasses, dish/dishes,
    branch/branches, bus/buses, boy/boys, girl/girls, day/days, key/keys, toy/toys, window/windows, door/doors,
    table/tables, chair/chairs, river/rivers, mountain/mountains, island/islands, ship/ships, horse/horses,
    bird/birds, flower/flowers, teacher/teachers, student/students, doctor/doctors, friend/friends,
    brother/brothers, sister/sisters, king/kings, queen/queens, star/stars, planet/planets, letter/letters,
    word/words, song/songs, game/games, idea/ideas, problem/problems, question/questions, answer/answers,
    number/numbers, animal/animals, plant/plants, stone/stones, road/roads, bridge/bridges, village/villages,
    school/schools, hospital/hospitals, bank/banks, shop/shops, market/markets, farm/farms, garden/gardens,
    egg/eggs, apple/apples, shoe/shoes, hat/hats, shirt/shirts, knife/knives, wolf/wolves, hero/heroes,
    computer/computers, phone/phones, camera/cameras, picture/pictures, map/maps, page/pages, language/languages,
    law/laws, rule/rules, war/wars, battle/battles, soldier/soldiers, machine/machines, engine/engines, body/bodies,
    hand/hands, eye/eyes, arm/arms, bone/bones, crisis/crises, analysis/analyses, baby/babies, study/studies,
    wall/walls, room/rooms, office/offices, field/fields, forest/forests, ocean/oceans, lake/lakes, cloud/clouds,
    cow/cows, pig/pigs, goat/goats, lion/lions, tiger/tigers, bear/bears, snake/snakes, insect/insects,
    nation/nations, state/states, town/towns, event/events, year/years, month/months, week/weeks, hour/hours,
    minute/minutes, color/colors, shape/shapes, sound/sounds, voice/voices, dream/dreams, plan/plans,
    system/systems, method/methods, theory/theories, memory/memories, industry/industries, factory/factories,
    library/libraries, century/centuries, activity/activities, community/communities, disease/diseases, drug/drugs,
    cell/cells, gene/genes, atom/atoms, wave/waves, particle/particles, force/forces, worker/workers,
    writer/writers, artist/artists, player/players, team/teams, group/groups, member/members, leader/leaders,
    president/presidents, judge/judges, train/trains, plane/planes, boat/boats, coin/coins, gift/gifts, cup/cups,
    bottle/bottles, pen/pens, bed/beds, clock/clocks, ring/rings, potato/potatoes, tomato/tomatoes, goose/geese
    """
)

PASTS = pairs_of(
    """
    go/went, come/came, see/saw, take/took, give/gave, make/made, find/found, think/thought, know/knew, tell/told,
    become/became, leave/left, feel/felt, bring/brought, begin/began, keep/kept, hold/held, write/wrote,
    stand/stood, hear/heard, mean/meant, meet/met, run/ran, pay/paid, sit/sat, speak/spoke, lead/led, grow/grew,
    lose/lost, fall/fell, send/sent, build/built, understand/understood, draw/drew, break/broke, spend/spent,
    rise/rose, drive/drove, buy/bought, wear/wore, choose/chose, seek/sought, throw/threw, catch/caught, deal/dealt,
    win/won, forget/forgot, sell/sold, fight/fought, teach/taught, eat/ate, sing/sang, fly/flew, sleep/slept,
    drink/drank, swim/swam, ride/rode, walk/walked, talk/talked, work/worked, play/played, look/looked, call/called,
    ask/asked, need/needed, help/helped, move/moved, live/lived, believe/believed, happen/happened,
    include/included, continue/continued, learn/learned, change/changed, watch/watched, follow/followed,
    stop/stopped, create/created, open/opened, offer/offered, love/loved, consider/considered, appear/appeared,
    wait/waited, serve/served, die/died, expect/expected, stay/stayed, reach/reached, kill/killed, remain/remained,
    suggest/suggested, raise/raised, pass/passed, require/required, report/reported, decide/decided, carry/carried,
    study/studied, try/tried, use/used, want/wanted, turn/turned, start/started, show/showed
    """
)

NATIONALITIES = pairs_of(
    """
    France/French, Germany/German, Italy/Italian, Spain/Spanish, Japan/Japanese, China/Chinese, Russia/Russian,
    England/English, Ireland/Irish, Scotland/Scottish, Sweden/Swedish, Norway/Norwegian, Denmark/Danish,
    Finland/Finnish, Poland/Polish, Greece/Greek, Turkey/Turkish, Egypt/Egyptian, India/Indian, Brazil/Brazilian,
    Mexico/Mexican, Canada/Canadian, Australia/Australian, Portugal/Portuguese, Switzerland/Swiss, Austria/Austrian,
    Belgium/Belgian, Hungary/Hungarian, Romania/Romanian, Bulgaria/Bulgarian, Ukraine/Ukrainian, Israel/Israeli,
    Iran/Iranian, Iraq/Iraqi, Pakistan/Pakistani, Thailand/Thai, Vietnam/Vietnamese, Korea/Korean,
    Indonesia/Indonesian, Cuba/Cuban, Argentina/Argentine, Chile/Chilean, Peru/Peruvian, Colombia/Colombian,
    Nigeria/Nigerian, Kenya/Kenyan, Ghana/Ghanaian, Ethiopia/Ethiopian, Morocco/Moroccan, Algeria/Algerian,
    Tunisia/Tunisian, Syria/Syrian, Lebanon/Lebanese, Jordan/Jordanian, Afghanistan/Afghan, Nepal/Nepalese,
    Iceland/Icelandic, Croatia/Croatian, Serbia/Serbian, Albania/Albanian, Armenia/Armenian, Georgia/Georgian,
    America/American, Britain/British, Europe/European, Asia/Asian, Africa/African, Rome/Roman, Venice/Venetian,
    Wales/Welsh, Netherlands/Dutch, Palestine/Palestinian, Jamaica/Jamaican, Hawaii/Hawaiian, Texas/Texan,
    California/Californian, Paris/Parisian, Persia/Persian, Babylon/Babylonian, Arabia/Arab
    """
)

NUMBERS = words_of(
    "one two three four five six seven eight nine ten eleven twelve "
    "thirteen fourteen fifteen sixteen seventeen eighteen"
)
DIGITS = NUMBERS[:9]
SUMS = tuple(
    (f"{first} plus {second}", NUMBERS[i + j + 1]) for i, first in enumerate(DIGITS) for j, second in enumerate(DIGITS)
)

RELATIONS: dict[str, Pairs] = {
    "capital": CAPITALS,
    "nationality": NATIONALITIES,
    "opposite": OPPOSITES,
    "past": PASTS,
    "plural": PLURALS,
    "sum": SUMS,
}

# What the instruction says; every slot follows a space.
SENTENCES: dict[str, str] = {
    "capital": "The capital of the country {subject} is the city of",
    "nationality": "The adjective for {subject} is the word",
    "opposite": "In one word, the opposite of {subject} is",
    "past": "Write the past tense. Present: {subject}. Past:",
    "plural": "Write the plural. Singular: {subject}. Plural:",
    "sum": "The sum {subject} is the number",
}
