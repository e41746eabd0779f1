//! External causes (chapter 20) in words: a committed table for the everyday ones, a grammar for transport accidents,
//! and the official description for the rest.

use std::collections::HashMap;

use super::forms::{bag, lower_case, without_brackets};
use super::table::rows;
use crate::codes::Code;
use crate::data::draw::Draw;

/// What happened, as a noun phrase ("a fall off a ladder") and as a verb phrase in the past tense without its subject
/// ("fell off a ladder").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) noun: String,
    pub(crate) verb: String,
}

/// The wordings of all external causes of a release.
pub(crate) struct Causes {
    by_node: HashMap<Code, Wordings>,
}

enum Wordings {
    Listed { nouns: Vec<&'static str>, verbs: Vec<&'static str> },
    Transport(Transport),
    Described(Cause),
}

/// The parts of "VICTIM injured in collision with COUNTERPART in traffic accident".
struct Transport {
    victim: Person,
    event: Event,
    place: Place,
}

enum Event {
    Collision(&'static Counterpart),
    Noncollision,
    /// An accident of which no more is told.
    Accident,
}

#[derive(Clone, Copy)]
enum Place {
    Traffic,
    Nontraffic,
    Unknown,
    /// The description does not say.
    None,
}

/// Who came to harm in a transport accident.
struct Person {
    /// Completes "was hit by a car ...".
    doing: Vec<String>,
    /// How such a person comes to harm without a collision.
    noncollision: &'static [(&'static str, &'static str)],
}

struct Victim {
    description: &'static str,
    doing: &'static [&'static str],
    noncollision: &'static [(&'static str, &'static str)],
}

struct Counterpart {
    description: &'static str,
    words: &'static [&'static str],
    is_fixed: bool,
}

const TABLE: &str = include_str!("causes.tsv");

const ON_BICYCLE: &[(&str, &str)] = &[
    ("a fall off the bicycle with no collision", "fell off the bicycle without a collision"),
    ("a bike tipping over, no other vehicle involved", "tipped over on the bike, no other vehicle involved"),
    ("losing control of the bicycle and falling", "lost control of the bicycle and fell, nothing was hit"),
    ("being thrown from the bicycle without a collision", "was thrown from the bicycle without hitting anything"),
];
const ON_MOTORCYCLE: &[(&str, &str)] = &[
    ("laying the motorcycle down without a collision", "laid the motorcycle down without a collision"),
    ("a skid on the motorcycle, no collision", "skidded and fell off the motorcycle, nothing was hit"),
];
const IN_CAR: &[(&str, &str)] = &[
    ("a rollover of the car without a collision", "was in the car when it rolled over without a collision"),
    ("the car overturning, no collision", "was in the car as it overturned, nothing was hit"),
];

const NONCOLLISION: &[(&str, &str)] = &[
    ("a transport accident without any collision", "was in a transport accident without any collision"),
    ("an overturning without a collision", "was hurt when the vehicle overturned without a collision"),
];

/// Vehicles that people ride in or drive, as descriptions name them and as people do.
const VEHICLES: &[(&str, &str)] = &[
    ("3- or 4- wheeled all-terrain vehicle (atv)", "an all-terrain vehicle (ATV)"),
    ("ambulance or fire engine", "an ambulance or fire engine"),
    ("animal-drawn vehicle", "an animal-drawn vehicle"),
    ("bus", "a bus"),
    ("car", "a car"),
    ("dirt bike or motor/cross bike", "a dirt bike"),
    ("dune buggy", "a dune buggy"),
    ("electric (assisted) bicycle", "an electric bicycle"),
    ("heavy transport vehicle", "a heavy truck"),
    ("military vehicle", "a military vehicle"),
    ("other motorcycle", "a motorcycle"),
    ("other special all-terrain or other off-road motor vehicle", "another off-road motor vehicle"),
    ("pedal cycle", "a bicycle"),
    ("pick-up truck or van", "a pick-up truck or van"),
    ("railway train or railway vehicle", "a train"),
    ("snowmobile", "a snowmobile"),
    ("special agricultural vehicle", "a farm vehicle such as a tractor"),
    ("special construction vehicle", "a construction vehicle such as a digger"),
    ("special industrial vehicle", "an industrial vehicle such as a forklift"),
    ("streetcar", "a streetcar"),
    ("three-wheeled motor vehicle", "a three-wheeled motor vehicle"),
];

