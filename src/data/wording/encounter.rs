//! Seventh characters in words: which visit it is, and the detail (open or closed, how it heals) that goes with the
//! diagnosis itself.

use super::Register;
use crate::data::draw::Draw;

/// The kind of visit that a seventh character stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Episode {
    /// Active treatment.
    Initial,
    /// Routine care while it heals.
    Subsequent,
    /// A condition that an old injury left.
    Sequela,
}

/// A seventh character: its visit, and what it says about the diagnosis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encounter {
    pub(crate) episode: Option<Episode>,
    detail: Detail,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Detail {
    None,
    Fracture {
        opening: Opening,
        healing: Healing,
    },
    /// Wording of its own, as "mild stage".
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    NotStated,
    Closed,
    Open,
    OpenSmall,
    OpenLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Healing {
    NotStated,
    Routine,
    Delayed,
    Nonunion,
    Malunion,
}

impl Encounter {
    /// Reads the text of an extension, as "subsequent encounter for closed fracture with nonunion".
    pub(crate) fn parse(text: &str) -> Self {
        let (episode, rest) = if let Some(rest) = text.strip_prefix("initial encounter") {
            (Episode::Initial, rest)
        } else if let Some(rest) = text.strip_prefix("subsequent encounter") {
            (Episode::Subsequent, rest)
        } else if text == "sequela" || text == "sequela of fracture" {
            (Episode::Sequela, "")
        } else {
            let says_nothing =
                ["stage unspecified", "unspecified time", "unspecified eye", "not applicable or unspecified"];
            let detail = if says_nothing.contains(&text) { Detail::None } else { Detail::Text(own_wording(text)) };
            return Self { episode: None, detail };
        };
        let has = |word| rest.contains(word);
        let opening = match rest {
            _ if has("type IIIA") => Opening::OpenLarge,
            _ if has("type I or II") => Opening::OpenSmall,
            _ if has("open fracture") => Opening::Open,
            _ if has("closed fracture") => Opening::Closed,
            _ => Opening::NotStated,
        };
        let healing = match rest {
            _ if has("routine healing") => Healing::Routine,
            _ if has("delayed healing") => Healing::Delayed,
            _ if has("nonunion") => Healing::Nonunion,
            _ if has("malunion") => Healing::Malunion,
            _ => Healing::NotStated,
        };
        Self { episode: Some(episode), detail: Detail::Fracture { opening, healing } }
    }

    /// What the character adds to the wording of the diagnosis, each part led by a comma; often nothing.
    ///
    /// Closed is the default of the guidelines (section I.C.19.c), so that leaving it out says the same.
    pub(crate) fn detail(&self, register: Register, draw: &mut Draw) -> String {
        let (opening, healing) = match &self.detail {
            Detail::None => return String::new(),
            Detail::Text(text) => return format!(", {text}"),
            Detail::Fracture { opening, healing } => (*opening, *healing),
        };
        let is_patient = register == Register::Patient;
        let opening = match (opening, is_patient) {
            (Opening::NotStated, _) => "",
            (Opening::Closed, false) => draw.word(&["closed", "closed", "", "skin intact", ""]),
            (Opening::Closed, true) => draw.word(&["the skin was not broken", "", "closed", ""]),
            (Opening::Open, false) => draw.word(&["open", "open fracture", "compound"]),
            (Opening::Open, true) => draw.word(&["the bone came through the skin", "an open fracture"]),
            (Opening::OpenSmall, false) => {
                draw.word(&["open type I", "open type II", "open, Gustilo II", "Gustilo I open"])
            }
            (Opening::OpenSmall, true) => {
                draw.word(&["open fracture type I", "the bone came through the skin (type II)", "open, type II"])
            }
            (Opening::OpenLarge, false) => {
                draw.word(&["open type IIIA", "open type IIIB", "open, Gustilo IIIC", "Gustilo IIIA open"])
            }
            (Opening::OpenLarge, true) => {
                draw.word(&["open fracture type IIIB", "the bone came through the skin (type IIIA)", "open, type IIIC"])
            }
        };
        let healing = match (healing, is_patient) {
            (Healing::NotStated, _) => "",
            (Healing::Routine, false) => draw.word(&["routine healing", "healing as expected", "healing routinely"]),
            (Healing::Routine, true) => draw.word(&["healing well", "healing the way it should", "healing normally"]),
            (Healing::Delayed, false) => draw.word(&["delayed healing", "delayed union", "slow to unite"]),
            (Healing::Delayed, true) => {
                draw.word(&["slow to heal", "healing slower than it should", "delayed healing"])
            }
            (Healing::Nonunion, false) => draw.word(&["nonunion", "with nonunion", "not united"]),
            (Healing::Nonunion, true) => draw.word(&["the bone has not joined", "it never grew together", "nonunion"]),
            (Healing::Malunion, false) => draw.word(&["malunion", "with malunion", "united in poor position"]),
            (Healing::Malunion, true) => draw.word(&["it healed crooked", "healed in a wrong position", "malunion"]),
        };
        [opening, healing].into_iter().filter(|part| !part.is_empty()).map(|part| format!(", {part}")).collect()
    }
}

impl Episode {
    /// The visit in words; for a patient a whole clause.
    pub(crate) fn visit(self, register: Register, draw: &mut Draw) -> &'static str {
        match (self, register) {
            (Self::Initial, Register::Clinician) => draw.word(&[
                "initial encounter",
                "first visit for this",
                "active treatment",
                "initial visit, active treatment",
                "new, seen for the first time",
            ]),
            (Self::Initial, Register::Patient) => draw.word(&[
                "this is the first visit for it",
                "it is being treated for the first time",
                "nobody has looked at it before",
                "first time getting treated for it",
            ]),
            (Self::Initial, Register::Triage) => {
                draw.word(&["first visit", "initial", "initial enc", "new, active tx", "1st visit"])
            }
            (Self::Subsequent, Register::Clinician) => draw.word(&[
                "subsequent encounter",
                "follow-up visit",
                "routine follow-up",
                "aftercare visit",
                "seen again in the healing phase",
            ]),
            (Self::Subsequent, Register::Patient) => draw.word(&[
                "back for a check-up on it",
                "this is a follow-up visit for it",
                "it was treated before and this is the follow-up",
                "back so they can see how it is coming along",
            ]),
            (Self::Subsequent, Register::Triage) => {
                draw.word(&["follow-up", "f/u", "recheck", "subsequent enc", "f/u visit"])
            }
            (Self::Sequela, Register::Clinician) => draw.word(&[
                "sequela",
                "late effect",
                "long-term sequela",
                "residual of the old event",
                "late effect, healed long ago",
            ]),
            (Self::Sequela, Register::Patient) => draw.word(&[
                "this is a long-term effect of it from long ago",
                "that was years ago and it left a lasting effect",
                "it healed long ago but left a lasting problem",
                "here for the late effects of it",
            ]),
            (Self::Sequela, Register::Triage) => {
                draw.word(&["sequela", "late effect", "old, late effect", "long-term effect", "residual of old"])
            }
        }
    }

    /// When it happened, in keeping with the visit.
    pub(crate) fn time(self, draw: &mut Draw) -> &'static str {
        match self {
            Self::Initial => draw.word(&[
                "this morning",
                "an hour ago",
                "today",
                "last night",
                "yesterday",
                "about two hours ago",
                "earlier today",
                "this afternoon",
                "30 minutes ago",
                "at lunchtime",
            ]),
            Self::Subsequent => draw.word(&[
                "three weeks ago",
                "six weeks ago",
                "last month",
                "a month ago",
                "two months ago",
                "ten weeks ago",
            ]),
            Self::Sequela => draw.word(&[
                "two years ago",
                "five years ago",
                "years ago",
                "back in 2019",
                "long ago",
                "about three years ago",
            ]),
        }
    }
}

