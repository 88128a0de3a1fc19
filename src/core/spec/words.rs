//! The word of each choice: what people write in TOML and on the command line, and read in answers.

use std::fmt;
use std::str::FromStr;

use super::{
    CoordinatorLoss, Engine, LoweredSync, Mode, OnViolation, Scope, Survive, TooFewSync,
    TopologyKind,
};

/// A word that names no choice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} is not one of {}", allowed.join(", "))]
pub struct WordError {
    /// What was written.
    pub got: String,
    /// What could have been.
    pub allowed: &'static [&'static str],
}

macro_rules! words {
    ($choice:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $choice {
            /// Every word, in the order of the choices.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word of this choice.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }
        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
        impl FromStr for $choice {
            type Err = WordError;
            fn from_str(text: &str) -> Result<Self, WordError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(WordError { got: text.to_owned(), allowed: Self::WORDS }),
                }
            }
        }
    };
}

words!(Engine { Postgres = "postgres", Exec = "exec" });
words!(TopologyKind { ActivePassive = "active-passive", ActiveActive = "active-active" });
words!(Mode { Lease = "lease", Quorum = "quorum" });
words!(TooFewSync { Block = "block", Degrade = "degrade" });
words!(LoweredSync { Report = "report", Strict = "strict" });
words!(CoordinatorLoss { Stop = "stop", Hold = "hold" });
words!(OnViolation { Refuse = "refuse", Ask = "ask", Accept = "accept" });
words!(Scope { Zone = "zone", Region = "region", Any = "any" });
words!(Survive { Instance = "instance", Zone = "zone", Region = "region" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_as_the_choice_that_it_names() {
        fn check<T: FromStr<Err = WordError> + fmt::Display>(words: &[&str]) {
            for word in words {
                assert_eq!(word.parse::<T>().expect("an own word").to_string(), *word);
            }
        }
        check::<Engine>(Engine::WORDS);
        check::<TopologyKind>(TopologyKind::WORDS);
        check::<Mode>(Mode::WORDS);
        check::<TooFewSync>(TooFewSync::WORDS);
        check::<LoweredSync>(LoweredSync::WORDS);
        check::<CoordinatorLoss>(CoordinatorLoss::WORDS);
        check::<OnViolation>(OnViolation::WORDS);
        check::<Scope>(Scope::WORDS);
        check::<Survive>(Survive::WORDS);
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_ones() {
        let error = "async".parse::<Mode>().expect_err("no such mode");
        assert_eq!(error.to_string(), "\"async\" is not one of lease, quorum");
    }
}