/// What a person does with a vehicle: the words before and after it in a description, and its wordings.
const ROLES: &[(&str, &str, &[&str])] = &[
    ("driver of ", "", &["while driving @", "as the driver of @"]),
    ("", " driver", &["while driving @", "as the driver of @"]),
    ("passenger in ", "", &["as a passenger in @", "while riding as a passenger in @"]),
    ("passenger on ", "", &["as a passenger on @", "while riding as a passenger on @"]),
    ("passenger of ", "", &["as a passenger of @", "while riding as a passenger of @"]),
    ("", " passenger", &["as a passenger of @", "while riding as a passenger of @"]),
    ("person on outside of ", "", &["while hanging on to the outside of @", "while riding on the outside of @"]),
    ("person boarding or alighting a ", "", &["while getting in or out of @", "while boarding or leaving @"]),
    ("person boarding or alighting an ", "", &["while getting on or off @", "while mounting or leaving @"]),
    ("person boarding or alighting from ", "", &["while getting on or off @", "while boarding or leaving @"]),
    ("person boarding or alighting ", "", &["while getting on or off @", "while mounting or leaving @"]),
    ("unspecified occupant of ", "", &["while in @ (driver or passenger not stated)"]),
    ("unspecified rider of ", "", &["while on @ (driver or passenger not stated)"]),
    ("unspecified ", " rider", &["while on @ (driver or passenger not stated)"]),
    ("unspecified ", " occupant", &["while in @ (driver or passenger not stated)"]),
    ("occupant of ", "", &["while riding in @", "as an occupant of @"]),
];

const VICTIMS: &[Victim] = &[
    Victim {
        description: "pedal cycle driver",
        doing: &["while riding a bicycle", "while cycling", "while pedalling a bike", "while biking"],
        noncollision: ON_BICYCLE,
    },
    Victim {
        description: "pedal cycle passenger",
        doing: &["while riding as a passenger on a bicycle", "as a passenger on the back of a bike"],
        noncollision: ON_BICYCLE,
    },
    Victim {
        description: "unspecified pedal cyclist",
        doing: &[
            "while on a bicycle (rider or passenger not stated)",
            "on a bike, not known whether riding it or as a passenger",
        ],
        noncollision: ON_BICYCLE,
    },
    Victim {
        description: "pedestrian on foot",
        doing: &["while walking", "while on foot", "as a pedestrian", "while crossing on foot"],
        noncollision: &[],
    },
    Victim {
        description: "pedestrian on roller-skates",
        doing: &["while on roller-skates", "while roller-skating"],
        noncollision: &[],
    },
    Victim {
        description: "pedestrian on skateboard",
        doing: &["while on a skateboard", "while skateboarding"],
        noncollision: &[],
    },
    Victim {
        description: "pedestrian on standing electric scooter",
        doing: &["while on a standing electric scooter", "while riding a stand-up e-scooter"],
        noncollision: &[],
    },
    Victim {
        description: "other motorcycle driver",
        doing: &["while riding a motorcycle", "as the driver of a motorbike"],
        noncollision: ON_MOTORCYCLE,
    },
    Victim {
        description: "other motorcycle passenger",
        doing: &["as a passenger on a motorcycle", "on the back seat of a motorbike"],
        noncollision: ON_MOTORCYCLE,
    },
    Victim {
        description: "electric (assisted) bicycle driver",
        doing: &["while riding an electric bicycle", "while riding an e-bike"],
        noncollision: &[],
    },
    Victim {
        description: "car driver",
        doing: &["while driving a car", "as the driver of a car", "behind the wheel of a car"],
        noncollision: IN_CAR,
    },
    Victim {
        description: "car passenger",
        doing: &["as a passenger in a car", "while riding as a car passenger"],
        noncollision: IN_CAR,
    },
    Victim {
        description: "driver of pick-up truck or van",
        doing: &["while driving a pick-up truck", "as the driver of a van"],
        noncollision: &[],
    },
    Victim {
        description: "passenger in pick-up truck or van",
        doing: &["as a passenger in a pick-up truck", "as a passenger in a van"],
        noncollision: &[],
    },
    Victim {
        description: "driver of bus",
        doing: &["while driving a bus", "as the driver of a bus"],
        noncollision: &[],
    },
    Victim {
        description: "passenger on bus",
        doing: &["as a passenger on a bus", "while riding on a bus as a passenger"],
        noncollision: &[],
    },
];

