"""Sentences and words of the indirect-object task; every slot follows a space."""

# Slots: two people in the opening, a place, an object, and the one who acts; the answer follows the end.
TEMPLATES = (
    "Once {first} and {second} had settled down near the {place}, {subject} handed the {object} to",
    "Early that morning {first} and {second} met outside the {place}, where {subject} gave the {object} to",
    "While {first} and {second} waited beside the {place}, {subject} offered the {object} to",
    "As soon as {first} and {second} arrived at the {place}, {subject} passed the {object} to",
    "Because {first} and {second} were both new at the {place}, {subject} kindly lent the {object} to",
    "Yesterday {first} and {second} came back from the {place}, and {subject} returned the {object} to",
    "Before {first} and {second} locked the {place} for the night, {subject} sold the {object} to",
    "During the storm {first} and {second} hid inside the {place}. Later {subject} brought the {object} to",
    "Soon {first} and {second} grew tired of the {place}, so {subject} threw the {object} to",
    "Last week {first} and {second} cleaned the whole {place}. Afterwards {subject} showed the {object} to",
    "Since {first} and {second} had time to spare at the {place}, {subject} decided to give the {object} to",
    "Next to the {place} stood {first} and {second}. Without a word {subject} slid the {object} to",
    "With the {object} in a bag, {first} and {second} reached the {place}, and {subject} gave it to",
    "On the road to the {place} {first} and {second} found the {object}, so {subject} chose to give it to",
    "Later that day {first} and {second} met at the {place}. Smiling, {subject} held out the {object} to",
)

# fmt: off
NAMES = (
    "Alice", "Amanda", "Amy", "Angela", "Anna", "Barbara", "Carol", "Charlotte", "Christine", "Claire",
    "Diana", "Elizabeth", "Emily", "Emma", "Grace", "Hannah", "Heather", "Helen", "Jane", "Jennifer",
    "Jessica", "Julia", "Karen", "Kate", "Laura", "Linda", "Lisa", "Lucy", "Margaret", "Maria", "Mary",
    "Michelle", "Nicole", "Nina", "Olivia", "Rachel", "Rebecca", "Ruth", "Sandra", "Sarah", "Sophie",
    "Susan", "Adam", "Alan", "Albert", "Andrew", "Anthony", "Arthur", "Brian", "Carl", "Charles",
    "Craig", "Daniel", "David", "Edward", "Eric", "Frank", "Fred", "George", "Henry", "Jack", "James",
    "Jason", "John", "Joseph", "Keith", "Kevin", "Luke", "Martin", "Matthew", "Michael", "Oscar",
    "Patrick", "Paul", "Peter", "Richard", "Robert", "Roger", "Ryan", "Scott", "Simon", "Thomas",
    "Victor", "Walter",
)

PLACES = (
    "airport", "beach", "bridge", "castle", "church", "factory", "farm", "garden", "gym", "hospital",
    "hotel", "kitchen", "library", "market", "museum", "office", "park", "restaurant", "school",
    "station", "theatre", "zoo",
)

OBJECTS = (
    "apple", "ball", "basket", "blanket", "book", "bottle", "bowl", "box", "cake", "camera", "candle",
    "coin", "cup", "guitar", "hammer", "hat", "key", "lamp", "letter", "map", "mirror", "painting",
    "phone", "ring",
)
# fmt: on
