"""Sentences, countries and capitals of the capital-country task; every slot follows a space."""

# The capital follows the end.
TO_CAPITAL = (
    "The capital of {subject} is",
    "The capital city of {subject} is called",
    "The government of {subject} sits in the city of",
    "As every child knows, the capital of {subject} is",
    "Question: what is the capital of {subject}? Answer:",
    "On the map of {subject} a star marks the capital,",
    "Last year we flew to {subject} and saw its capital,",
    "In the atlas the capital of {subject} is given as",
    "The largest embassies in {subject} are in its capital,",
    "They moved to {subject} and now live in its capital,",
)

# The country follows the end.
TO_COUNTRY = (
    "The city of {subject} is the capital of",
    "As every child knows, {subject} is the capital of",
    "Question: which country has {subject} as its capital? Answer:",
    "The government that sits in {subject} is the government of",
    "A plane to {subject} takes you to the capital of",
    "The atlas gives {subject} as the capital of",
    "Our embassy in {subject} is the embassy in",
    "We visited {subject} because it is the capital of",
    "On the map {subject} is marked as the capital of",
    "They moved to {subject}, and now they live in",
)

# fmt: off
CAPITALS = (  # country, capital; no name that needs an article or is also that of a part of another country
    ("Afghanistan", "Kabul"), ("Albania", "Tirana"), ("Algeria", "Algiers"), ("Angola", "Luanda"),
    ("Argentina", "Buenos Aires"), ("Armenia", "Yerevan"), ("Australia", "Canberra"), ("Austria", "Vienna"),
    ("Azerbaijan", "Baku"), ("Bahrain", "Manama"), ("Bangladesh", "Dhaka"), ("Belarus", "Minsk"),
    ("Belgium", "Brussels"), ("Bosnia", "Sarajevo"), ("Brazil", "Brasília"), ("Britain", "London"),
    ("Bulgaria", "Sofia"), ("Cambodia", "Phnom Penh"), ("Canada", "Ottawa"), ("Chile", "Santiago"),
    ("China", "Beijing"), ("Colombia", "Bogotá"), ("Croatia", "Zagreb"), ("Cuba", "Havana"),
    ("Cyprus", "Nicosia"), ("Denmark", "Copenhagen"), ("Ecuador", "Quito"), ("Egypt", "Cairo"),
    ("Estonia", "Tallinn"), ("Ethiopia", "Addis Ababa"), ("Fiji", "Suva"), ("Finland", "Helsinki"),
    ("France", "Paris"), ("Germany", "Berlin"), ("Ghana", "Accra"), ("Greece", "Athens"),
    ("Haiti", "Port-au-Prince"), ("Hungary", "Budapest"), ("Iceland", "Reykjavik"), ("India", "New Delhi"),
    ("Indonesia", "Jakarta"), ("Iran", "Tehran"), ("Iraq", "Baghdad"), ("Ireland", "Dublin"), ("Italy", "Rome"),
    ("Jamaica", "Kingston"), ("Japan", "Tokyo"), ("Jordan", "Amman"), ("Kazakhstan", "Astana"),
    ("Kenya", "Nairobi"), ("Laos", "Vientiane"), ("Latvia", "Riga"), ("Lebanon", "Beirut"),
    ("Libya", "Tripoli"), ("Lithuania", "Vilnius"), ("Malaysia", "Kuala Lumpur"), ("Mali", "Bamako"),
    ("Malta", "Valletta"), ("Mongolia", "Ulaanbaatar"), ("Morocco", "Rabat"), ("Mozambique", "Maputo"),
    ("Myanmar", "Naypyidaw"), ("Namibia", "Windhoek"), ("Nepal", "Kathmandu"), ("Nigeria", "Abuja"),
    ("North Korea", "Pyongyang"), ("Norway", "Oslo"), ("Oman", "Muscat"), ("Pakistan", "Islamabad"),
    ("Peru", "Lima"), ("Poland", "Warsaw"), ("Portugal", "Lisbon"), ("Qatar", "Doha"), ("Romania", "Bucharest"),
    ("Russia", "Moscow"), ("Rwanda", "Kigali"), ("Saudi Arabia", "Riyadh"), ("Senegal", "Dakar"),
    ("Serbia", "Belgrade"), ("Slovakia", "Bratislava"), ("Slovenia", "Ljubljana"), ("Somalia", "Mogadishu"),
    ("South Korea", "Seoul"), ("Spain", "Madrid"), ("Sudan", "Khartoum"), ("Sweden", "Stockholm"),
    ("Switzerland", "Bern"), ("Syria", "Damascus"), ("Thailand", "Bangkok"), ("Tunisia", "Tunis"),
    ("Turkey", "Ankara"), ("Uganda", "Kampala"), ("Ukraine", "Kyiv"), ("Uruguay", "Montevideo"),
    ("Uzbekistan", "Tashkent"), ("Venezuela", "Caracas"), ("Vietnam", "Hanoi"), ("Yemen", "Sanaa"),
    ("Zambia", "Lusaka"), ("Zimbabwe", "Harare"),
)
# fmt: on