const COUNTERPARTS: &[Counterpart] = &[
    Counterpart {
        description: "car, pick-up truck or van",
        words: &["a car", "a van", "a pick-up truck"],
        is_fixed: false,
    },
    Counterpart { description: "car, pick-up or van", words: &["a car", "a van", "a pick-up truck"], is_fixed: false },
    Counterpart { description: "pedal cycle", words: &["a bicycle", "a cyclist"], is_fixed: false },
    Counterpart { description: "other pedal cycle", words: &["another bicycle", "another cyclist"], is_fixed: false },
    Counterpart {
        description: "two- or three-wheeled motor vehicle",
        words: &["a motorcycle", "a motorbike", "a moped"],
        is_fixed: false,
    },
    Counterpart {
        description: "heavy transport vehicle or bus",
        words: &["a heavy truck", "a bus", "a semi truck"],
        is_fixed: false,
    },
    Counterpart {
        description: "railway train or railway vehicle",
        words: &["a train", "a railway car"],
        is_fixed: false,
    },
    Counterpart {
        description: "fixed or stationary object",
        words: &["a tree", "a wall", "a pole", "a guard rail", "a parked obstacle"],
        is_fixed: true,
    },
    Counterpart {
        description: "sport utility vehicle",
        words: &["an SUV", "a sport utility vehicle"],
        is_fixed: false,
    },
    Counterpart {
        description: "other nonmotor vehicle",
        words: &["a vehicle without a motor", "a nonmotor vehicle"],
        is_fixed: false,
    },
    Counterpart {
        description: "unspecified motor vehicles",
        words: &["some motor vehicle, which kind is not known,", "an unknown motor vehicle"],
        is_fixed: false,
    },
    Counterpart {
        description: "other motor vehicles",
        words: &["another kind of motor vehicle", "a motor vehicle of another kind"],
        is_fixed: false,
    },
    Counterpart { description: "streetcar", words: &["a streetcar", "a tram"], is_fixed: false },
    Counterpart { description: "other type car", words: &["another car", "a sedan"], is_fixed: false },
    Counterpart { description: "pick-up truck", words: &["a pick-up truck", "a pickup"], is_fixed: false },
    Counterpart { description: "van", words: &["a van"], is_fixed: false },
    Counterpart {
        description: "pedestrian or animal",
        words: &["a pedestrian", "a deer", "a person on foot", "an animal"],
        is_fixed: false,
    },
];

impl Causes {
    /// The wordings for `nodes`, each with its official description. Left out is a node whose description is another's.
    pub(crate) fn new<'a>(nodes: impl Iterator<Item = (Code, &'a str)>) -> Self {
        let listed: HashMap<_, _> = rows(TABLE).collect();
        let nodes: Vec<(Code, &str)> = nodes.collect();
        let mut uses: HashMap<u64, usize> = HashMap::new();
        for (_, description) in &nodes {
            for text in [describe(description), lower_case(description)] {
                *uses.entry(bag(&text)).or_default() += 1;
            }
        }
        // A description counts twice where it has no brackets.
        let is_own = |text: &str, plain: bool| uses.get(&bag(text)).is_some_and(|n| *n == if plain { 2 } else { 1 });
        let own_description = |description: &str| {
            let (short, full) = (describe(description), lower_case(description));
            let is_plain = bag(&short) == bag(&full);
            [short, full].into_iter().find(|text| is_own(text, is_plain))
        };
        let by_node = nodes
            .iter()
            .filter_map(|&(node, description)| {
                let wordings = match listed.get(node.to_string().as_str()) {
                    Some(columns) => Wordings::Listed {
                        nouns: columns.first().cloned().unwrap_or_default(),
                        verbs: columns.get(1).cloned().unwrap_or_default(),
                    },
                    None => match Transport::parse(&description.to_lowercase()) {
                        Some(transport) => Wordings::Transport(transport),
                        None => Wordings::Described(as_cause(node, own_description(description)?)),
                    },
                };
                Some((node, wordings))
            })
            .collect();
        Self { by_node }
    }

    /// Whether `node` has wording of its own.
    pub(crate) fn has(&self, node: Code) -> bool {
        self.by_node.contains_key(&node)
    }

    /// Words the cause of `node`; `None` when the release has no such node in chapter 20.
    pub(crate) fn word(&self, node: Code, draw: &mut Draw) -> Option<Cause> {
        Some(match self.by_node.get(&node)? {
            Wordings::Listed { nouns, verbs } => {
                Cause { noun: draw.word(nouns).to_owned(), verb: draw.word(verbs).to_owned() }
            }
            Wordings::Transport(transport) => transport.word(draw),
            Wordings::Described(cause) => cause.clone(),
        })
    }
}

