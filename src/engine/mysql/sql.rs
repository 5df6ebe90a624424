//! Ordinary SQL to a server, over `mysql_async`, with the endpoint's own TLS settings.
//!
//! Never used for what is replicated: only for questions and settings.

use super::auth::{self, ServerError};
use crate::engine::{Endpoint, TlsMode, TlsOptions, tls};
use crate::error::{Error, Result};
use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{ClientIdentity, Conn, DriverError, IoError, OptsBuilder, SslOpts};
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a connection, and each question that is answered at once, may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Connects and logs in.
///
/// # Errors
/// Unavailable, if the server cannot be reached. Usage, if it does not let us in.
pub async fn connect(endpoint: &Endpoint) -> Result<Conn> {
    // The library's errors do not name the file that they are about.
    tls::check(&endpoint.tls)?;
    // It panics at some answers, and at an empty password for `parsec`: so it gets a task of its
    // own.
    let mut task = JoinSet::new();
    task.spawn(Conn::new(options(endpoint)));
    match tokio::time::timeout(ANSWER_TIMEOUT, task.join_next()).await {
        Ok(Some(Ok(connected))) => connected.map_err(|error| not_let_in(endpoint, error)),
        Ok(_) => Err(login_panicked(endpoint)),
        Err(_) => Err(Error::unavailable(format!(
            "connect to {endpoint}: no answer in {} s",
            ANSWER_TIMEOUT.as_secs()
        ))
        .hint(tls::UNREACHABLE)),
    }
}

/// What to say where the library panicked instead of answering.
fn login_panicked(endpoint: &Endpoint) -> Error {
    if endpoint.password.is_empty() {
        return Error::usage(format!(
            "{endpoint}: the account wants a password (parsec takes no empty one), and none is given"
        ))
        .hint(
            "name it with `password_file`, and give the account one if it has none: ALTER USER … \
             IDENTIFIED VIA parsec USING PASSWORD(…)",
        );
    }
    Error::corrupt(format!("{endpoint}: not an answer to a login"))
}

/// Says of a login over `mysql_async` what [`auth::connect`] says of one of our own.
fn not_let_in(endpoint: &Endpoint, error: mysql_async::Error) -> Error {
    let peer = endpoint.to_string();
    match error {
        mysql_async::Error::Server(error) => {
            ServerError { code: error.code, message: error.message }.at_login(endpoint)
        }
        mysql_async::Error::Io(IoError::Io(error)) => tls::explain(&peer, error),
        mysql_async::Error::Driver(DriverError::UnknownAuthPlugin { name }) => {
            auth::unknown_plugin(&peer, &name)
        }
        mysql_async::Error::Driver(DriverError::MysqlOldPasswordDisabled) => {
            auth::unknown_plugin(&peer, "mysql_old_password")
        }
        mysql_async::Error::Driver(DriverError::CleartextPluginDisabled) => {
            auth::unknown_plugin(&peer, "mysql_clear_password")
        }
        mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer) => auth::no_tls(&peer),
        error => failed(&peer, error),
    }
}

/// The endpoint as `mysql_async` wants it.
pub(crate) fn options(endpoint: &Endpoint) -> OptsBuilder {
    OptsBuilder::default()
        .ip_or_hostname(endpoint.host.clone())
        .tcp_port(endpoint.port)
        .user(Some(endpoint.user.clone()))
        .pass(Some(endpoint.password.reveal()))
        // By default it would go over to the socket that a server on this host names.
        .prefer_socket(false)
        .tcp_nodelay(true)
        .stmt_cache_size(0)
        .ssl_opts(ssl(&endpoint.tls))
}

fn ssl(tls: &TlsOptions) -> Option<SslOpts> {
    let verify = match tls.mode {
        TlsMode::Off => return None,
        TlsMode::Require => false,
        TlsMode::Verify => true,
    };
    let file = |path: &Path| path.to_owned().into();
    let mut options = SslOpts::default()
        .with_danger_accept_invalid_certs(!verify)
        .with_danger_skip_domain_validation(!verify);
    if let Some(ca) = &tls.ca {
        options = options.with_root_certs(vec![file(ca)]).with_disable_built_in_roots(true);
    }
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        options = options.with_client_identity(Some(ClientIdentity::new(file(cert), file(key))));
    }
    Some(options)
}

/// What an error of `mysql_async` means for the operator, said of `peer`.
pub(crate) fn failed(peer: &str, error: mysql_async::Error) -> Error {
    match error {
        mysql_async::Error::Server(error) => {
            ServerError { code: error.code, message: error.message }.for_operator(peer)
        }
        error => Error::unavailable(format!("talk to {peer}")).source(error),
    }
}

/// The first row of the answer to a question that is answered at once.
///
/// # Errors
/// As the server says; unavailable, if there is no row or no answer in time.
pub(crate) async fn row<T: FromRow + Send + 'static>(
    conn: &mut Conn,
    peer: &str,
    sql: &str,
) -> Result<T> {
    let first = rows::<T>(conn, peer, sql).await?.into_iter().next();
    first.ok_or_else(|| Error::unavailable(format!("{peer}: no row for {sql}")))
}

/// All rows of the answer to a question that is answered at once.
///
/// # Errors
/// As the server says; unavailable, if there is no answer in time.
pub(crate) async fn rows<T: FromRow + Send + 'static>(
    conn: &mut Conn,
    peer: &str,
    sql: &str,
) -> Result<Vec<T>> {
    let answer = conn.query_map(sql, mysql_async::from_row_opt::<T>);
    let rows = match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(rows) => rows.map_err(|error| failed(peer, error))?,
        Err(_) => return Err(Error::unavailable(format!("{peer}: no answer in time to {sql}"))),
    };
    rows.into_iter()
        .collect::<Result<_, _>>()
        .map_err(|_| Error::unavailable(format!("{peer}: an answer of another form to {sql}")))
}
