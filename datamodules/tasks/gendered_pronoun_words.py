"""Sentences and words of the gendered-pronoun task; every slot but the opening follows a space."""

# A statement and the start of the question that is hung on it; the pronoun follows the end.
TEMPLATES = (
    "{opening} {name} is very good at {topic}, isn't",
    "{opening} {name} was reading about {topic} all day, wasn't",
    "{opening} {name} has always liked {topic}, hasn't",
    "{opening} {name} does not care for {topic}, does",
    "{opening} {name} knows a lot about {topic}, doesn't",
    "{opening} {name} would rather talk about {topic}, wouldn't",
    "{opening} {name} could teach a class on {topic}, couldn't",
    "{opening} {name} will never be tired of {topic}, will",
)

OPENINGS = ("So", "Well", "Now", "Clearly", "Perhaps", "Surely", "Indeed")

# fmt: off
FEMALE = (
    "Alice", "Amanda", "Amy", "Angela", "Ann", "Anna", "Anne", "Barbara", "Bella", "Betty", "Carol",
    "Caroline", "Catherine", "Charlotte", "Christine", "Claire", "Clara", "Deborah", "Diana", "Eleanor",
    "Elizabeth", "Ellen", "Emily", "Emma", "Eva", "Grace", "Hannah", "Heather", "Helen", "Holly", "Isabel",
    "Jane", "Jennifer", "Jenny", "Jessica", "Joan", "Judith", "Julia", "Julie", "Karen", "Kate",
    "Katherine", "Kathleen", "Katie", "Laura", "Lauren", "Lily", "Linda", "Lisa", "Louise", "Lucy",
    "Margaret", "Maria", "Marie", "Martha", "Mary", "Melissa", "Michelle", "Molly", "Monica", "Nancy",
    "Nicole", "Nina", "Olivia", "Patricia", "Rachel", "Rebecca", "Rose", "Ruth", "Sandra", "Sara", "Sarah",
    "Sharon", "Sophie", "Stephanie", "Susan", "Victoria", "Wendy",
)

MALE = (
    "Adam", "Alan", "Albert", "Andrew", "Anthony", "Arthur", "Ben", "Bill", "Bob", "Brian", "Bruce", "Carl",
    "Charles", "Craig", "Daniel", "Dave", "David", "Dennis", "Donald", "Doug", "Douglas", "Edward", "Eric",
    "Ernest", "Eugene", "Frank", "Fred", "Gary", "George", "Gordon", "Greg", "Harry", "Henry", "Howard",
    "Hugh", "Ian", "Ivan", "Jack", "Jacob", "James", "Jason", "Jeff", "Jerry", "Jim", "Joe", "John",
    "Jonathan", "Joseph", "Joshua", "Justin", "Keith", "Kenneth", "Kevin", "Larry", "Lawrence", "Leonard",
    "Louis", "Luke", "Mark", "Martin", "Matthew", "Michael", "Nathan", "Neil", "Nicholas", "Oscar",
    "Patrick", "Paul", "Peter", "Phil", "Philip", "Ralph", "Raymond", "Richard", "Robert", "Roger", "Ryan",
    "Samuel", "Scott", "Simon", "Stanley", "Stephen", "Steven", "Ted", "Thomas", "Tim", "Todd", "Tom",
    "Tony", "Victor", "Vincent", "Walter", "Wayne", "William",
)

TOPICS = (
    "chess", "tennis", "music", "history", "football", "painting", "poetry", "physics", "gardening",
    "cooking", "mathematics", "geography", "swimming", "golf", "biology", "chemistry", "photography",
    "astronomy", "hockey", "cricket", "fishing", "art", "law", "dancing", "medicine", "politics",
    "literature", "theatre", "grammar", "rugby", "baseball", "computers",
)
# fmt: on