impl Transport {
    fn parse(description: &str) -> Option<Self> {
        let (victim, rest) = description.split_once(" injured in ")?;
        let victim = Person::parse(victim)?;
        let (what, place) = match rest {
            "traffic accident" | "unspecified traffic accident" => ("", Place::Traffic),
            "nontraffic accident" | "unspecified nontraffic accident" => ("", Place::Nontraffic),
            _ => [
                (" in traffic accident", Place::Traffic),
                (" in nontraffic accident", Place::Nontraffic),
                (", unspecified whether traffic or nontraffic accident", Place::Unknown),
                ("", Place::None),
            ]
            .into_iter()
            .find_map(|(ending, place)| Some((rest.strip_suffix(ending)?, place)))?,
        };
        let event = match what.strip_prefix("collision with ") {
            Some(other) => Event::Collision(COUNTERPARTS.iter().find(|known| known.description == other)?),
            None if what == "noncollision transport accident" => Event::Noncollision,
            None if what.is_empty() => Event::Accident,
            None => return None,
        };
        Some(Self { victim, event, place })
    }

    fn word(&self, draw: &mut Draw) -> Cause {
        let place = match self.place {
            Place::Traffic => draw.word(&[" on the road", " on a public street", " in traffic", " on the highway"]),
            Place::Nontraffic => draw.word(&[
                " off the road",
                " on private land, not in traffic",
                " in a driveway, off the street",
                " in a parking lot, not on a road",
            ]),
            Place::Unknown => draw.word(&[" (on a road or not is not known)", " (traffic or not is unknown)"]),
            Place::None => "",
        };
        let doing = draw.pick(&self.victim.doing).map(String::as_str).unwrap_or_default();
        match &self.event {
            Event::Noncollision => {
                let (noun, verb) = draw.pick(self.victim.noncollision).copied().unwrap_or_default();
                Cause { noun: format!("{noun}, {doing}{place}"), verb: format!("{verb}, {doing}{place}") }
            }
            Event::Accident => {
                let noun = draw.word(&["an accident, details not known,", "some accident"]);
                Cause { noun: format!("{noun} {doing}{place}"), verb: format!("was in {noun} {doing}{place}") }
            }
            Event::Collision(other) => {
                let words = draw.word(other.words);
                let verb = if other.is_fixed {
                    draw.word(&["ran into", "crashed into", "hit"])
                } else {
                    draw.word(&["was hit by", "was struck by", "collided with", "was in a collision with"])
                };
                let noun = draw.word(&["a collision with", "a crash with"]);
                Cause { noun: format!("{noun} {words} {doing}{place}"), verb: format!("{verb} {words} {doing}{place}") }
            }
        }
    }
}

impl Person {
    /// The person of a description (lower case).
    fn parse(description: &str) -> Option<Self> {
        if let Some(known) = VICTIMS.iter().find(|known| known.description == description) {
            let noncollision = if known.noncollision.is_empty() { NONCOLLISION } else { known.noncollision };
            return Some(Self { doing: known.doing.iter().map(|words| (*words).to_owned()).collect(), noncollision });
        }
        let (vehicle, words) = ROLES.iter().find_map(|(before, after, words)| {
            let named = description.strip_prefix(before)?.strip_suffix(after)?;
            let (_, vehicle) = VEHICLES.iter().find(|(name, _)| *name == named)?;
            Some((vehicle, words))
        })?;
        let doing = words.iter().map(|words| words.replace('@', vehicle)).collect();
        Some(Self { doing, noncollision: NONCOLLISION })
    }
}

