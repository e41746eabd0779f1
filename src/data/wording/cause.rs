//! External causes (chapter 20) in words: a committed table for the everyday ones, a grammar for transport accidents,
//! and the official description for the rest.

use std::collections::HashMap;

use super::forms::{bag, lower_case, without_brackets};
use super::table::rows;
use crate::codes::Code;
use crate::data::draw::Draw;

/// What happened, as a noun phrase ("a fall off a ladder") and, where there is one, as a verb phrase in the past tense
/// without its subject ("fell off a ladder").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) noun: String,
    pub(crate) verb: Option<String>,
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
    victim: &'static Victim,
    event: Event,
    place: Place,
}

enum Event {
    Collision(&'static Counterpart),
    Noncollision,
}

#[derive(Clone, Copy)]
enum Place {
    Traffic,
    Nontraffic,
    Unknown,
}

struct Victim {
    description: &'static str,
    /// Completes "was hit by a car ...".
    doing: &'static [&'static str],
    /// How such a person comes to harm without a collision.
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
                    None => match Transport::parse(&lower_case(description)) {
                        Some(transport) => Wordings::Transport(transport),
                        None => Wordings::Described(as_cause(own_description(description)?)),
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
                Cause { noun: draw.word(nouns).to_owned(), verb: draw.pick(verbs).map(|verb| (*verb).to_owned()) }
            }
            Wordings::Transport(transport) => transport.word(draw),
            Wordings::Described(cause) => cause.clone(),
        })
    }
}

impl Transport {
    fn parse(description: &str) -> Option<Self> {
        let (victim, rest) = description.split_once(" injured in ")?;
        let victim = VICTIMS.iter().find(|known| known.description == victim)?;
        let (what, place) = if let Some(what) = rest.strip_suffix(" in traffic accident") {
            (what, Place::Traffic)
        } else if let Some(what) = rest.strip_suffix(" in nontraffic accident") {
            (what, Place::Nontraffic)
        } else {
            (rest.strip_suffix(", unspecified whether traffic or nontraffic accident")?, Place::Unknown)
        };
        let event = match what.strip_prefix("collision with ") {
            Some(other) => Event::Collision(COUNTERPARTS.iter().find(|known| known.description == other)?),
            None if what == "noncollision transport accident" && !victim.noncollision.is_empty() => Event::Noncollision,
            None => return None,
        };
        Some(Self { victim, event, place })
    }

    fn word(&self, draw: &mut Draw) -> Cause {
        let place = match self.place {
            Place::Traffic => draw.word(&["on the road", "on a public street", "in traffic", "on the highway"]),
            Place::Nontraffic => draw.word(&[
                "off the road",
                "on private land, not in traffic",
                "in a driveway, off the street",
                "in a parking lot, not on a road",
            ]),
            Place::Unknown => draw.word(&["(on a road or not is not known)", "(traffic or not is unknown)"]),
        };
        let doing = draw.word(self.victim.doing);
        match &self.event {
            Event::Noncollision => {
                let (noun, verb) = draw.pick(self.victim.noncollision).copied().unwrap_or_default();
                Cause { noun: format!("{noun}, {doing} {place}"), verb: Some(format!("{verb}, {doing} {place}")) }
            }
            Event::Collision(other) => {
                let words = draw.word(other.words);
                let verb = if other.is_fixed {
                    draw.word(&["ran into", "crashed into", "hit"])
                } else {
                    draw.word(&["was hit by", "was struck by", "collided with", "was in a collision with"])
                };
                let noun = draw.word(&["a collision with", "a crash with"]);
                Cause {
                    noun: format!("{noun} {words} {doing} {place}"),
                    verb: Some(format!("{verb} {words} {doing} {place}")),
                }
            }
        }
    }
}

/// A description as a cause: "bitten by rat" is something that was done to somebody.
fn as_cause(text: String) -> Cause {
    const DONE: &[&str] = &["bitten ", "struck ", "scratched ", "crushed ", "pecked ", "caught ", "hit "];
    if DONE.iter().any(|word| text.starts_with(word)) {
        Cause { noun: format!("being {text}"), verb: Some(format!("was {text}")) }
    } else if text.starts_with("fall ") {
        Cause { noun: format!("a {text}"), verb: Some(format!("had a {text}")) }
    } else {
        Cause { noun: text, verb: None }
    }
}

/// A description as a noun phrase.
fn describe(description: &str) -> String {
    let text =
        without_brackets(&lower_case(&description.replace(" as the place of occurrence of the external cause", "")));
    match text.strip_prefix("activity, ") {
        Some(activity) => format!("the activity {activity}"),
        None if text.contains(" injured in ") || text.contains(" injured by ") => format!("an accident ({text})"),
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
                .filter(|node| node.children.is_empty() && node.code.undotted().starts_with(['V', 'W', 'X', 'Y']))
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
            assert!(node.children.is_empty(), "{key} is a header");
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
                for words in std::iter::once(&cause.noun).chain(&cause.verb) {
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
    fn a_transport_accident_names_victim_counterpart_and_place() {
        let (_, causes) = causes();
        let mut draw = Draw::new(5, "test", 1);
        for _ in 0..50 {
            let cause = causes.word(Code::parse("V13.4").unwrap(), &mut draw).unwrap();
            let verb = cause.verb.unwrap();
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
