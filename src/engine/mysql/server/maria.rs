//! What a scratch server of MariaDB is called, given and told.

use super::{Setup, with_path};
use crate::engine::mysql::accounts::Account;
use crate::engine::mysql::ask;
use crate::engine::mysql::flavor::Flavor;
use crate::error::Result;
use mysql_async::Conn;
use tokio::process::Command;

/// The package that has the programs.
pub(super) const PACKAGE: &str =
    "the MariaDB server (in Debian: mariadb-server-core and mariadb-client)";
/// How the server is called.
const PROGRAM: &str = "mariadbd";
/// How what makes its data directories is called.
const INSTALLER: &str = "mariadb-install-db";

/// `mariadbd-10.11` before `mariadbd`: where several are installed, the series of the source is
/// taken.
pub(super) fn programs(source: Flavor) -> Vec<String> {
    let (major, minor, _) = source.number;
    vec![format!("{PROGRAM}-{major}.{minor}"), PROGRAM.into()]
}

/// What makes a data directory. It comes from the same place as the server.
pub(super) fn initializer(setup: &Setup) -> (String, Command) {
    let name = setup.program.replace(PROGRAM, INSTALLER);
    let mut command = Command::new(&name);
    command
        .args(["--no-defaults", "--skip-test-db", "--skip-name-resolve", "--force"])
        .arg("--auth-root-authentication-method=normal");
    (name, command)
}

/// Options of a run that a MySQL does not have.
pub(super) fn options(command: &mut Command, setup: &Setup) {
    command
        .args(["--skip-slave-start", "--log-warnings=2"])
        .arg(with_path("--master-info-file=", &setup.relay.join("master.info")))
        .arg(with_path("--relay-log-info-file=", &setup.relay.join("relay-log.info")))
        // A way to log in that accounts of the source may have and that servers do not load by
        // themselves: without it, such an account cannot be created.
        .arg("--loose-plugin-load-add=auth_ed25519");
}

/// What else makes an account the administrator of a fresh server.
pub(super) async fn admin(root: &mut Conn, user: &str) -> Result<Vec<String>> {
    let accounts: Vec<(String, String)> = ask::rows(
        root,
        "SELECT User, Host FROM mysql.user WHERE User = 'root' ORDER BY Host = 'localhost'",
        || "list the accounts of the scratch server".into(),
    )
    .await?;
    let mut statements =
        vec![format!("GRANT PROXY ON ''@'%' TO '{user}'@'localhost' WITH GRANT OPTION")];
    // The one in use comes last: the rights of an open connection go with its account.
    let drop = |(user, host)| format!("DROP USER {}", Account { user, host }.quoted());
    statements.extend(accounts.into_iter().map(drop));
    Ok(statements)
}