/// A description as a cause: "bitten by rat" is something that was done to somebody.
fn as_cause(node: Code, text: String) -> Cause {
    // Places, activities and status are named beside what happened.
    if matches!(node.category().undotted(), "Y92" | "Y93" | "Y99") {
        return Cause { noun: text.clone(), verb: text };
    }
    const DONE: &[&str] =
        &["bitten ", "struck ", "scratched ", "crushed ", "pecked ", "caught ", "hit ", "stung ", "butted ", "kicked "];
    /// Nouns that stand for themselves, with the words that join them to "got hurt".
    const EVENTS: &[(&str, &str)] = &[
        ("accident", "in an"),
        ("accidental", "through"),
        ("activity", "during"),
        ("assault", "in an"),
        ("contact", "through"),
        ("discharge", "through the"),
        ("explosion", "in an"),
        ("exposure", "through"),
        ("heat exposure", "through"),
        ("inhalation", "through"),
        ("intentional", "through"),
        ("legal intervention", "in a"),
        ("military operations", "in"),
        ("overexertion", "through"),
        ("terrorism", "in"),
        ("war operations", "in"),
    ];
    /// Doings, and the same in the past tense.
    const DOINGS: &[(&str, &str)] = &[
        ("drowning and submersion ", "nearly drowned "),
        ("jumping or diving ", "jumped or dived "),
        ("striking against ", "struck against "),
    ];
    if let Some(word) = DONE.iter().find(|word| text.starts_with(**word)) {
        let done = match text[word.len()..].strip_prefix("by ") {
            Some(by) => format!("{word}by {}", with_article(by)),
            None => text.clone(),
        };
        return Cause { noun: format!("being {done}"), verb: format!("was {done}") };
    }
    if text.starts_with("fall ") {
        return Cause { noun: format!("a {text}"), verb: format!("had a {text}") };
    }
    if let Some((doing, did)) = DOINGS.iter().find(|(doing, _)| text.starts_with(doing)) {
        return Cause { verb: text.replacen(doing, did, 1), noun: text };
    }
    let is = |event: &str| text.strip_prefix(event).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ',']));
    if let Some((_, through)) = EVENTS.iter().find(|(event, _)| is(event)) {
        return Cause { verb: format!("got hurt {through} {text}"), noun: text };
    }
    Cause { noun: format!("an event ({text})"), verb: format!("got hurt ({text})") }
}

/// One thing with its article: "a turtle", "an orca"; several or "other" things without.
fn with_article(thing: &str) -> String {
    let head = thing.split([',', '(']).next().unwrap_or(thing).trim_end();
    let is_plain = head.ends_with('s')
        || ["other ", "unspecified ", "a ", "an ", "the "].iter().any(|word| head.starts_with(word));
    match head.chars().next() {
        Some('a' | 'e' | 'i' | 'o') if !is_plain => format!("an {thing}"),
        Some(_) if !is_plain => format!("a {thing}"),
        _ => thing.to_owned(),
    }
}

