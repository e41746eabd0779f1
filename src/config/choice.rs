//! The choices that a setting offers, spelled as in Hugging Face's files.

use serde::{Serialize, Serializer};

/// A closed set of spelled values.
pub(super) trait Choice: Copy + 'static {
    const ALL: &'static [(&'static str, Self)];

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == text).map(|&(_, choice)| choice)
    }

    /// `a, b or c`.
    fn names() -> String {
        let names: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
        match names.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$case_doc:meta])* $case:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$case_doc])* $case,)* }

        impl Choice for $name {
            const ALL: &'static [(&'static str, Self)] = &[$(($text, Self::$case),)*];
        }

        impl $name {
            /// The value as a stage file spells it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$case => $text,)* }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    )*};
}

choices! {
    /// The type that weights and activations are computed in.
    Dtype {
        /// 16 bits, with the range of `float32`.
        Bfloat16 = "bfloat16",
        /// 32 bits.
        Float32 = "float32",
    }

    /// How the learning rate moves after the warm-up.
    Scheduler {
        /// Stays.
        Constant = "constant",
        /// Falls in a straight line to 0.
        Linear = "linear",
        /// Falls along half a cosine to 0.
        Cosine = "cosine",
        /// Falls with the square root of the step.
        InverseSqrt = "inverse_sqrt",
    }

    /// The optimizer. All three are AdamW with decoupled weight decay.
    Optim {
        /// States in 32 bits.
        AdamwTorch = "adamw_torch",
        /// States in 8 bits, in blocks, as in bitsandbytes.
        Adamw8bit = "adamw_8bit",
        /// The same, with states that may leave the device's memory.
        PagedAdamw8bit = "paged_adamw_8bit",
    }

    /// When the validation records are evaluated.
    EvalStrategy {
        /// Never.
        No = "no",
        /// Every `eval_steps` optimizer steps.
        Steps = "steps",
        /// After every epoch.
        Epoch = "epoch",
    }

    /// Which tokens of the chosen sequence ORPO's likelihood term counts.
    NllOn {
        /// Prompt and answer, as in TRL.
        All = "all",
        /// The answer.
        Completion = "completion",
    }

    /// What decides which checkpoint is the best.
    BestMetric {
        /// The lowest loss on the validation records.
        EvalLoss = "eval_loss",
        /// The highest share of answers with the right set of codes; needs `predict_with_generate`.
        EvalExactMatch = "eval_exact_match",
        /// The highest mean F1 of answers; needs `predict_with_generate`.
        EvalF1 = "eval_f1",
    }

    /// A service that figures are sent to, beside the console and `metrics.jsonl`.
    Tracker {
        /// Weights & Biases.
        Wandb = "wandb",
    }
}
