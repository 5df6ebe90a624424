//! What becomes of the times at which keys expire, in a restore.
//!
//! A restored key has the expiry that it had. Once the server runs, keys whose expiry has passed
//! since the instant are gone. [`Ttl`] says whether that is wanted.

use crate::clock::Timestamp;
use serde::Serialize;

/// What becomes of expiries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ttl {
    /// They stay the instants that they are.
    #[default]
    Absolute,
    /// They move by the time that has passed since the instant restored to, so that every key has
    /// as long to live as it had then.
    Shift,
    /// They are dropped: what was alive at the instant stays.
    Persist,
}

/// What becomes of expiries, and the instants that this goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// What.
    pub ttl: Ttl,
    /// The instant that is restored to.
    pub at: Timestamp,
    /// When the restore began.
    pub now: Timestamp,
}

impl Default for Expiry {
    fn default() -> Self {
        let epoch = Timestamp::from_micros(0);
        Self { ttl: Ttl::Absolute, at: epoch, now: epoch }
    }
}

impl Expiry {
    /// How far expiries move while data is restored, in ms; `None` if they stay.
    pub(crate) fn by_ms(self) -> Option<i64> {
        match self.ttl {
            Ttl::Absolute => None,
            Ttl::Shift => Some(self.now_ms() - self.at_ms()),
            Ttl::Persist => Some(OUT_OF_THE_WAY_MS),
        }
    }

    /// The instant restored to, as a server's clock shows it in ms.
    pub(crate) fn at_ms(self) -> i64 {
        self.at.as_micros().div_euclid(1000)
    }

    fn now_ms(self) -> i64 {
        self.now.as_micros().div_euclid(1000)
    }
}

/// How far expiries move where nothing may expire before all is looked at: 100 years, in ms. The
/// expiry of a hash field has 46 bits (`ebuckets.h`), which is the year 4199.
pub(crate) const OUT_OF_THE_WAY_MS: i64 = 100 * 365 * 86_400_000;

/// What became of expiries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Expired {
    /// What was asked for.
    pub policy: Ttl,
    /// How far expiries were moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_ms: Option<i64>,
    /// Keys that were alive at the instant and are past their expiry now, so that the server does
    /// not have them any more; `None` if they were not counted.
    pub lapsed: Option<u64>,
    /// Keys that were past their expiry at the instant already, and not deleted yet.
    pub expired_before: Option<u64>,
    /// Keys and fields that lost their expiry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persisted: Option<u64>,
    /// Why they were not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_counted: Option<String>,
    /// Commands of the log that this version does not know: their expiries, if they have any, were
    /// not moved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown_commands: Vec<String>,
}