/// A description as a noun phrase.
fn describe(description: &str) -> String {
    let text =
        without_brackets(&lower_case(&description.replace(" as the place of occurrence of the external cause", "")));
    match text.strip_prefix("activity, ") {
        Some(activity) => format!("activity: {activity}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Release;

    fn causes() -> (Release, Causes) {
        let release = Release::builtin().unwrap();
        let causes = Causes::new(
            release
                .nodes()
                .iter()
                .filter(|node| node.is_leaf() && node.code.undotted().starts_with(['V', 'W', 'X', 'Y']))
                .map(|node| (node.code, node.description.as_str())),
        );
        (release, causes)
    }

    #[test]
    fn every_row_of_the_table_is_a_leaf_and_its_words_are_its_own() {
        let (release, causes) = causes();
        let mut owners = HashMap::new();
        for (key, columns) in rows(TABLE) {
            let code = Code::parse(key).unwrap();
            let node = release.node(code).unwrap_or_else(|| panic!("{key} is not in the release"));
            assert!(node.is_leaf(), "{key} is a header");
            assert_eq!(columns.len(), 2, "{key}");
            assert!(matches!(causes.by_node[&code], Wordings::Listed { .. }));
            for words in columns.concat() {
                assert_eq!(*owners.entry(bag(words)).or_insert(key), key, "{words}");
            }
        }
    }

    #[test]
    fn no_two_causes_are_worded_alike() {
        let (_, causes) = causes();
        // The order of words matters here: a van can hit a motorbike, and a motorbike a van.
        let mut owners: HashMap<String, Code> = HashMap::new();
        let mut draw = Draw::new(5, "test", 0);
        let mut shared = Vec::new();
        for &node in causes.by_node.keys() {
            for _ in 0..12 {
                let cause = causes.word(node, &mut draw).unwrap();
                for words in [&cause.noun, &cause.verb] {
                    let owner = *owners.entry(words.to_lowercase()).or_insert(node);
                    if owner != node {
                        shared.push(format!("{node} {owner} `{words}`"));
                    }
                }
            }
        }
        assert!(shared.is_empty(), "{}", shared.join("\n"));
    }

    #[test]
    fn descriptions_become_sentences() {
        let as_cause = |code: &str, text: &str| as_cause(Code::parse(code).unwrap(), text.to_owned());
        let cause = |text: &str| as_cause("W59.22", text);
        assert_eq!(as_cause("Y92.233", "cafeteria of hospital").noun, "cafeteria of hospital");
        assert_eq!(as_cause("Y93.75", "activity: martial arts").noun, "activity: martial arts");
        assert_eq!(cause("struck by turtle").verb, "was struck by a turtle");
        assert_eq!(cause("bitten by other rodents").noun, "being bitten by other rodents");
        assert_eq!(cause("contact with hot stove").verb, "got hurt through contact with hot stove");
        assert_eq!(cause("bather struck by powered watercraft").verb, "got hurt (bather struck by powered watercraft)");
        assert_eq!(cause("drowning and submersion due to fall off kayak").verb, "nearly drowned due to fall off kayak");
    }

    #[test]
    fn most_transport_accidents_are_put_together_from_their_parts() {
        let (release, causes) = causes();
        let is_transport = |node: &&crate::codes::Node| {
            node.is_leaf() && node.code.undotted().starts_with('V') && node.description.contains(" injured in ")
        };
        let all: Vec<_> = release.nodes().iter().filter(is_transport).collect();
        let is_parsed =
            |node: &&&crate::codes::Node| !matches!(causes.by_node.get(&node.code), Some(Wordings::Described(_)));
        let n_parsed = all.iter().filter(is_parsed).count();
        assert!(n_parsed * 100 > all.len() * 85, "{n_parsed} of {}", all.len());
        let mut draw = Draw::new(5, "test", 2);
        let verb = |code: &str, draw: &mut Draw| causes.word(Code::parse(code).unwrap(), draw).unwrap().verb;
        let truck = verb("V66.0", &mut draw);
        assert!(truck.contains("heavy truck") && truck.contains("motor"), "{truck}");
        let bus = verb("V70.2", &mut draw);
        assert!(bus.contains("outside of a bus"), "{bus}");
    }

    #[test]
    fn a_transport_accident_names_victim_counterpart_and_place() {
        let (_, causes) = causes();
        let mut draw = Draw::new(5, "test", 1);
        for _ in 0..50 {
            let cause = causes.word(Code::parse("V13.4").unwrap(), &mut draw).unwrap();
            let verb = cause.verb;
            assert!(["car", "van", "pick-up"].iter().any(|word| verb.contains(word)), "{verb}");
            assert!(["bicycle", "cycling", "bik"].iter().any(|word| verb.contains(word)), "{verb}");
            let fall = causes.word(Code::parse("V18.4").unwrap(), &mut draw).unwrap();
            assert!(
                ["without", "no ", "nothing"]
                    .iter()
                    .any(|word| fall.noun.contains(word) || fall.noun.contains("falling")),
                "{fall:?}"
            );
        }
    }
}
