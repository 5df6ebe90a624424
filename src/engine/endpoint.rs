//! Where a server is and how to prove who we are: urls, secrets, TLS settings.
//!
//! **Invariant:** neither `Display` nor `Debug` of anything here shows a password.

use crate::error::{Error, Result};
use crate::manifest::EngineKind;
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;

/// A password. Shows itself as `<redacted>`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The password itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Whether and how a connection is encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Not encrypted.
    #[default]
    Off,
    /// Encrypted; the server's certificate is not checked.
    Require,
    /// Encrypted; the server's certificate must be valid for its host name.
    Verify,
}

/// `tls = { … }` of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsOptions {
    /// Whether and how.
    #[serde(default)]
    pub mode: TlsMode,
    /// Certificate authority to trust, as PEM; the public ones if not given.
    pub ca: Option<PathBuf>,
    /// Client certificate, as PEM.
    pub cert: Option<PathBuf>,
    /// Key of the client certificate, as PEM.
    pub key: Option<PathBuf>,
}

/// A server to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User name; empty for none.
    pub user: String,
    /// Password; empty for none.
    pub password: Secret,
    /// Encryption.
    pub tls: TlsOptions,
}

impl Endpoint {
    /// Reads `mysql://user@host:port` or `redis://user@host:port`.
    ///
    /// # Errors
    /// Usage, if it is not a url of that engine.
    pub fn parse(engine: EngineKind, text: &str) -> Result<Self> {
        // The text may hold a password: errors name only what is wrong with it.
        let bad = |why: &str| {
            let example = match engine {
                EngineKind::Mysql => "mysql://pitr@127.0.0.1:3306",
                EngineKind::Redis => "redis://127.0.0.1:6379",
            };
            Error::usage(format!("not a {} url: {why}", engine.word()))
                .hint(format!("write it like {example}"))
        };
        let url = url::Url::parse(text).map_err(|error| bad(&error.to_string()))?;
        if url.scheme() != engine.word() {
            return Err(bad(&format!("the scheme is {:?}", url.scheme())));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("nothing may follow the port"));
        }
        let host = match url.host() {
            Some(url::Host::Ipv6(address)) => address.to_string(),
            Some(host) => host.to_string(),
            None => return Err(bad("the host is missing")),
        };
        let decode = |part: &str| {
            percent_encoding::percent_decode_str(part)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| bad("user and password must be UTF-8"))
        };
        let default_port = match engine {
            EngineKind::Mysql => 3306,
            EngineKind::Redis => 6379,
        };
        Ok(Self {
            host,
            port: url.port().unwrap_or(default_port),
            user: decode(url.username())?,
            password: Secret::new(decode(url.password().unwrap_or_default())?),
            tls: TlsOptions::default(),
        })
    }

    /// `host:port`, as sockets want it.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.user.is_empty() {
            write!(f, "{}@", self.user)?;
        }
        f.write_str(&self.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_never_show_their_password() {
        let at =
            Endpoint::parse(EngineKind::Mysql, "mysql://pi%40tr:s%2Fcret@db.example:3307").unwrap();
        assert_eq!((at.user.as_str(), at.port), ("pi@tr", 3307));
        assert_eq!(at.password.reveal(), "s/cret");
        assert_eq!(at.to_string(), "pi@tr@db.example:3307");
        assert!(!format!("{at:?}").contains("s/cret"));
        let at = Endpoint::parse(EngineKind::Redis, "redis://[::1]").unwrap();
        assert_eq!(at.address(), "[::1]:6379");
    }

    #[test]
    fn other_urls_are_refused_without_repeating_them() {
        for text in
            ["redis://u:geheim@h", "mysql://u:geheim@h/db", "mysql:geheim", "mysql://h:99999"]
        {
            let error = Endpoint::parse(EngineKind::Mysql, text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("geheim"), "{error}");
        }
    }
}
