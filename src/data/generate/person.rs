//! The person of a case: an age and a sex that fit the diagnoses, and nothing that would be coded.

use crate::data::draw::Draw;
use crate::data::wording::Register;

/// A person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Person {
    age: Age,
    is_woman: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Days(usize),
    Years(usize),
}

/// What the diagnoses say of the person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fit {
    sex: Option<Sex>,
    age: Option<AgeGroup>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sex {
    Woman,
    Man,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AgeGroup {
    Newborn,
    Child,
    Adult,
    ChildBearing,
    /// "Elderly" in chapter 15: 35 and more at delivery.
    LateMother,
    /// "Young" in chapter 15: under 16 at delivery.
    YoungMother,
    Old,
}

const WOMEN: &[&str] =
    &["pregnan", "uter", "ovar", "vagin", "vulv", "menstru", "menopaus", "endometri", "female", "maternal", "labor"];
const MEN: &[&str] = &["prostat", "penis", "testi", "scrot", "male ", "epididym", "foreskin", "phimosis"];
const OLD: &[&str] = &["senile", "age-related", "presbyopia", "alzheimer"];
const YOUNG: &[&str] = &[
    "juvenile",
    "infantile",
    "child",
    "adolescen",
    "pediatric",
    // Growing bone: growth plates, and fractures that bend or buckle.
    "physeal",
    "greenstick",
    "torus fracture",
    "upper femoral epiphysis",
];

impl Fit {
    /// What one code says, by its chapter and the words of its description (lower case).
    pub(super) fn of(undotted: &str, description: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| description.contains(word));
        let age = match undotted.as_bytes().first() {
            Some(b'P') => Some(AgeGroup::Newborn),
            Some(b'O') if description.contains("elderly") => Some(AgeGroup::LateMother),
            Some(b'O') if description.contains("young") => Some(AgeGroup::YoungMother),
            Some(b'O') => Some(AgeGroup::ChildBearing),
            _ if has(&["newborn", "neonatal"]) => Some(AgeGroup::Newborn),
            _ if description.contains("in childhood") => Some(AgeGroup::Adult),
            _ if has(OLD) => Some(AgeGroup::Old),
            _ if has(YOUNG) => Some(AgeGroup::Child),
            _ if description.contains("adult") => Some(AgeGroup::Adult),
            _ => None,
        };
        let sex = if undotted.starts_with('O') || (has(WOMEN) && age != Some(AgeGroup::Newborn)) {
            Some(Sex::Woman)
        } else if has(MEN) && !description.contains("female") {
            Some(Sex::Man)
        } else {
            None
        };
        Self { sex, age }
    }

    /// Both together; `None` when no person fits.
    pub(super) fn and(self, other: Self) -> Option<Self> {
        fn join<T: PartialEq>(a: Option<T>, b: Option<T>) -> Result<Option<T>, ()> {
            match (a, b) {
                (Some(a), Some(b)) if a != b => Err(()),
                (a, b) => Ok(a.or(b)),
            }
        }
        Some(Self { sex: join(self.sex, other.sex).ok()?, age: join(self.age, other.age).ok()? })
    }

    /// Somebody who fits.
    pub(super) fn person(self, draw: &mut Draw) -> Person {
        let age = match self.age {
            Some(AgeGroup::Newborn) => Age::Days(draw.between(2, 20)),
            Some(AgeGroup::Child) => Age::Years(draw.between(4, 15)),
            Some(AgeGroup::ChildBearing) => Age::Years(draw.between(18, 42)),
            Some(AgeGroup::LateMother) => Age::Years(draw.between(36, 45)),
            Some(AgeGroup::YoungMother) => Age::Years(draw.between(13, 15)),
            Some(AgeGroup::Old) => Age::Years(draw.between(66, 91)),
            Some(AgeGroup::Adult) | None => Age::Years(draw.between(18, 84)),
        };
        let is_woman = self.sex.map_or_else(|| draw.chance(0.5), |sex| sex == Sex::Woman);
        Person { age, is_woman }
    }
}

impl Person {
    /// As a noun phrase: "54-year-old woman", "54 yo F".
    pub(super) fn who(&self, register: Register, draw: &mut Draw) -> String {
        let (noun, letter) = match (self.age, self.is_woman) {
            (Age::Days(_), true) => ("newborn girl", "F"),
            (Age::Days(_), false) => ("newborn boy", "M"),
            (Age::Years(0..=15), true) => ("girl", "F"),
            (Age::Years(0..=15), false) => ("boy", "M"),
            (Age::Years(_), true) => (draw.word(&["woman", "woman", "female", "lady"]), "F"),
            (Age::Years(_), false) => (draw.word(&["man", "man", "male", "gentleman"]), "M"),
        };
        match (self.age, register) {
            (Age::Days(days), _) => format!("{days}-day-old {noun}"),
            (Age::Years(years), Register::Triage) => match draw.below(4) {
                0 => format!("{years}{letter}"),
                1 => format!("{years} yo {letter}"),
                2 => format!("{years}y {letter}"),
                _ => format!("{letter} {years}"),
            },
            (Age::Years(years), _) => format!("{years}-year-old {noun}"),
        }
    }

    /// The age alone.
    pub(super) fn age(&self) -> String {
        match self.age {
            Age::Days(days) => format!("{days} days old"),
            Age::Years(years) => years.to_string(),
        }
    }

    /// "he" or "she".
    pub(super) fn pronoun(&self) -> &'static str {
        if self.is_woman { "she" } else { "he" }
    }
}
