//! What went wrong, for whom, and what helps.
//!
//! One error type carries a class (which decides the exit code), a message that names the thing
//! it happened to, an optional hint with the command that helps, and the cause. Callers that
//! have to tell failures of one class apart (a purged binlog from a dead server) use an enum of
//! their own beside the call and turn it into this type at the boundary.
//!
//! **Invariant:** a message never holds a secret; it is printed, logged and stored.

use std::fmt;

/// What a function of pitr returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an operator has to do about an error. Each class has one exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The command worked and found something: read the report.
    Finding,
    /// A wrong option or configuration: correct it.
    Usage,
    /// A source, target or store is not reachable: try again.
    Unavailable,
    /// The instant cannot be restored: pick one of those named. Nothing was changed.
    Gap,
    /// Stored bytes do not match their digests: use the other copy.
    Corrupt,
    /// The target is not fit (not empty, a source, too old). Nothing was changed.
    Refused,
    /// Another pitr holds the archive, or this one was fenced off.
    Busy,
    /// A defect of pitr itself: report it.
    Bug,
    /// Stopped by the operator.
    Interrupted,
}

impl Class {
    /// The process exit code of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Finding => 1,
            Self::Usage => 2,
            Self::Unavailable => 3,
            Self::Gap => 4,
            Self::Corrupt => 5,
            Self::Refused => 6,
            Self::Busy => 7,
            Self::Bug => 70,
            Self::Interrupted => 130,
        }
    }

    /// The word for this class in `pitr.error/1` documents.
    pub fn word(self) -> &'static str {
        match self {
            Self::Finding => "finding",
            Self::Usage => "usage",
            Self::Unavailable => "unavailable",
            Self::Gap => "gap",
            Self::Corrupt => "corrupt",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Bug => "bug",
            Self::Interrupted => "interrupted",
        }
    }
}

/// An error with its class, its message and what helps against it.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    class: Class,
    message: String,
    hint: Option<String>,
    nearest: Vec<String>,
    worth_again: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `class`. The message is lower case, without a full stop, with its values.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            inner: Box::new(Inner {
                class,
                message,
                hint: None,
                nearest: vec![],
                worth_again: false,
                source: None,
            }),
        }
    }

    /// A wrong option or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    /// Something that is not reachable now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Class::Unavailable, message)
    }

    /// An instant that cannot be restored.
    pub fn gap(message: impl Into<String>) -> Self {
        Self::new(Class::Gap, message)
    }

    /// Stored or received bytes that are not what they must be.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Class::Corrupt, message)
    }

    /// A target or source that pitr declines to touch.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Class::Refused, message)
    }

    /// A resource that another process holds.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Class::Busy, message)
    }

    /// A state that the code itself rules out.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Class::Bug, message)
    }

    /// Adds the sentence that says what helps, with the command to run.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// Adds the instants (RFC 3339) that can be restored instead.
    #[must_use]
    pub fn nearest(mut self, nearest: Vec<String>) -> Self {
        self.inner.nearest = nearest;
        self
    }

    /// Marks what failed by chance of its moment: the same may work if it is begun anew.
    #[must_use]
    pub fn worth_again(mut self) -> Self {
        self.inner.worth_again = true;
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Puts what was being done in front: `restore shop-mysql: …`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.inner.message = format!("{doing}: {}", self.inner.message);
        self
    }

    /// The class, which decides the exit code.
    pub fn class(&self) -> Class {
        self.inner.class
    }

    /// What helps, if anything is known to.
    pub fn hint_text(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// Whether the same may work if it is begun anew.
    pub fn is_worth_again(&self) -> bool {
        self.inner.worth_again
    }

    /// The instants (RFC 3339) that can be restored instead.
    pub fn nearest_instants(&self) -> &[String] {
        &self.inner.nearest
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.inner.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            // Some libraries print their causes themselves.
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            // An `Error` below prints its own causes.
            if error.downcast_ref::<Self>().is_some() {
                break;
            }
            cause = error.source();
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.inner.class.word())?;
        if let Some(hint) = &self.inner.hint {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

/// Says what was being done when an error of a library came up.
pub trait Context<T> {
    /// Turns the error into one of `class`, with `message` in front of its own text.
    fn class(self, class: Class, message: impl FnOnce() -> String) -> Result<T>;

    /// The same for something that is not reachable now.
    fn unavailable(self, message: impl FnOnce() -> String) -> Result<T>
    where
        Self: Sized,
    {
        self.class(Class::Unavailable, message)
    }

    /// The same for bytes that are not what they must be.
    fn corrupt(self, message: impl FnOnce() -> String) -> Result<T>
    where
        Self: Sized,
    {
        self.class(Class::Corrupt, message)
    }
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T> for Result<T, E> {
    fn class(self, class: Class, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::new(class, message()).source(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_chain_is_printed_once() {
        let low = std::io::Error::other("disk on fire");
        let error = Err::<(), _>(low).unavailable(|| "sync segment 7".into()).unwrap_err();
        let error = error.context("capture shop-mysql");
        assert_eq!(error.to_string(), "capture shop-mysql: sync segment 7: disk on fire");
        assert_eq!(error.class().exit_code(), 3);
        let printed =
            Error::bug("read: disk on fire").source(std::io::Error::other("disk on fire"));
        assert_eq!(printed.to_string(), "read: disk on fire");
        let outer = Error::bug("outer").source(error);
        assert_eq!(outer.to_string(), "outer: capture shop-mysql: sync segment 7: disk on fire");
    }
}