/// The words of a detail that is no episode, without the synonyms in brackets: "in the field [EMT or ambulance]".
fn own_wording(text: &str) -> String {
    text.split([' ']).take_while(|word| !word.starts_with(['[', '('])).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_is_read_into_visit_and_detail() {
        let encounter =
            Encounter::parse("subsequent encounter for open fracture type IIIA, IIIB, or IIIC with nonunion");
        assert_eq!(encounter.episode, Some(Episode::Subsequent));
        assert_eq!(encounter.detail, Detail::Fracture { opening: Opening::OpenLarge, healing: Healing::Nonunion });
        assert_eq!(Encounter::parse("in the field [EMT or ambulance]").detail, Detail::Text("in the field".into()));
        assert_eq!(Encounter::parse("stage unspecified").detail, Detail::None);
        assert_eq!(Encounter::parse("sequela of fracture").episode, Some(Episode::Sequela));
    }

    #[test]
    fn details_of_different_characters_are_worded_differently() {
        let texts = [
            "initial encounter for closed fracture",
            "initial encounter for open fracture type I or II",
            "initial encounter for open fracture type IIIA, IIIB, or IIIC",
            "subsequent encounter for closed fracture with routine healing",
            "subsequent encounter for closed fracture with delayed healing",
            "subsequent encounter for closed fracture with nonunion",
            "subsequent encounter for closed fracture with malunion",
        ];
        let mut owners = std::collections::HashMap::new();
        let mut draw = Draw::new(1, "test", 0);
        for text in texts {
            let encounter = Encounter::parse(text);
            for _ in 0..200 {
                for register in Register::ALL {
                    let worded = encounter.detail(register, &mut draw);
                    let key = (encounter.episode, worded);
                    assert_eq!(*owners.entry(key.clone()).or_insert(text), text, "{key:?}");
                }
            }
        }
    }
}
