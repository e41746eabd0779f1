//! What a text says beside its codes: absent findings, and circumstances that matter to no code.

use crate::data::draw::Draw;
use crate::data::wording::Register;

/// A finding that may be denied, unless a diagnosis has one of the words (beginnings of them).
struct Finding {
    name: &'static str,
    unless: &'static [&'static str],
}

const AIRWAY: &[&str] = &[
    "pneumon",
    "asthma",
    "bronch",
    "respir",
    "pulmon",
    "pleur",
    "lung",
    "cough",
    "influenza",
    "breath",
    "cold",
    "heart",
];
const BREAK: &[&str] = &["fracture", "break", "amputation", "crush"];
const SKIN: &[&str] = &["open", "wound", "laceration", "bite", "puncture", "abrasion", "amputation", "crush", "burn"];

const FINDINGS: &[Finding] = &[
    Finding {
        name: "fever",
        unless: &["fever", "infect", "sepsis", "pneumon", "influenza", "itis", "pyrexia", "viral"],
    },
    Finding {
        name: "chest pain",
        unless: &["chest", "angina", "infarct", "heart", "coronary", "cardi", "pneumon", "pleur"],
    },
    Finding { name: "shortness of breath", unless: AIRWAY },
    Finding { name: "wheezing", unless: AIRWAY },
    Finding {
        name: "headache",
        unless: &["headache", "migraine", "concussion", "head", "mening", "skull", "brain", "intracran"],
    },
    Finding {
        name: "loss of consciousness",
        unless: &["conscious", "concussion", "syncope", "coma", "head", "brain", "epilep", "seizure"],
    },
    Finding {
        name: "numbness",
        unless: &["nerve", "neuropath", "numb", "paresthesia", "spinal", "palsy", "cord", "carpal"],
    },
    Finding { name: "vomiting", unless: &["vomit", "nausea", "gastr", "enter", "bowel", "intestin", "pregnan"] },
    Finding { name: "dizziness", unless: &["dizz", "vertigo", "syncope", "concussion", "head"] },
    Finding { name: "fracture", unless: BREAK },
    Finding { name: "broken bone", unless: BREAK },
    Finding { name: "dislocation", unless: &["dislocat", "subluxat"] },
    Finding { name: "open wound", unless: SKIN },
    Finding { name: "foreign body", unless: &["foreign", "open", "wound", "laceration", "puncture", "bite"] },
    Finding {
        name: "rash",
        unless: &["rash", "dermat", "eczema", "urticaria", "skin", "measles", "varicella", "psoria", "zoster"],
    },
    Finding {
        name: "weight loss",
        unless: &["weight", "neoplasm", "malign", "diabet", "cachexia", "anorexia", "obes"],
    },
    Finding {
        name: "blood in the urine",
        unless: &["urin", "kidney", "bladder", "cyst", "renal", "hematuria", "neph", "urethr"],
    },
    Finding {
        name: "belly pain",
        unless: &[
            "abdom", "gastr", "append", "bowel", "intestin", "pelvi", "pregnan", "hernia", "hepat", "gall", "pancrea",
            "enter",
        ],
    },
    Finding { name: "nerve injury", unless: &["nerve", "neuropath", "spinal", "palsy", "cord"] },
    Finding { name: "pneumonia", unless: AIRWAY },
    Finding { name: "asthma", unless: AIRWAY },
    Finding { name: "diabetes", unless: &["diabet", "glyc", "insulin", "pregnan"] },
];

const CLINICIAN: &[&str] = &[
    "alert and oriented",
    "arrived with a family member",
    "history taken with an interpreter",
    "vitals are stable",
    "works in an office",
    "seen in the late afternoon",
    "interview was friendly",
    "lives two streets away",
    "patient is calm and cooperative",
    "consent was obtained",
    "the waiting time was short",
    "insurance card was copied",
    "vaccination record was not at hand",
    "the family was informed",
    "chart was reviewed",
    "medication list was reviewed",
    "appetite is normal",
    "sleeps well",
    "preferred language is Spanish",
    "came by bus",
];
const PATIENT: &[&str] = &[
    "I am a bit upset about it",
    "my sister drove me here",
    "I had to wait two hours",
    "the staff was very kind",
    "I work in a bakery",
    "it was raining that day",
    "my kids are with me",
    "I hope I can go home soon",
    "I missed lunch because of this",
    "I have a dog named Rex",
    "we were about to go on holiday",
    "I normally feel great",
    "I don't like hospitals",
    "my phone was dead",
    "I called my boss already",
    "my neighbor gave me your number",
    "I am in a good mood anyway",
    "I forgot my insurance card",
    "it is my birthday tomorrow",
    "I love gardening",
];
const TRIAGE: &[&str] = &[
    "A&Ox3",
    "vss",
    "NAD",
    "ambulatory",
    "family at bedside",
    "calm",
    "arrived 14:20",
    "ins card on file",
    "spouse present",
    "wait 20 min",
    "steady gait",
    "temp ok",
    "speaks Spanish",
    "in good spirits",
    "ID checked",
    "arr by private car",
    "arrived 07:45",
    "BP ok",
    "allergies: none known",
    "last meal 2h ago",
];

/// One or two absent findings, as "no fever or chest pain"; `descriptions` are those of the case, in lower case.
pub(super) fn absent_findings(descriptions: &str, register: Register, draw: &mut Draw) -> String {
    let is_safe = |finding: &&Finding| !finding.unless.iter().any(|word| descriptions.contains(word));
    let mut names: Vec<&str> = FINDINGS.iter().filter(is_safe).map(|finding| finding.name).collect();
    draw.shuffle(&mut names);
    names.truncate(draw.between(1, 2));
    let (no, or) = match register {
        Register::Clinician => (draw.word(&["no", "no", "without", "negative for"]), "or"),
        Register::Patient => ("no", "and no"),
        Register::Triage => (draw.word(&["no", "neg for", "denies"]), "or"),
    };
    match names.as_slice() {
        [] => String::new(),
        [one] => format!("{no} {one}"),
        [one, two, ..] => format!("{no} {one} {or} {two}"),
    }
}

/// A remark that matters to no code.
pub(super) fn remark(register: Register, draw: &mut Draw) -> &'static str {
    draw.word(match register {
        Register::Clinician => CLINICIAN,
        Register::Patient => PATIENT,
        Register::Triage => TRIAGE,
    })
}
