//! Ways to prove to know a password, as the servers name them.
//!
//! The computations are `mysql_common`'s; here stands which of them answers which question. The
//! connections of `mysql_async` use the same ones, so that both kinds are let in alike.
//!
//! **Invariant:** no answer made here holds the password, and none is made for a plugin that
//! would want it in the clear.

use crate::engine::Secret;
use mysql_common::scramble::{
    create_response_for_ed25519, create_response_for_parsec, scramble_native, scramble_sha256,
};

const CACHING_SHA2: &[u8] = b"caching_sha2_password";
const NATIVE: &[u8] = b"mysql_native_password";
const ED25519: &[u8] = b"client_ed25519";
const PARSEC: &[u8] = b"parsec";

/// Length of the random bytes that MySQL's own plugins send, without the NUL behind them.
pub(crate) const NONCE_BYTES: usize = 20;

/// Length of the random bytes of `client_ed25519` and `parsec`.
const LONG_NONCE_BYTES: usize = 32;

/// The largest exponent in a salt of `parsec`: the server doubles 1,024 iterations up to three
/// times (MariaDB, `plugin/auth_parsec`). More would only be a way to keep a client busy.
const PARSEC_FACTOR_MAX: u8 = 3;

/// A way to prove to know a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plugin {
    /// `caching_sha2_password`: MySQL's default since 8.0.
    CachingSha2,
    /// `mysql_native_password`: MariaDB's default; gone from MySQL 9.
    Native,
    /// `client_ed25519`: MariaDB.
    Ed25519,
    /// `parsec`: MariaDB 11.6 and newer.
    Parsec,
}

impl Plugin {
    /// The plugin of that name, if pitr knows it.
    pub(crate) fn named(name: &[u8]) -> Option<Self> {
        match name {
            CACHING_SHA2 => Some(Self::CachingSha2),
            NATIVE => Some(Self::Native),
            ED25519 => Some(Self::Ed25519),
            PARSEC => Some(Self::Parsec),
            _ => None,
        }
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static [u8] {
        match self {
            Self::CachingSha2 => CACHING_SHA2,
            Self::Native => NATIVE,
            Self::Ed25519 => ED25519,
            Self::Parsec => PARSEC,
        }
    }

    /// The answer to the server's random bytes, as it sends them; `None`, if they are too few.
    pub(crate) fn answer(self, nonce: &[u8], password: &Secret) -> Option<Vec<u8>> {
        let password = password.reveal().as_bytes();
        let short = nonce.first_chunk::<NONCE_BYTES>();
        // An empty password is proved by an empty answer.
        Some(match self {
            Self::CachingSha2 => scramble_sha256(short?, password).map_or(vec![], Vec::from),
            Self::Native => scramble_native(short?, password).map_or(vec![], Vec::from),
            Self::Ed25519 => {
                let nonce = nonce.first_chunk::<LONG_NONCE_BYTES>()?;
                create_response_for_ed25519(password, nonce).to_vec()
            }
            // It asks for the salt first, with an empty packet.
            Self::Parsec => nonce.first_chunk::<LONG_NONCE_BYTES>().map(|_| vec![])?,
        })
    }
}

/// The second answer of `parsec`, to the salt that the server keeps with the password: `P`, the
/// exponent of the iterations, and the salt itself. `None`, if it is not of that form.
pub(crate) fn answer_salt(nonce: &[u8], salt: &[u8], password: &Secret) -> Option<Vec<u8>> {
    let nonce = nonce.first_chunk::<LONG_NONCE_BYTES>()?;
    match salt {
        [b'P', factor @ 0..=PARSEC_FACTOR_MAX, salt @ ..] if !salt.is_empty() => {
            let password = password.reveal().as_bytes();
            Some(create_response_for_parsec(password, nonce, 1024 << factor, salt).to_vec())
        }
        _ => None,
    }
}
