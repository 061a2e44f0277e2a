//! What goes wrong, as an operator reads it: what, where, and the remedy.

use crate::exit::Exit;
use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, on which object.
    pub what: String,
    /// Where to look: `file:line:column`, a path, a URL.
    pub place: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Problem {
    /// A problem without place or remedy; add them where they are known.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: None, remedy: None }
    }

    /// Names the place.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Names the remedy.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same lines under another heading.
    pub fn as_warning(&self) -> impl fmt::Display {
        struct Warning<'a>(&'a Problem);
        impl fmt::Display for Warning<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.lines("warning", f)
            }
        }
        Warning(self)
    }

    fn lines(&self, heading: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{heading}: {}", self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n  where: {place}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  remedy: {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines("error", f)
    }
}

/// Why a verb ended without doing its work.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// Everything that is wrong, as far as it was looked at; at least one.
    pub problems: Vec<Problem>,
}

impl Failure {
    /// Asked or configured wrongly: nothing was tried.
    pub fn usage(problem: Problem) -> Self {
        Self { exit: Exit::Usage, problems: vec![problem] }
    }

    /// Tried and failed.
    pub fn failed(problem: Problem) -> Self {
        Self { exit: Exit::Failed, problems: vec![problem] }
    }

    /// Tried and failed for a reason that already says where and what to do.
    pub fn because(error: impl fmt::Display) -> Self {
        Self::failed(Problem::new(error.to_string()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
